"""Name unfinished files and folders after the process that writes them, so that a dead process's are recognised."""

import glob
import os
import re
import shutil
import socket
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path

_SECONDS_UNTOUCHED = 7 * 24 * 3600
"""Seconds without a change after which another machine's unfinished file counts as abandoned."""
_MOST_BYTES = 150
"""The most bytes of a name in a scratch name. A host's name adds up to 64, and most file systems take 255."""
_OF_LINUX = re.compile(r".+-\d{10}\.\d+\.[0-9a-f]{8}", re.DOTALL)
"""What `scratch_name` gives on Linux, and nothing like a name with a version or a date."""


def scratch_name(name: str) -> str:
    """Return a unique name for an unfinished `name`, which says which process of which `host` writes it.

    A long `name` is cut, so that whatever a file system takes as a name has one.
    """
    return f"{_cut(name)}.{host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"


def scratch_pattern(name: str) -> str:
    """Return the pattern of the unfinished files of `name`, also of those of versions that cut no names."""
    cut = _cut(name)
    return f"{glob.escape(cut)}{'' if cut == name else '*'}.*.*.*"


def _cut(name: str) -> str:
    while len(os.fsencode(name)) > _MOST_BYTES:
        name = name[:-1]
    return name


def scratch_beside(path: Path) -> Path:
    """Return a name in the folder of `path` for what will become it, and remove what dead processes left there."""
    for leftover in path.parent.glob(scratch_pattern(f".{path.name}")):
        if is_abandoned(leftover):
            with suppress(OSError):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    return path.parent / scratch_name(f".{path.name}")


def is_abandoned(scratch: Path) -> bool:
    """Tell whether the process that wrote this file has ended.

    Nobody can ask another machine's process, so its file must be unchanged for a week. A job that starts anew on
    another node, or in another container, would otherwise leave its file for ever.
    """
    named, process = ["", "", *scratch.name.split(".")][-3:-1]
    if named == host():
        return process.isdigit() and not _alive(int(process))
    # An empty file takes no room, and may be the one by which a run's workers see its folder, however long it runs.
    is_empty = scratch.is_file() and not scratch.stat().st_size
    return _OF_LINUX.fullmatch(scratch.name) is not None and not is_empty and _is_untouched(scratch)


def _is_untouched(scratch: Path) -> bool:
    """Tell whether nothing in a file or folder has changed for long, by the clock of its file system."""
    with suppress(OSError):
        with tempfile.TemporaryFile(dir=scratch.parent) as fresh:
            now = os.fstat(fresh.fileno()).st_ctime
        # A copy may keep the time of its content. The time of the inode's last change cannot be set.
        changed = (path.lstat().st_ctime for path in (scratch, *scratch.rglob("*")))
        return now - max(changed) > _SECONDS_UNTOUCHED
    return False


def host() -> str:
    """Return the name of this machine, and on Linux of this process's container, as one part of a file's name.

    It has no dots. Containers of one machine may share its name, and each numbers its processes anew.
    """
    name = socket.gethostname().replace(".", "-")
    with suppress(OSError):
        name += "-" + os.readlink("/proc/self/ns/pid").strip("pid:[]")  # noqa: PTH115 - a link, and no path
    return name


def _alive(process: int) -> bool:
    if os.name != "posix":  # on Windows signal 0 is Ctrl-C, for a whole group of processes
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # On Linux a zombie keeps its number, if the first process of a container never waits for its children.
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    return True
