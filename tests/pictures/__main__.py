"""Draws the pictures of the README and of docs/.

    python -m tests.pictures runs/demo docs/pictures [--results FOLDER/results.jsonl [--metric right_photo_gain]]
        [--lens ROW=FILE …]

The first folder is the demo's, whose report is photographed in Chromium and whose labels the diagrams show. Every
drawing comes in a light and in a dark version. With `--results`, the file of `tests.bench.compare`, one metric of its
rows is drawn as bars, too. With `--lens`, what `evaluate --lens contextual --json` printed of some rows is drawn layer
by layer.
"""

import argparse
from pathlib import Path

from tests.pictures import bars, diagrams, lens, report_pictures


def main() -> None:
    """Draws, and prints each file with its size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="the folder of `sea-pipeline demo`")
    parser.add_argument("out", type=Path, help="where the pictures go, made where there is none")
    parser.add_argument("--results", type=Path, help="results.jsonl of tests.bench.compare")
    parser.add_argument("--metric", default="right_photo_gain", help="the one that is drawn")
    parser.add_argument(
        "--lens", nargs="+", default=[], metavar="ROW=FILE", help="of evaluate --lens contextual --json"
    )
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    files = diagrams.draw(asked.demo / "labels", asked.out)
    files += report_pictures.draw(asked.demo / "report.html", asked.out)
    if asked.results:
        files += bars.draw(asked.results, asked.metric, asked.out)
    if asked.lens:
        files += lens.draw({row: Path(file) for row, _, file in (one.partition("=") for one in asked.lens)}, asked.out)
    for file in files:
        print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
