"""Find packages that come with an extra, or name the command that installs them."""

import importlib
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from sea_pipeline.core.errors import UserError


def require(module: str, extra: str) -> ModuleType:
    """Import a module that comes with an extra.

    Raises:
        UserError: it is not installed, or does not load.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # not only ImportError: a GPU wheel without its CUDA libraries raises RuntimeError
        raise UserError(
            f"the Python module {module!r} cannot be imported ({type(error).__name__}: {error}); install it with: "
            + install_line(extra)
        ) from error


def package_folder(package: str, extra: str) -> Path:
    """Find the folder of an installed package without importing it.

    Raises:
        UserError: it is not installed.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the Python package {package!r} is not installed; install it with: {install_line(extra)}")
    return Path(spec.submodule_search_locations[0])


def install_line(extras: str) -> str:
    """Return the command that installs extras.

    Args:
        extras: names of extras, separated by commas.
    """
    return f"pip install 'sea-pipeline[{extras}]'"
