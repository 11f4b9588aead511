"""What the program reads and writes: streams that are closed, or that cannot write every name; names of files."""

import os
import select
import sys
from contextlib import suppress
from typing import TextIO

CLOSED = 141
"""The exit code where nobody reads the output any more: what a shell says of a program that such a pipe has ended."""


def prepare() -> None:
    """Makes the streams fit to write whatever there is, and has names of files be UTF-8.

    What cannot be written in the terminal's encoding is shown as an escape. A stream that is closed is thrown away.
    """
    _fill_closed()
    _begun.update({number: _file(number) for number in (1, 2)})
    if sys.getfilesystemencoding() != "utf-8":
        _begin_again_in_utf8()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # of a test
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def flushed(code: int) -> int:
    """The exit code, once what was printed is written: else Python would find out as it ends, and say so in its way."""
    from sea_pipeline.core.errors import one_line

    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as problem:
            closed = is_closed(problem)
            _throw_away(stream)
            if not closed and stream is sys.stdout:
                with suppress(OSError):
                    sys.stderr.write(
                        f"error: standard output cannot be written: {problem.strerror or one_line(problem)}\n"
                    )
            code = code or (CLOSED if closed else 1)
        except ValueError:  # it was closed by somebody
            pass
    return code


def is_closed(problem: OSError) -> bool:
    """Whether an error says that nobody reads our output any more, and is not of another pipe or a network."""
    if not isinstance(problem, BrokenPipeError):
        return False
    if any(_file(number) != begun for number, begun in _begun.items()):  # rich has thrown it away
        return True
    if not hasattr(select, "poll"):  # Windows
        return True
    watched = select.poll()
    for number in (1, 2):
        watched.register(number, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in watched.poll(0))


_begun: dict[int, tuple[int, int] | None] = {}
"""Which files the streams were when the program began."""


def _file(number: int) -> tuple[int, int] | None:
    with suppress(OSError):
        status = os.fstat(number)
        return status.st_dev, status.st_ino
    return None


def _throw_away(stream: TextIO) -> None:
    """What is yet to be written goes nowhere."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _fill_closed() -> None:
    """Opens what is closed of the three streams: the next file would get its number, and what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - for good
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115


def _begin_again_in_utf8() -> None:
    """Replaces this process by the same one in Python's UTF-8 mode, in which it starts others, too.

    Names of images are UTF-8 in data files, and so they are on disks, whatever a terminal writes; that keeps its own
    encoding.
    """
    given = sys.argv[1:]
    if not (sys.executable and given and sys.orig_argv[-len(given) :] == given):
        return  # it is another program that calls this one
    os.environ["PYTHONUTF8"] = "1"
    os.environ.setdefault("PYTHONIOENCODING", f"{sys.stdout.encoding}:backslashreplace")
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
