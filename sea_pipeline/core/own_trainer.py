"""The package `trainer` that comes with this one, and not another one of that name.

Others have the name, too: a user's own trainer.py, other projects on the package index. Python takes the first that it
finds on its path, and `python -m` puts the working folder in front of everything.
"""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

from sea_pipeline.core.errors import UserError

_NAME = "trainer"
_HERE = Path(__file__).resolve().parents[2]
"""The folder that holds both packages."""
_MARK = "sea-pipeline"
"""What our package's first file says, and no other's."""


def leave_working_folder() -> None:
    """Takes off Python's path what `python -m` has put in front: the working folder, if we do not come from it."""
    if not sys.flags.safe_path and Path(sys.path[0]).resolve() == Path.cwd() != _HERE:
        del sys.path[0]


def take_own_trainer() -> None:
    """Has `import trainer` mean ours, in this process and in those that it starts.

    If the working folder holds a file or a package of that name, the folder leaves Python's path, on which the command
    `sea-pipeline` does not have it either.

    Raises:
        UserError: another `trainer` is loaded already, comes first on the path, or has overwritten ours; says which.
    """
    first = _HERE / _NAME / "__init__.py"
    if not first.is_file() or _MARK not in first.read_text("utf-8", "replace"):
        raise UserError(_overwritten(first.parent))
    if _NAME in sys.modules:
        if (folder := _folder_of(sys.modules[_NAME].__spec__)) != _HERE:
            raise UserError(f"{_named(folder)}: was loaded in place of sea-pipeline's package `trainer`; {_ADVICE}")
        return
    while (folder := _folder_of(find_spec(_NAME))) not in (None, _HERE):
        others = [entry for entry in sys.path if Path(entry).resolve() != folder]
        if folder != Path.cwd() or len(others) == len(sys.path):
            raise UserError(f"{_named(folder)}: hides sea-pipeline's package `trainer`, in {_HERE}; {_ADVICE}")
        sys.path[:] = others


_ADVICE = "rename it, take its folder off PYTHONPATH, or install sea-pipeline in an environment of its own"


def _folder_of(spec: ModuleSpec | None) -> Path | None:
    """The entry of the path that a module is found at; None if there is no module, or a folder without code."""
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).resolve()
    return file.parent.parent if file.stem == "__init__" else file.parent


def _named(folder: Path | None) -> Path:
    """What to call the other one: its folder or its file."""
    package = (folder or Path()) / _NAME
    return package if package.is_dir() else package.with_suffix(".py")


def _overwritten(folder: Path) -> str:
    from importlib.metadata import packages_distributions  # here: it takes a while, and is seldom needed

    others = sorted(set(packages_distributions().get(_NAME, [])) - {"sea-pipeline"})
    by = f" by {', '.join(others)}" if others else ""
    return (
        f"{folder}: is not as sea-pipeline installed it, but overwritten or removed{by}; install sea-pipeline in an "
        "environment of its own"
    )
