"""The command line as a program of its own, without the seconds of its imports.

Each is forked from a process that has imported everything; a kill, a signal and two at once are what they are to
programs that a user begins. For tests of the beginning itself there is `python -m tests.support.world`.
"""

import multiprocessing
import os
import resource
import runpy
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
"""Begins processes that have imported what the tests of the trainer import."""
FORKS.set_forkserver_preload(["tests.support.tiny_runs", "sea_pipeline.cli.label", "sea_pipeline.labels.run"])
_LIMIT = 600
"""Seconds that a program is waited for, many times what it takes."""


class Program:
    """A program that runs or has ended.

    Args:
        main: what it does; a function of a module.
        arguments: its `sys.argv` behind the name.
        said: what it prints goes to files of this name, `.out` and `.err`.
        file_size: bytes that no file of its can outgrow, as on a full disk.
    """

    def __init__(
        self, main: Callable[[], None], arguments: tuple[object, ...], said: Path, file_size: int | None = None
    ) -> None:
        self._said = said
        given = [str(argument) for argument in arguments]
        self._process = FORKS.Process(target=_become, args=(main, given, dict(os.environ), Path.cwd(), said, file_size))
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        """Nothing while it runs; the number of a signal that ended it, negative."""
        return self._process.exitcode

    @property
    def stdout(self) -> str:
        return self._read(".out")

    @property
    def stderr(self) -> str:
        return self._read(".err")

    def wait(self, timeout: float = _LIMIT) -> int:
        self._process.join(timeout)
        assert self.returncode is not None, f"it goes on and on: {self.stderr[-3000:]}"
        return self.returncode

    def signal(self, number: signal.Signals = signal.SIGKILL) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def _read(self, ending: str) -> str:
        path = self._said.with_suffix(ending)
        return path.read_text() if path.exists() else ""


Begin = Callable[..., Program]
"""What the fixture `program` is: arguments of the command line -> the program."""


def run_file() -> None:
    """Is a `main` that does what `python FILE …` does."""
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


def labelling(images: object, wordlist: object, out: object, *more: object) -> tuple[object, ...]:
    """The arguments of `label` for the tiny world."""
    return ("label", "--images", images, "--wordlist", wordlist, "--top-n", 3, "--out", out, "--device", "cpu", *more)


def _become(
    main: Callable[[], None],
    arguments: list[str],
    environment: Mapping[str, str],
    folder: Path,
    said: Path,
    file_size: int | None,
) -> None:
    for number, ending in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(said.with_suffix(ending), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["sea-pipeline", *arguments]
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    main()
