"""The memory of another process, seen from outside: a thread inside it would wait for the work that it measures."""

import os
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from typing import NamedTuple

from tests.support.paths import ROOT

READY = "print('ready', flush=True); input()"
"""What a measured program does once it has imported what it needs."""


class Memory(NamedTuple):
    """Bytes that are the process's own (RssAnon): pages of mapped files, which the system can drop, are left out."""

    before: int
    """When the program said that it was ready."""
    peak: int
    """From then on."""


def measured(*command: str) -> Memory:
    """Runs `python COMMAND…`, which executes `READY` once, looking at its memory every few milliseconds."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, *command], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        before = peak = _anonymous(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        Thread(target=process.stdout.read).start()  # what it prints must not fill the pipe
        while process.poll() is None:
            peak = max(peak, _anonymous(process.pid))
            time.sleep(0.003)
    assert process.returncode == 0, process.returncode
    return Memory(before, peak)


def _anonymous(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:"))
