"""Define the error that a user can mend, and shorten other libraries' messages to one line."""

import os
import re

MOST = 300
"""The most characters of a library's message that are shown; some libraries write pages."""
_RAISE = "the system gives this process no more; raise its limits (ulimit -v, ulimit -u), or end other programs"


class UserError(ValueError):
    """A problem that the user can mend.

    The message is one line: the file or setting, what was expected, what was found, what to do. Commands print
    it without a traceback and exit with 1.
    """


def blamed_file(problem: OSError) -> str | None:
    """Name the file that an error is of, which is the target if something is copied, moved or linked."""
    named = problem.filename2 or problem.filename
    return os.fsdecode(named) if isinstance(named, str | bytes | os.PathLike) else None


def is_limited(problem: BaseException) -> bool:
    """Tell whether the system refused memory or a thread, or to map a library into memory."""
    refused = "allocate memory|start new thread|failed to map segment"
    return isinstance(problem, MemoryError) or re.search(refused, str(problem)) is not None


def one_line(problem: BaseException) -> str:
    """Return the message of another library's exception as one line.

    The line has at most `MOST` characters; a longer one is cut and ends in "…". If the exception has no text, the line
    is the name of its type.
    """
    text = " ".join(str(problem).split()) or type(problem).__name__
    return text if len(text) <= MOST else f"{text[: MOST - 1]}…"


def with_advice(problem: BaseException, said: str | None = None) -> str:
    """Return `said`, or `one_line` of an exception, and what to do if the system refused memory or a thread."""
    return (said or one_line(problem)) + (f"; {_RAISE}" if is_limited(problem) else "")


def with_type(problem: BaseException) -> str:
    """Return `with_advice` of an exception after the name of its type, as a traceback ends."""
    return f"{type(problem).__name__}: {with_advice(problem)}"
