"""Count the memory that a process may use, which in a container or a cluster's job is less than the machine's."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath


def usable_memory(root: Path = Path("/")) -> int:
    """Return the bytes of memory that this process and those of its job may use together.

    They are the machine's, or the smallest limit of the control groups (v1 and v2) that the process is in.

    Args:
        root: where `proc` and `sys` are.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8", "replace").splitlines()
    except OSError:  # another system than Linux
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        _, kinds, path = [*line.split(":", 2), "", ""][:3]
        if kinds and "memory" not in kinds.split(","):
            continue
        top, name = (mounted / "memory", "memory.limit_in_bytes") if kinds else (mounted, "memory.max")
        own = PurePosixPath(path.lstrip("/"))
        # A group above may have a lower limit, and a container sees itself as the top.
        for group in (own, *own.parents):
            with suppress(OSError, ValueError):  # "max" is no limit
                yield int((top / group / name).read_text("utf-8"))


def processes_here() -> int:
    """Count the processes of this run on this machine, as torchrun says."""
    with suppress(ValueError):
        return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return 1
