"""What a person can mend, said in one line."""


class UserError(ValueError):
    """A problem that the user can mend.

    The message is one line: the file or setting, what was expected, what was found, what to do. Commands print
    it without a traceback and exit with 1.
    """
