"""What can go wrong with a folder that many work on, done on purpose.

Each function leaves folders `out*` that should be whole, and returns how often it happened and what was seen.
"""

import contextlib
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import fsspec
import pytest

from sea_pipeline.output.ledger import Ledger
from sea_pipeline.storage.publish import sweep
from tests.bench.fault_runs import IMAGES, SHARD_SIZE, alone, child_of, other_scheduler, wait_until_begun
from tests.support.kills import descendants
from tests.support.photo_forms import failing_s3, s3_server
from tests.support.worker_world import plant_fault, planted_ledger


def workers_killed(folder: Path, kills: int) -> tuple[int, str]:
    """SIGKILL of a random worker at random moments of one run after the other."""
    random_ = random.Random(0)
    killed = again = failed = 0
    while killed < kills:
        out = folder / f"out{killed}"
        child, seen = child_of(out, folder / "none"), 0
        while child.poll() is None and killed < kills:
            time.sleep(0.1)
            if (done := len(list((out / "commits").glob("*.json")))) <= seen:
                continue  # workers that are killed while they load, one after the other, end a run
            time.sleep(random_.uniform(0.0, 1.0))
            if begun := [pid for pid in descendants(child.pid) if _is_worker(pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(random_.choice(begun), signal.SIGKILL)
                    killed, seen = killed + 1, done + 2
        child.communicate()
        ledger = Ledger.open(out)
        again += sum(commit.attempt > 1 for commit in ledger.commits())
        failed += len(ledger.missing())
        alone(str(out))
    return killed, f"{again} shards done again, {failed} failed"


def scheduler_killed(folder: Path, kills: int) -> tuple[int, str]:
    """SIGKILL of somebody else's scheduler; a new one, and the same command again."""
    random_, times, messages = random.Random(1), max(1, kills // 4), Counter[str]()
    for number in range(times):
        out = folder / f"out{number}"
        with other_scheduler(folder / f"scheduler{number}.json") as (address, process):
            child = child_of(out, folder / "none", address)
            wait_until_begun(child, out)
            time.sleep(random_.uniform(0.0, 1.0))
            process.kill()
            said = child.communicate()[1]
            messages["the scheduler is gone" in said and child.returncode == 1 and "Traceback" not in said] += 1
        with other_scheduler(folder / f"again{number}.json") as (address, _):
            child_of(out, folder / "none", address).communicate()
    return times, f"{messages[True]} of {times} said so in one line"


def driver_killed(folder: Path, kills: int) -> tuple[int, str]:
    """SIGKILL of the command; its workers must go, and the command be run again."""
    random_, times, left = random.Random(2), max(1, kills // 4), 0
    for number in range(times):
        out = folder / f"out{number}"
        child = child_of(out, folder / "none")
        wait_until_begun(child, out)
        time.sleep(random_.uniform(0.0, 2.0))
        begun = descendants(child.pid)
        child.kill()
        child.communicate()
        time.sleep(5)
        left += sum(Path(f"/proc/{pid}").exists() for pid in begun)
        alone(str(out))
    return times, f"{left} processes left after 5 s"


def hang(folder: Path, kills: int) -> tuple[int, str]:
    """A shard that hangs once, and one that always does."""
    plant_fault(folder / "faults", 3, "hang")
    plant_fault(folder / "faults", 8, *["hang"] * 99)
    child = child_of(folder / "out", folder / "faults")
    child.communicate()
    missing = Ledger.open(folder / "out").missing()
    alone(str(folder / "out"))
    return 1, f"exit {child.returncode}, failed: {missing}"


def poison(folder: Path, kills: int) -> tuple[int, str]:
    """A shard that kills every worker."""
    plant_fault(folder / "faults", 5, *["kill"] * 99)
    child = child_of(folder / "out", folder / "faults")
    child.communicate()
    ledger = Ledger.open(folder / "out")
    words = len((folder / "faults" / "5").read_text().split())
    innocents = sum(commit.attempt > 1 for commit in ledger.commits())
    missing = ledger.missing()
    alone(str(folder / "out"))
    return 1, f"exit {child.returncode}, failed: {missing}, {99 - words} workers lost, {innocents} others done again"


def disk_full(folder: Path, kills: int) -> tuple[int, str]:
    """Each file may have so many bytes at most: writes of data, commits, plan or manifest fail half-way."""
    random_, times, told = random.Random(3), max(1, kills // 4), 0
    for number in range(times):
        limit = random_.choice([300, 700, 900, 1100, 1600, 2500])
        code = f"from tests.bench.fault_runs import alone; alone({str(folder / f'out{number}')!r}, {limit})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        told += done.returncode == 0 or "cannot be written: File too large" in done.stderr
        alone(str(folder / f"out{number}"))
    return times, f"{told} of {times} said so in one line, or had room enough"


def two_drivers(folder: Path, kills: int) -> tuple[int, str]:
    """Two commands with workers of their own on one folder at once."""
    planted_ledger(folder / "out", IMAGES, SHARD_SIZE)
    both = [child_of(folder / "out", folder / "none") for _ in range(2)]
    for child in both:
        child.communicate()
    return 1, f"exits {[child.returncode for child in both]}"


def s3_fails(folder: Path, kills: int) -> tuple[int, str]:
    """A store that answers the first request for each file with 500 or 503, under a command with workers."""
    answers = 0
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch, s3_server(patch) as address:
        patch.setenv("SEA_PIPELINE_CACHE", str(folder / "cache"))
        for status in (500, 503):
            url = f"s3://bucket/out{status}"
            with failing_s3(patch, address, status, faults=1, all_files=True) as proxy:
                child = child_of(url, folder / "none")
                said = child.communicate()[1]
                answers += len(proxy.asked)
            if child.returncode:
                raise SystemExit(said)
            fsspec.filesystem("s3").get(f"bucket/out{status}/", str(folder / f"out{status}"), recursive=True)
    return answers, "requests that failed; both commands went through"


def collisions(folder: Path, kills: int) -> tuple[int, str]:
    """Two commands at once, on two machines of one name: what each is writing looks abandoned and is swept away.

    The clock of one is a day behind.
    """
    random_, times, ends, swept = random.Random(4), max(1, kills // 4), Counter[int](), 0
    for number in range(times):
        out = folder / f"out{number}"
        planted_ledger(out, IMAGES, SHARD_SIZE)
        code = "from tests.bench.fault_runs import alone_elsewhere; alone_elsewhere({!r}, {})"
        commands = [[sys.executable, "-c", code.format(str(out), days)] for days in (0, 1)]
        both = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for command in commands]
        while any(child.poll() is None for child in both):
            before = len(list((out / ".tmp").glob("*")))
            sweep(out)
            swept += before > len(list((out / ".tmp").glob("*")))
            time.sleep(random_.uniform(0, 0.02))
        ends.update(child.wait() for child in both)
        alone(str(out))
    return times, f"{swept} times files were swept away while they were written; exits {dict(ends)}"


FAULTS = (
    workers_killed, scheduler_killed, driver_killed, hang, poison, disk_full, two_drivers, s3_fails, collisions
)  # fmt: skip


def _is_worker(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False
