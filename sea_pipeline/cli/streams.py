"""Prepare the standard streams, which may be closed or unable to write every name, and the encoding of file names."""

import os
import select
import sys
from contextlib import suppress
from typing import TextIO

CLOSED = 141
"""The exit code if nobody reads the output any more, as a shell reports a program that SIGPIPE has ended."""


def prepare() -> None:
    """Prepare the streams to write any text, and make Python read file names as UTF-8.

    Characters that the terminal's encoding lacks are written as escapes. Output to a closed stream is thrown away.
    """
    _fill_closed()
    _begun.update({number: _file(number) for number in (1, 2)})
    if sys.getfilesystemencoding() != "utf-8":
        _begin_again_in_utf8()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # a test's stream
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def flushed(code: int) -> int:
    """Flush the output, and return the exit code.

    Otherwise Python would notice a write error when it ends, and report it in its own way.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as problem:
            code = code or given_up(stream, problem)
        except ValueError:  # somebody has closed the stream
            pass
    return code


def given_up(stream: TextIO, problem: OSError) -> int:
    """Report that a stream cannot be written, throw away what it holds, and return the exit code."""
    from sea_pipeline.core.errors import one_line

    closed = is_closed(problem)
    _throw_away(stream)
    if not closed and stream is sys.stdout:
        with suppress(OSError):
            sys.stderr.write(f"error: standard output cannot be written: {problem.strerror or one_line(problem)}\n")
    return CLOSED if closed else 1


def is_of_printing(problem: OSError) -> bool:
    """Tell whether printing failed: the error names no file, and the last frame, which called the write, prints."""
    trace = problem.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    writer = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    return problem.filename is None and writer.startswith(_PRINTERS)


_PRINTERS = ("rich.", "typer.", "click.", "sea_pipeline.cli.")


def is_closed(problem: OSError) -> bool:
    """Tell whether an error means that nobody reads our output any more.

    The error of another pipe or of a network means something else.
    """
    if not isinstance(problem, BrokenPipeError):
        return False
    if any(_file(number) != begun for number, begun in _begun.items()):  # rich has replaced a broken one
        return True
    if not hasattr(select, "poll"):  # Windows
        return True
    watched = select.poll()
    for number in (1, 2):
        watched.register(number, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in watched.poll(0))


_begun: dict[int, tuple[int, int] | None] = {}
"""The device and inode of each stream when the program began."""


def _file(number: int) -> tuple[int, int] | None:
    with suppress(OSError):
        status = os.fstat(number)
        return status.st_dev, status.st_ino
    return None


def _throw_away(stream: TextIO) -> None:
    """Redirect a stream to the null device, so that what is not written yet is lost."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _fill_closed() -> None:
    """Open the null device for each closed standard stream.

    Otherwise the next file would get its number, and receive what is printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - for good
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115


def _begin_again_in_utf8() -> None:
    """Replace this process by the same one in Python's UTF-8 mode.

    Processes that it starts use the mode, too. Names of images are UTF-8 in data files, and so on disks, whatever
    encoding the terminal uses. The terminal keeps its own encoding.
    """
    given = sys.argv[1:]
    if not (sys.executable and given and sys.orig_argv[-len(given) :] == given):
        return  # another program calls this one
    os.environ["PYTHONUTF8"] = "1"
    os.environ.setdefault("PYTHONIOENCODING", f"{sys.stdout.encoding}:backslashreplace")
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
