"""Names of unfinished files and folders: they say which process writes them, so that a dead one's are known."""

import glob
import os
import shutil
import socket
import uuid
from contextlib import suppress
from pathlib import Path


def scratch_name(name: str) -> str:
    """A name of its own for this process's `name`."""
    return f"{name}.{host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"


def scratch_beside(path: Path) -> Path:
    """A name beside `path` for what is to become it; what dead processes left there under such names goes."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.*.*"):
        if is_abandoned(leftover):
            with suppress(OSError):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    return path.parent / scratch_name(f".{path.name}")


def is_abandoned(scratch: Path) -> bool:
    """Whether a process of this machine that is no more left it."""
    named, process = ["", "", *scratch.name.split(".")][-3:-1]
    return named == host() and process.isdigit() and not _alive(int(process))


def host() -> str:
    """This machine's name, as one part of a file's."""
    return socket.gethostname().replace(".", "-")


def _alive(process: int) -> bool:
    if os.name != "posix":  # Windows: signal 0 is Ctrl-C there, for a whole group of processes
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with suppress(OSError):  # Linux. In a container whose first process asks after no child, the dead keep their number
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    return True
