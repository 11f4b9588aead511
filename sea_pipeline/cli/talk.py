"""Show on stderr what commands log to the logger `sea_pipeline` and those below it."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from sea_pipeline.core.progress import STORES_LOGGERS

LOG = logging.getLogger("sea_pipeline")
_CLIENTS = [logging.getLogger(name) for name in STORES_LOGGERS]

Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", envvar="SEA_PIPELINE_QUIET", show_envvar=False, help="Print only warnings and errors to stderr."
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        envvar="SEA_PIPELINE_VERBOSE",
        show_envvar=False,
        help="Print more to stderr, and the traceback of an error.",
    ),
]


def set_level(*, quiet: bool, verbose: bool) -> None:
    """Set the level of the log from --quiet and --verbose, of which --verbose wins."""
    if quiet or verbose:
        LOG.setLevel(logging.DEBUG if verbose else logging.WARNING)
    if verbose:
        for client in _CLIENTS:
            client.setLevel(logging.WARNING)


@contextmanager
def heard() -> Iterator[None]:
    """Show the log on stderr, from INFO on unless another level is set, and silence those of stores' clients."""
    screen, level, passed_on = _Screen(), LOG.level, LOG.propagate
    of_clients = [client.level for client in _CLIENTS]
    for client in _CLIENTS:
        client.setLevel(logging.CRITICAL)
    LOG.addHandler(screen)
    LOG.propagate = False  # a library that configures the root logger would print everything twice
    LOG.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOG.removeHandler(screen)
        LOG.propagate = passed_on
        LOG.setLevel(level)
        for client, before in zip(_CLIENTS, of_clients, strict=True):
            client.setLevel(before)


SOON = 0.5
"""Seconds that a command has to end after Ctrl-C before `interruptions_told` says that it ends."""


@contextmanager
def interruptions_told(said: str) -> Iterator[None]:
    """Say at once that Ctrl-C was heard if the command does not end soon.

    Python itself notices Ctrl-C only when the call of torch that it is in returns, which takes up to a step of
    training. The signal's byte reaches another thread at once.
    """
    import signal  # both are here because a shell that completes a line waits for imports above
    import socket

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    ended = threading.Event()

    def listen() -> None:
        while (heard := reader.recv(1)) and not ended.is_set():
            if heard[0] == signal.SIGINT:
                if not ended.wait(SOON):
                    LOG.info("%s", said)
                return

    listener = threading.Thread(target=listen, name="interruptions", daemon=True)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        ended.set()
        writer.send(b"\0")  # closing it does not end the listener, because processes forked meanwhile hold it open
        listener.join()
        reader.close()
        writer.close()


class _Screen(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        from sea_pipeline.cli import terminal  # here because a shell that completes a line waits for imports above

        terminal.show(record)
