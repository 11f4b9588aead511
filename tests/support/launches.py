"""Several processes of one training, begun by torchrun's own launcher without the seconds of their imports.

The launcher forks them from the process that `programs.py` forks from, in place of starting Python anew.
"""

import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tests.support import programs as programs  # what is preloaded stands there
from tests.support.paths import ROOT

_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Signals that the launcher takes for itself."""


class Ended(NamedTuple):
    """How a launch ended."""

    returncode: int
    output: str
    """What the launcher said if a process failed, and the end of what each of them printed."""

    def check(self) -> None:
        assert self.returncode == 0, self.output


def launched(main: Callable[[], None], arguments: tuple[object, ...], logs: Path, processes: int) -> Ended:
    """Runs a module's `main` by so many processes with `sys.argv` as given, as `torchrun --standalone` would."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=logs.parent.name,
        max_restarts=0,
        start_method="forkserver",
        logs_specs=DefaultLogsSpecs(str(logs), redirects=Std.ALL),
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    handlers = {number: signal.getsignal(number) for number in _HANDLED}
    problem = ""
    try:
        elastic_launch(config, _become)(main, [str(argument) for argument in arguments], environment)
    except ChildFailedError as error:
        problem = str(error)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    printed = [_end_of(file.read_text()) for file in sorted(logs.rglob("std*.log"))]
    return Ended(1 if problem else 0, "\n".join([problem, *printed]))


def _end_of(log: str) -> str:
    """Returns what says why a process died; the names of its extension modules alone would fill a page."""
    return "\n".join(line for line in log.splitlines() if not line.startswith("Extension modules:"))[-5000:]


def _become(main: Callable[[], None], arguments: list[str], environment: Mapping[str, str]) -> None:
    os.chdir(ROOT)
    os.environ.update(environment)  # what the launcher has set for this process is in no other's
    sys.argv = ["launched", *arguments]
    main()
