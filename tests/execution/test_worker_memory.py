"""What a worker does with the memory that it frees: what a process without dask does."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from sea_pipeline.execution import worker
from tests.support.worker_world import PlantedJob, planted_ledger

PAGES = """
import resource, torch
from sea_pipeline.execution.worker import give_freed_memory_back, keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.empty(2_000_000).fill_(1.0)  # 8 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
keep_freed_memory()
faults()
again = faults()
rows = [torch.empty(2_000_000).fill_(1.0) for _ in range(8)]
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
del rows
held = resident()
give_freed_memory_back()
print(given_back, again, held - resident())
"""
HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's")
@pytest.mark.skipif(HUGE.is_file() and "[always]" in HUGE.read_text(), reason="pages of 2 MiB are too few to count")
def test_a_worker_keeps_the_memory_that_dask_has_it_give_back() -> None:
    environment = os.environ | {"MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", PAGES], env=environment, capture_output=True, text=True, check=True)
    given_back, kept, returned = map(int, done.stdout.split())
    assert given_back > 1000  # pages of up to 4 KiB that the system had to find again
    assert kept < given_back / 10
    assert returned > 8_000_000


def test_every_worker_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = planted_ledger(tmp_path / "out")
    plugin = worker.StagePlugin(PlantedJob(tmp_path / "none"), ledger, None, "kept")
    kept: list[bool] = []
    monkeypatch.setattr(worker, "keep_freed_memory", lambda: kept.append(True))
    plugin.setup(None)  # type: ignore[arg-type]  # dask's worker, which is not looked at
    assert plugin.ready()["stage"] == {"device": "cpu", "backend": "planted"}
    assert kept == [True]
    monkeypatch.setattr(worker, "give_freed_memory_back", lambda: kept.append(False))
    assert plugin.process(0, 1)["rows"] == 2
    assert kept == [True, False]
