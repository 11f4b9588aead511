"""Define the error that a user can mend, and shorten other libraries' messages to one line."""

MOST = 300
"""The most characters of a library's message that are shown; some libraries write pages."""


class UserError(ValueError):
    """A problem that the user can mend.

    The message is one line: the file or setting, what was expected, what was found, what to do. Commands print
    it without a traceback and exit with 1.
    """


def one_line(problem: BaseException) -> str:
    """Return the message of another library's exception as one line.

    The line has at most `MOST` characters; a longer one is cut and ends in "…". If the exception has no text, the line
    is the name of its type.
    """
    text = " ".join(str(problem).split()) or type(problem).__name__
    return text if len(text) <= MOST else f"{text[: MOST - 1]}…"
