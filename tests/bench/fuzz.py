"""Damaged inputs and folders for minutes on end: `python -m tests.bench.fuzz --minutes 20 [--only KIND] [--seed N]`

Every trial is a kind and a seed; a trial that ends in a traceback, a hang, a crash or a silent loss is printed with the
command that repeats it. Trials run in a process of their own, which is started again if a trial ends it.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from tests.fuzz.kinds import KINDS, trial
from tests.fuzz.verdicts import CRASH, FAULTS, HANG, FaultError
from tests.fuzz.worlds import World, made

_FORKS = multiprocessing.get_context("forkserver")
LIMIT = 60.0
"""Seconds that a trial may take; those that train take two."""
BEGINNING = 120.0
"""Seconds more for the first one of a process, which makes the world."""
Trial = Callable[[World, str, int], str]


class Outcome(NamedTuple):
    """How a trial ended: well, or with one of `FAULTS`."""

    kind: str
    seed: int
    end: str
    text: str = ""
    seconds: float = 0.0

    @property
    def again(self) -> str:
        """The command that repeats it."""
        return f"python -m tests.bench.fuzz --only {self.kind!r} --seed {self.seed}"


class Prober:
    """A process that does trials, one after the other; one that a trial has ended is replaced.

    Args:
        root: where its worlds are made.
        one: does a trial; a function of a module.
        limit: seconds for each.
        beginning: seconds for making a world.
    """

    def __init__(self, root: Path, one: Trial = trial, limit: float = LIMIT, beginning: float = BEGINNING) -> None:
        self._root, self._one, self._limit, self._beginning = root, one, limit, beginning
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None
        self._worlds = 0

    def __call__(self, kind: str, seed: int) -> Outcome:
        """Does one trial."""
        begun = time.monotonic()
        process, pipe = self._ready()
        pipe.send((kind, seed))
        try:
            if not pipe.poll(self._limit):
                self.close()
                return Outcome(kind, seed, HANG, f"it went on for {self._limit:.0f} s", self._limit)
            end, text = pipe.recv()
        except (EOFError, ConnectionError):
            process.join()
            self.close()
            end, text = CRASH, f"the process ended with {process.exitcode}"
        return Outcome(kind, seed, end, text, time.monotonic() - begun)

    def close(self) -> None:
        """Ends the process: by itself if it waits for a trial, else at once."""
        if self._process and self._pipe:
            self._pipe.close()
            self._process.join(1)
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None

    def _ready(self) -> tuple[multiprocessing.process.BaseProcess, Connection]:
        if self._process is None or self._pipe is None:
            self._worlds += 1
            self._pipe, theirs = multiprocessing.Pipe()
            self._process = _FORKS.Process(target=_serve, args=(theirs, self._root / str(self._worlds), self._one))
            self._process.start()
            theirs.close()
            if not self._pipe.poll(self._beginning):
                raise SystemExit("the world of the trials is not made in time")
            self._pipe.recv()
        return self._process, self._pipe


def _serve(pipe: Connection, root: Path, one: Trial) -> None:
    """Does the trials that come, and sends how each of them ended."""
    null = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(null, number)  # what C libraries say of damaged images
    with made(root) as world:
        pipe.send("ready")
        while True:
            try:
                kind, seed = pipe.recv()
            except EOFError:
                return
            try:
                pipe.send((one(world, kind, seed), ""))
            except FaultError as fault:
                pipe.send((fault.kind, str(fault)))
            except (
                Exception
            ) as error:  # the fuzzer's own mistake, or one of a reader that was not asked as a command is
                pipe.send((FAULTS[0], f"outside of any command: {type(error).__name__}: {error}"))


def main() -> None:
    """Does trials until the time is over, each time of the kind that has had the least; prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="how long (default: 20)")
    parser.add_argument("--only", action="append", choices=list(KINDS), help="this kind; may be given again")
    parser.add_argument("--seed", type=int, help="this one trial of each kind that is asked for")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the seed of each kind's first trial")
    given = parser.parse_args()
    kinds = given.only or list(KINDS)
    _FORKS.set_forkserver_preload(["tests.fuzz.kinds", "tests.support.tiny_runs"])
    found: dict[str, list[Outcome]] = defaultdict(list)
    console = Console(soft_wrap=True, highlight=False, markup=False, width=None if sys.stdout.isatty() else 240)
    end = time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch, ExitStack() as stack:
        prober = Prober(Path(scratch))
        stack.callback(prober.close)
        while time.monotonic() < end:
            kind = min(kinds, key=lambda kind: sum(one.seconds for one in found[kind]))
            seed = given.first + len(found[kind]) if given.seed is None else given.seed
            found[kind].append(outcome := prober(kind, seed))
            if outcome.end in FAULTS:
                console.print(f"{outcome.again}\n    {outcome.text[:600]}")
            if given.seed is not None and all(found[kind] for kind in kinds):
                break
    console.print(table(found))
    sys.exit(any(one.end in FAULTS for outcomes in found.values() for one in outcomes))


def table(found: dict[str, list[Outcome]]) -> Table:
    """By kind, how many trials there were and how they ended."""
    shown = Table("kind", "trials", "seconds each", *FAULTS, "good ends", box=None)
    total: Counter[str] = Counter()
    for kind, outcomes in found.items():
        ends = Counter(one.end for one in outcomes)
        total.update(ends)
        good = ", ".join(f"{end} {count}" for end, count in ends.most_common() if end not in FAULTS)
        each = sum(one.seconds for one in outcomes) / max(1, len(outcomes))
        shown.add_row(kind, f"{len(outcomes):,}", f"{each:.3f}", *(str(ends[fault]) for fault in FAULTS), good)
    shown.add_row("all", f"{total.total():,}", "", *(str(total[fault]) for fault in FAULTS), "")
    return shown


if __name__ == "__main__":
    main()
