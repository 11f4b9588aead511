"""What a person can mend, said in one line."""

MOST = 300
"""Characters of what a library says, at most: some say pages."""


class UserError(ValueError):
    """A problem that the user can mend.

    The message is one line: the file or setting, what was expected, what was found, what to do. Commands print
    it without a traceback and exit with 1.
    """


def one_line(problem: BaseException) -> str:
    """What another library's exception says, for a message of ours: its text on one line of at most `MOST` characters.

    A longer one ends in "…"; of an exception without a text it is the type's name.
    """
    text = " ".join(str(problem).split()) or type(problem).__name__
    return text if len(text) <= MOST else f"{text[: MOST - 1]}…"
