"""Keep old names of public modules, functions and arguments working for one more version."""

import functools
import importlib
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, ParamSpec, TypeVar

from sea_pipeline.core.progress import Reporter

_P = ParamSpec("_P")
_R = TypeVar("_R")


def renamed(old: str, new: str, names: Collection[str] | Mapping[str, str] = ()) -> Callable[[str], object]:
    """Make the `__getattr__` of a module whose names have moved.

    Args:
        old: the module.
        new: the module that has the names now.
        names: the names that moved; empty for all of them. A mapping gives each its new name.
    """

    def find(name: str) -> object:
        if name.startswith("__") or (names and name not in names):
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        now = names[name] if isinstance(names, Mapping) else name
        found: object = getattr(importlib.import_module(new), now)
        warnings.warn(
            f"{old}.{name} is {new}.{now} now; the old name goes with version 0.2", DeprecationWarning, stacklevel=2
        )
        return found

    return find


class Callbacks(Reporter):
    """Calls the callbacks that functions took before there were reporters; `begun` is told of a folder, see `label`."""

    def __init__(self, **callbacks: Any) -> None:  # noqa: ANN401 - each of its own kind
        given = {name: callback for name, callback in callbacks.items() if callback is not None}
        called = dict.fromkeys(("say", "warn", "begun"), lambda _: None) | given
        self.message, self.warning, self.begun = called["say"], called["warn"], called["begun"]  # type: ignore[method-assign]
        self.progress = called.get("progress", super().progress)  # type: ignore[method-assign]
        self._warns = "warn" in given

    @property
    def shows_warnings(self) -> bool:
        """Tell whether `warn` was given."""
        return self._warns


def taking_callbacks(
    *names: str, made_by: Callable[..., Reporter] = Callbacks
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Let a public function also accept callbacks by their old names.

    Args:
        names: the old names.
        made_by: makes the function's `reporter` from the callbacks that were given.
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(function)
        def call(*args: _P.args, **given: _P.kwargs) -> _R:
            named: dict[str, Any] = given
            if callbacks := {name: named.pop(name) for name in names if name in named}:
                old = " and ".join(f"{name}=" for name in callbacks)
                warnings.warn(
                    f"{function.__name__}: reporter= takes the place of {old}; the old name goes with version 0.2",
                    DeprecationWarning,
                    stacklevel=2,
                )
                named["reporter"] = made_by(**callbacks)
            return function(*args, **given)

        return call

    return decorate
