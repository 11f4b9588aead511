"""Report the progress of long functions, and measure the peak memory of a process."""

import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from itertools import chain, repeat
from typing import Any

Advance = Callable[[int], None]
"""Called with how many items have passed since its last call; less than 0 if some are done again."""
STORES_LOGGERS = ("adlfs", "aiobotocore", "azure", "botocore", "gcsfs", "paramiko")
"""Names of the loggers of stores' clients, which show the traceback of each fault.

Commands silence them, because the last fault is told in our own words.
"""


class Reporter:
    """Receives the progress of a function. This one shows nothing; a subclass shows what it overrides."""

    def message(self, line: str) -> None:
        """Receive one line about the course of the work."""

    def warning(self, line: str) -> None:
        """Receive one line about a problem that does not stop the work."""

    def long_work(self, line: str) -> None:
        """Receive one line before work that takes minutes, which also those see who see no bars."""
        self.message(line)

    def progress(self, what: str, total: int, done: int = 0) -> AbstractContextManager[Advance]:
        """Open a bar for `total` items, `done` of which exist already, and yield the function that advances it."""
        return nullcontext(lambda _: None)

    @property
    def shows_warnings(self) -> bool:
        """Tell whether anybody sees warnings.

        If not, what only a warning needs is not computed.
        """
        return type(self).warning is not Reporter.warning


SILENT = Reporter()


class ProgressOnly(Reporter):
    """Shows the bars of another reporter and its lines before long work, without its other lines."""

    def __init__(self, reporter: Reporter) -> None:
        self.long_work = reporter.long_work  # type: ignore[method-assign]
        self.progress = reporter.progress  # type: ignore[method-assign]


class Pace:
    """Counts the items of some work, from any thread, and forecasts how long the rest takes.

    Args:
        total: the number of items.
        already: how many of them were done before.
    """

    def __init__(self, total: int, already: int = 0) -> None:
        self.total = total
        self.done = already
        self._already = already
        self._updates = 0
        self._begun = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, count: int) -> None:
        """Count items."""
        with self._lock:
            self.done += count
            self._updates += 1

    def seconds_left(self) -> float | None:
        """Forecast by the mean since the start, because the rate of the last seconds jumps with batches and threads.

        Returns None before the second update, because the first item may take as long as many others.
        """
        passed = self.done - self._already
        if self._updates < 2 or passed <= 0:
            return None
        return (time.monotonic() - self._begun) / passed * max(0, self.total - self.done)


def progress_line(what: str, done: int, total: int, seconds_left: float | None) -> str:
    """Say in a line how far some work is, and how long the rest takes if that is known."""
    line = f"{what}: {done:,} of {total:,} done"
    if seconds_left is None:
        return line
    return f"{line}, about " + (
        f"{seconds_left:.0f} s left" if seconds_left < 120 else f"{seconds_left / 60:.0f} min left"
    )


SLOW = 3.0
"""Seconds after which `progress_if_slow` and `say_if_slow` speak."""
_AGAIN = 60.0
"""Seconds after which `say_if_slow` speaks again."""


@contextmanager
def progress_if_slow(reporter: Reporter, what: str, total: int) -> Iterator[Advance]:
    """Show nothing of work that is done within seconds, and of other work a line with its forecast, and a bar.

    Yields the function that counts items, from any thread.
    """
    begun, done, lock = time.monotonic(), 0, threading.Lock()
    shown: Advance | None = None

    def advance(count: int) -> None:
        nonlocal done, shown
        with lock:
            done += count
            seconds = time.monotonic() - begun
            if shown is not None:
                shown(count)
            elif seconds > SLOW and 0 < done < total:
                reporter.message(progress_line(what, done, total, seconds / done * (total - done)))
                shown = stack.enter_context(reporter.progress(what, total, done))

    with ExitStack() as stack:
        yield advance


@contextmanager
def say_if_slow(reporter: Reporter, what: str) -> Iterator[None]:
    """Say after some seconds, and then every minute, that work goes on whose items cannot be counted."""
    if reporter is SILENT:
        yield
        return
    begun = time.monotonic()

    def speak() -> None:
        reporter.long_work(f"{what}: {time.monotonic() - begun:.0f} s so far")

    with speaking(speak, chain([SLOW], repeat(_AGAIN))):
        yield


@contextmanager
def speaking(speak: Callable[[], None], waits: Iterable[float]) -> Iterator[None]:
    """Say something from a thread after each of some waits, in seconds, until the block ends."""
    over = threading.Event()

    def run() -> None:
        with suppress(BrokenPipeError):  # nobody reads the lines any more
            for seconds in waits:
                if over.wait(seconds):
                    return
                speak()

    speaker = threading.Thread(target=run, name="progress", daemon=True)
    speaker.start()
    try:
        yield
    finally:
        over.set()
        speaker.join()


def is_heard() -> bool:
    """Tell whether the log shows the course of the work, as it does in commands without --quiet."""
    return logging.getLogger("sea_pipeline").isEnabledFor(logging.INFO)


def progress_bars_if_heard(*libraries: Any) -> AbstractContextManager[None]:  # noqa: ANN401 - modules
    """Let libraries draw bars of their own inside the block only if `is_heard`; see `without_progress_bars`."""
    return nullcontext() if is_heard() else without_progress_bars(*libraries)


@contextmanager
def without_progress_bars(*libraries: Any) -> Iterator[None]:  # noqa: ANN401 - modules
    """Keep libraries from drawing bars of their own inside the block.

    Args:
        libraries: `datasets` or `huggingface_hub.utils`, whose switches have the same names.
    """
    shown = [one for one in libraries if not one.are_progress_bars_disabled()]
    with warnings.catch_warnings(action="ignore"):  # an environment variable may demand the bars
        for one in shown:
            one.disable_progress_bars()
    try:
        yield
    finally:
        for one in shown:
            one.enable_progress_bars()


@contextmanager
def without_transformers_bars(logging: Any) -> Iterator[None]:  # noqa: ANN401 - a module
    """Keep transformers, and huggingface_hub with it, from drawing bars inside the block.

    Args:
        logging: `transformers.utils.logging`.
    """
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def process_peak_bytes() -> int:
    """Return the largest resident memory that this process has had, in bytes."""
    import resource  # here, because Windows lacks it and can read labels nevertheless

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
