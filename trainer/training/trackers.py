"""Give each run a run of its own at a tracker, such as wandb's, though several stages train in one process."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_TRACKERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "wandb": (lambda wandb: wandb.run, "finish"),
    "swanlab": (lambda swanlab: swanlab.get_run(), "finish"),
    "mlflow": (lambda mlflow: mlflow.active_run(), "end_run"),
}
"""By package: what is open there, and the function that ends it.

transformers opens nothing new at these while something is open, and does not end it, or logs behind its end.
"""


@contextmanager
def ending_trackers() -> Iterator[None]:
    """End at the block's end what it opened at a tracker, unless it fails: then a tracker says so by itself."""
    before = _open()
    yield
    for name in _open() - before:
        with suppress(Exception):  # a tracker that cannot be reached costs no finished run
            getattr(sys.modules[name], _TRACKERS[name][1])()


def _open() -> set[str]:
    """Name the trackers at which something is open."""
    found = set()
    for name, (opened, _) in _TRACKERS.items():
        with suppress(Exception):
            if name in sys.modules and opened(sys.modules[name]) is not None:
                found.add(name)
    return found


def tracked_name(out: Path) -> str:
    """Return the name of a run at a tracker, which is the end of its folder's path, such as `x/pretrain`."""
    return "/".join(out.absolute().parts[-2:])
