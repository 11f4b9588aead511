"""A package that a test writes, in place of one that this project does not install."""

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


@contextmanager
def own_package(name: str, files: Mapping[str, str], folder: Path) -> Iterator[ModuleType]:
    """Makes a package importable, and forgets it and all its modules at the block's end.

    Args:
        name: of the package; another one of this name is hidden, also if it was imported before.
        files: text by path below the package.
        folder: that the package is written to.
    """
    for path, text in files.items():
        (folder / name / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / name / path).write_text(text)
    before = _taken_out(name)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
        _taken_out(name)
        sys.modules.update(before)


def _taken_out(name: str) -> dict[str, ModuleType]:
    found = [module for module in sys.modules if module.partition(".")[0] == name]
    return {module: sys.modules.pop(module) for module in found}
