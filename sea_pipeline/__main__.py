"""`python -m sea_pipeline` and the command `sea-pipeline` begin here, so that Ctrl-C is heeded during the imports."""

from sea_pipeline.core.own_trainer import leave_working_folder

if __name__ == "__main__":
    leave_working_folder()  # before anything else is imported: a user's datasets.py would be, too

import atexit
import os
import signal
from contextlib import suppress


def main() -> None:
    """Run the command line, see `cli.main`, and end in one line if Ctrl-C comes while it is imported.

    A process that ignores Ctrl-C, such as a job in the background, goes on to do so.
    """
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeded:
        signal.signal(signal.SIGINT, _stop)
    from sea_pipeline import cli

    if heeded:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Runs after every other exit function. As it ends, Python resets our handler to the system's, with which Ctrl-C
        # would kill; it leaves SIG_IGN.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    try:
        cli.main()
    finally:
        if heeded:  # what is imported has work at its exit, which Ctrl-C must not break into with a traceback
            signal.signal(signal.SIGINT, _end)


def _end(*_: object) -> None:
    os._exit(130)


def _stop(*_: object) -> None:
    with suppress(OSError):
        os.write(2, b"error: stopped; nothing is left half done\n")
    os._exit(130)  # an exception could be caught by whatever is imported


if __name__ == "__main__":
    main()
