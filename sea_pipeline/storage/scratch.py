"""Name unfinished files and folders after the process that writes them, so that a dead process's are recognised."""

import glob
import os
import shutil
import socket
import uuid
from contextlib import suppress
from pathlib import Path


def scratch_name(name: str) -> str:
    """Return a unique name for an unfinished `name`, which says which process of which `host` writes it."""
    return f"{name}.{host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"


def scratch_beside(path: Path) -> Path:
    """Return a name in the folder of `path` for what will become it, and remove what dead processes left there."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.*.*"):
        if is_abandoned(leftover):
            with suppress(OSError):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    return path.parent / scratch_name(f".{path.name}")


def is_abandoned(scratch: Path) -> bool:
    """Tell whether a process of this machine that has ended left this file."""
    named, process = ["", "", *scratch.name.split(".")][-3:-1]
    return named == host() and process.isdigit() and not _alive(int(process))


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
