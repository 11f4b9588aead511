"""Make `import trainer` load the package that comes with this one.

Other packages have the same name: a user's own trainer.py, and other projects on the package index. Python takes the
first that it finds on its path, and `python -m` puts the working folder first.
"""

import sys
from contextlib import suppress
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

from sea_pipeline.core.errors import UserError

_NAME = "trainer"
_HERE = Path(__file__).resolve().parents[2]
"""The folder that holds both packages."""
_MARK = "sea-pipeline"
"""Text in the first file of our package that no other package of this name has."""


def working_folder() -> Path:
    """Return the working folder.

    Raises:
        UserError: it was deleted. Programs fail in their own ways then: MKL does not find torch's libraries.
    """
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise UserError("the working folder no longer exists; change into one that does") from None


def leave_working_folder() -> None:
    """Remove the working folder that `python -m` put first on Python's path.

    It stays if this package lies in it. One that was deleted is not on the path.
    """
    with suppress(UserError):
        if not sys.flags.safe_path and working_folder() == Path(sys.path[0]).resolve() != _HERE:
            del sys.path[0]


def take_own_trainer() -> None:
    """Make `import trainer` load our package, in this process and in those that it starts.

    If the working folder holds a file or a package of that name, the folder is removed from Python's path. The command
    `sea-pipeline` does not have it on the path either.

    Raises:
        UserError: another `trainer` is loaded already, comes first on the path, or has overwritten ours; names which.
            Or see `working_folder`.
    """
    first = _HERE / _NAME / "__init__.py"
    if not first.is_file() or _MARK not in first.read_text("utf-8", "replace"):
        raise UserError(_overwritten(first.parent))
    if _NAME in sys.modules:
        if (folder := _folder_of(sys.modules[_NAME].__spec__)) != _HERE:
            raise UserError(f"{_named(folder)}: was loaded in place of sea-pipeline's package `trainer`; {_ADVICE}")
        return
    while (folder := _folder_of(find_spec(_NAME))) not in (None, _HERE):
        here = working_folder()
        others = [entry for entry in sys.path if Path(entry).resolve() != folder]
        if folder != here or len(others) == len(sys.path):
            raise UserError(f"{_named(folder)}: hides sea-pipeline's package `trainer`, in {_HERE}; {_ADVICE}")
        sys.path[:] = others


_ADVICE = "rename it, take its folder off PYTHONPATH, or install sea-pipeline in an environment of its own"


def _folder_of(spec: ModuleSpec | None) -> Path | None:
    """Return the entry of Python's path that holds a module.

    None if there is no module, or if it is a folder without code.
    """
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).resolve()
    return file.parent.parent if file.stem == "__init__" else file.parent


def _named(folder: Path | None) -> Path:
    """Return the folder or the file of the other `trainer`, for a message."""
    package = (folder or Path()) / _NAME
    return package if package.is_dir() else package.with_suffix(".py")


def _overwritten(folder: Path) -> str:
    """Describe that our `trainer` was overwritten or removed, and name the packages that have the same name."""
    from importlib.metadata import packages_distributions  # here, because it is slow and seldom needed

    others = sorted(set(packages_distributions().get(_NAME, [])) - {"sea-pipeline"})
    by = f" by {', '.join(others)}" if others else ""
    return (
        f"{folder}: is not as sea-pipeline installed it, but overwritten or removed{by}; install sea-pipeline in an "
        "environment of its own"
    )
