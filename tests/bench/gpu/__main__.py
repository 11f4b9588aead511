"""`python -m tests.bench.gpu [--tiny] [--json FILE] [--images DIR]`: every script, within nine minutes on one GPU.

Each runs in a process of its own with a time limit; what it has measured until then counts. Writes gpu.json, in the
form of bench.json. Exits with 1 where a script failed, ran out of time, or found the GPU to compute wrongly.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.gpu.common import as_text

LIMITS = {"correct": 80, "sds": 60, "label": 140, "train": 160, "align": 100}
"""Seconds."""


def main() -> int:
    """Runs the scripts one after the other; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), metavar="FILE")
    parser.add_argument("--images", metavar="DIR")
    asked = parser.parse_args()
    options = ["--tiny"] * asked.tiny + (["--images", asked.images] if asked.images else [])
    found: dict[str, Any] = {}
    ended: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, limit in LIMITS.items():
            print(f"--- {name}, {limit} s at most", flush=True)
            file = Path(scratch) / f"{name}.json"
            command = [sys.executable, "-m", f"tests.bench.gpu.{name}", "--json", str(file), *options]
            try:
                code = subprocess.run(command, timeout=limit, check=False).returncode
                ended[name] = f"exit code {code}" if code else "done"
            except subprocess.TimeoutExpired:
                ended[name] = "ran out of time"
            if file.exists():
                found |= json.loads(file.read_bytes())
                asked.json.write_text(as_text(found))
    print("\n".join(f"{name}: {how}" for name, how in ended.items()))
    return int(any(how != "done" for how in ended.values()))


if __name__ == "__main__":
    sys.exit(main())
