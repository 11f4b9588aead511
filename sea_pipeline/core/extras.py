"""Find packages that come with an extra, or name the command that installs them."""

import importlib
import json
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from types import ModuleType
from urllib.parse import urlsplit
from urllib.request import url2pathname

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


@cache  # metadata is a file, which takes milliseconds to parse
def installed_version(package: str) -> str | None:
    """Return the version of an installed package, or None if it is not installed, as code run from a folder is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def install_line(extras: str) -> str:
    """Return the command that installs extras, from where this package came: a clone, a file, or a package index.

    Args:
        extras: names of extras, separated by commas.
    """
    clone = Path(__file__).parents[2]
    if (clone / "pyproject.toml").is_file():  # the code runs from there, so it must stay installed from there
        return f"pip install -e {quote(f'{_path(clone)}[{extras}]')}"
    return f"pip install {quote(_origin(extras))}"


def _origin(extras: str) -> str:
    """Return what pip is to install, as it noted when it installed the package (PEP 610)."""
    name = f"sea-pipeline[{extras}]"
    try:
        noted = json.loads(distribution("sea-pipeline").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return name
    url = noted.get("url", "")
    if url.startswith("file:"):
        path = Path(url2pathname(urlsplit(url).path))
        return f"{_path(path)}[{extras}]" if path.exists() else f".[{extras}]"
    vcs = noted.get("vcs_info", {})
    return f"{name} @ {vcs['vcs']}+{url}" if vcs else name


def _path(path: Path) -> str:
    return "." if path == Path.cwd() else str(path)
