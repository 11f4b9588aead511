"""`python -m tests.bench.gpu [--tiny] [--json FILE] [--images DIR] [--only NAME,NAME]`: the scripts on one GPU.

Each runs in a process of its own with a time limit; what it has measured until then counts. Writes gpu.json, in the
form of bench.json, over figures of the same names that the file has. Where a command may take ten minutes, two
commands of under seven hold all, `--only correct,sds,label` and `--only train,align`. Exits with 1 where a script
failed, ran out of time, or found the GPU to compute wrongly.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.gpu.common import as_text

LIMITS = {"correct": 110, "sds": 70, "label": 180, "train": 240, "align": 150}
"""Seconds, imports and models included."""
ENVIRONMENT = {
    # Steps of very different sizes share the allocator: whole blocks of one are no use to the other.
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "HF_HUB_OFFLINE": "1",
}
"""Of the scripts, where the environment says nothing else."""


def main() -> int:
    """Runs the scripts one after the other; the exit code."""
    asked = _asked()
    options = ["--tiny"] * asked.tiny + (["--images", asked.images] if asked.images else [])
    found: dict[str, Any] = json.loads(asked.json.read_bytes()) if asked.only and asked.json.exists() else {}
    ended: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, limit in LIMITS.items():
            if asked.only and name not in asked.only:
                continue
            print(f"--- {name}, {limit} s at most", flush=True)
            file = Path(scratch) / f"{name}.json"
            command = [sys.executable, "-m", f"tests.bench.gpu.{name}", "--json", str(file), *options]
            try:
                done = subprocess.run(command, timeout=limit, check=False, env=ENVIRONMENT | dict(os.environ))
                ended[name] = f"exit code {done.returncode}" if done.returncode else "done"
            except subprocess.TimeoutExpired:
                ended[name] = "ran out of time"
            if file.exists():
                found |= json.loads(file.read_bytes())
                asked.json.write_text(as_text(found))
    print("\n".join(f"{name}: {how}" for name, how in ended.items()))
    return int(any(how != "done" for how in ended.values()))


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), metavar="FILE")
    parser.add_argument("--images", metavar="DIR")
    parser.add_argument("--only", type=lambda names: names.split(","), metavar="NAME,NAME", help=", ".join(LIMITS))
    asked = parser.parse_args()
    if unknown := set(asked.only or ()) - LIMITS.keys():
        parser.error(f"--only: expected names of {', '.join(LIMITS)}; found {', '.join(sorted(unknown))}")
    return asked


if __name__ == "__main__":
    sys.exit(main())
