"""Turns other libraries' errors into one line; a mistake of ours stays a traceback.

No library lists what it raises, so an error is not looked up by its name. What counts is where its class is defined,
and whose code raised it.
"""

import os
import re
import shutil
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import sea_pipeline
from sea_pipeline.core.errors import UserError, blamed_file, one_line
from sea_pipeline.storage.publish import os_error_of, writing
from sea_pipeline.storage.retry import RIGHTS

_OURS = ("sea_pipeline", "trainer")
_OUR_FOLDERS = tuple(str(Path(sea_pipeline.__file__).parent.parent / name) + os.sep for name in _OURS)
_STDLIB = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib")})
_INSTALLED = tuple({sysconfig.get_path(kind) + os.sep for kind in ("purelib", "platlib")})
_MISTAKES = (TypeError, AssertionError, AttributeError, NameError, LookupError, ArithmeticError)
"""Errors of a wrong program, or of a library that finds something unexpected in a file."""
_COMPUTING = ("torch/", "transformers/")
"""Libraries whose RuntimeErrors and ValueErrors are about tensors, and so about our code, except the parts below."""
_APART = (
    "torch/_utils.py", "torch/distributed/", "torch/multiprocessing/", "torch/serialization.py", "torch/utils/data/",
    "torch/utils/tensorboard/", "transformers/integrations/integration_utils.py", "transformers/trainer",
    "transformers/training_args.py",
)  # fmt: skip
_SURROUNDINGS = re.compile(
    r"allocat|out of memory|CUDA (error|driver)|CUDNN|CUBLAS|NCCL|[Cc]onnection|[Tt]imed out|Broken pipe|"
    r"DataLoader worker|inline_container|os error|No space left|Too many open files"
)
"""Patterns of messages about the machine, from any library."""
_WORKER = re.compile(r"Caught \w+ in DataLoader worker process \d+\.")


Advice = str | Callable[[BaseException], str]


@contextmanager
def border(subject: str, advice: Advice, *, given: bool = False) -> Iterator[None]:
    """Turn an error of another library, or of the machine, into a `UserError`.

    Its line names the place, the error and the advice.

    Args:
        subject: what could not be done, or the file or option.
        advice: what to do, in the imperative, or a function that is called when there is an error.
        given: a library is given the user's files or settings here. Then all that its own code raises is about them,
            because a damaged file can cause any exception.

    Raises:
        UserError: see above. One from inside the block is passed on, on one line.
    """
    try:
        yield
    except UserError as error:
        if not _WORKER.search(str(error)):
            raise
        raise UserError(_said(error)) from error
    except BaseException as error:
        if not is_theirs(error, given=given):
            raise
        raise UserError(f"{subject}: {_said(error)}; {_advised(advice, error)}") from error


@contextmanager
def saving(path: Path, problem: str = "cannot be written") -> Iterator[None]:
    """Turn errors of writing a file or a folder into a `UserError`.

    Each library reports a full disk in its own way.

    Raises:
        UserError: it cannot be written.
    """
    again = "make room, or mend what it says, and run the same command again (what is finished is kept)"
    with border(f"{path}: {problem}", again), writing(path, path.parent):
        try:
            yield
        except Exception as error:
            told = os_error_of(error)  # by safetensors, in its text
            if told is not None and told is not error:
                raise OSError(told.errno, told.strerror, str(path)) from error
            # torch's error does not mention the disk
            if type(error) is RuntimeError and is_theirs(error) and not lacks_memory(error):
                there = next(folder for folder in (path, *path.parents) if folder.exists())
                free = shutil.disk_usage(there).free
                raise UserError(
                    f"{path}: {problem}: {one_line(error)}; its disk has {free:,} bytes left; {again}"
                ) from error
            raise


def lacks_memory(error: BaseException) -> bool:
    """Tell whether there was too little memory, on this machine or on a device."""
    return isinstance(error, MemoryError) or re.search("out of memory|allocate memory", str(error)) is not None


def has_lost_others(error: BaseException) -> bool:
    """Tell whether another process of the run has ended.

    This one knows of it only by the lost connection.
    """
    return re.search("onnection (closed|reset|refused)|NCCL|Socket|Broken pipe", str(error)) is not None


def is_theirs(error: BaseException, *, given: bool = False) -> bool:
    """Tell whether the user can do something about an error.

    Otherwise it is a mistake in our code. `border` describes `given`.
    """
    defined = _root(type(error).__module__)
    if not isinstance(error, Exception):
        return defined == "torch"  # its CheckpointException, but not Ctrl-C
    if isinstance(error, ImportError):
        return _root(error.name or "") not in _OURS
    if isinstance(error, OSError | MemoryError):
        return True
    if defined not in sys.stdlib_module_names and defined not in _OURS:
        return True
    file = _raised_in(error)
    library = next((file.removeprefix(folder) for folder in _INSTALLED if file.startswith(folder)), "")
    if file.startswith(_OUR_FOLDERS):
        return not isinstance(error, _MISTAKES) and _SURROUNDINGS.search(str(error)) is not None
    if isinstance(error, _MISTAKES):
        return given and library != ""
    tensors = library.startswith(_COMPUTING) and not library.startswith(_APART)
    return given or not tensors or _SURROUNDINGS.search(str(error)) is not None


def _raised_in(error: BaseException) -> str:
    """Find the file whose code raised an error, or called the standard library with what it refused."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    if _WORKER.search(str(error)):
        files += re.findall(r'File "([^"]+)"', str(error))
    standard = [file.startswith(_STDLIB) and not file.startswith(_INSTALLED) for file in files]
    return next((file for file, known in zip(reversed(files), reversed(standard), strict=True) if not known), "")


def _advised(advice: Advice, error: BaseException) -> str:
    if not isinstance(advice, str):
        return advice(error)
    if isinstance(error, ImportError):
        return "install what is missing, and run the same command again"
    if isinstance(error, PermissionError):
        return RIGHTS  # of writing `writing` says what to do
    return "free some memory, and run the same command again" if lacks_memory(error) else advice


def _root(module: str) -> str:
    return module.partition(".")[0]


def _said(error: BaseException) -> str:
    if failures := getattr(error, "failures", None):  # torch's CheckpointException has them by rank, with tracebacks
        return _said(next(iter(failures.values()))[0])
    if _WORKER.search(str(error)):  # torch wraps what a process that reads data raised in the text of a traceback
        behind = re.split(r'\n  File "[^\n]*', str(error))[-1]
        raised = re.split(r"\n(?=\S)", behind, maxsplit=1)[-1]
        return one_line(ValueError(raised.partition(": ")[2] or raised))
    if isinstance(error, OSError) and error.strerror:
        return f"{named}: {error.strerror}" if (named := blamed_file(error)) else error.strerror
    return one_line(error)
