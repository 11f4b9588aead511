"""The memory that a process may use: its control groups' limits, and what other processes of the run take."""

import os
from pathlib import Path

import pytest

from sea_pipeline.core.memory import processes_here, usable_memory

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
UNLIMITED = 9223372036854771712
"""What version 1 says if there is no limit."""


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        (None, {}, MACHINE),
        ("0::/\n", {}, MACHINE),
        ("0::/\n", {"memory.max": "1000000"}, 1_000_000),
        ("0::/\n", {"memory.max": "max"}, MACHINE),
        ("0::/a.slice/job_7/step_0\n", {"a.slice/job_7/memory.max": "2000000", "memory.max": "max"}, 2_000_000),
        ("0::/a/b\n", {"a/b/memory.max": "3000000", "a/memory.max": "2000000"}, 2_000_000),
        ("0::/../other\n", {"memory.max": "1000000"}, 1_000_000),
        ("9:memory:/slurm/job_7\n0::/\n", {"memory/slurm/job_7/memory.limit_in_bytes": "4000000"}, 4_000_000),
        ("9:cpu,memory:/docker/ab\n", {"memory/memory.limit_in_bytes": "5000000"}, 5_000_000),
        ("9:memory:/\n", {"memory/memory.limit_in_bytes": str(UNLIMITED)}, MACHINE),
        ("9:cpu:/x\n", {"memory/x/memory.limit_in_bytes": "1"}, MACHINE),
        ("broken\n", {}, MACHINE),
    ],
)
def test_the_smallest_limit_counts(groups: str | None, files: dict[str, str], expected: int, tmp_path: Path) -> None:
    if groups is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    assert usable_memory(tmp_path) == expected


def test_here_it_is_at_most_the_machines() -> None:
    assert 0 < usable_memory() <= MACHINE


@pytest.mark.parametrize(("said", "expected"), [(None, 1), ("8", 8), ("0", 1), ("x", 1)])
def test_processes_of_this_machine_are_counted(
    said: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if said is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", said)
    assert processes_here() == expected
