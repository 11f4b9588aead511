"""Old names of public modules and functions, which work for one more version."""

import importlib
import warnings
from collections.abc import Callable, Collection


def renamed(old: str, new: str, names: Collection[str] = ()) -> Callable[[str], object]:
    """Makes the `__getattr__` of a module whose names are elsewhere now.

    Args:
        old: the module.
        new: where the names are.
        names: which ones; none of them for all.
    """

    def find(name: str) -> object:
        if name.startswith("__") or (names and name not in names):
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        found: object = getattr(importlib.import_module(new), name)
        warnings.warn(
            f"{old}.{name} is {new}.{name} now; the old name goes with version 0.2", DeprecationWarning, stacklevel=2
        )
        return found

    return find
