"""What an environment holds in which only some extras are installed: distributions and modules, by their metadata."""

import importlib.metadata as metadata
import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


@cache
def providers() -> dict[str, set[str]]:
    """By top-level module, the distributions that bring it."""
    found = metadata.packages_distributions()
    return {module: {canonicalize_name(name) for name in names} for module, names in found.items()}


def declared(*extras: str) -> set[str]:
    """The distributions that pyproject.toml names, always or in these extras."""
    lines = PROJECT["dependencies"] + [line for extra in extras for line in EXTRAS[extra]]
    return {canonicalize_name(Requirement(line).name) for line in lines}


def closure(*extras: str) -> set[str]:
    """The same with all that they depend on, as far as it is installed here."""
    lines = PROJECT["dependencies"] + [line for extra in extras for line in EXTRAS[extra]]
    todo = [Requirement(line) for line in lines]
    found: set[tuple[str, str]] = set()
    while todo:
        one = todo.pop()
        for extra in ("", *one.extras):
            key = (canonicalize_name(one.name), extra)
            if key not in found:
                found.add(key)
                todo += _requirements(one.name, extra)
    return {name for name, _ in found}


def _requirements(name: str, extra: str) -> list[Requirement]:
    try:
        lines = metadata.distribution(name).requires or []
    except metadata.PackageNotFoundError:
        return []
    environment = {**default_environment(), "extra": extra}
    wanted = [Requirement(line) for line in lines]
    return [one for one in wanted if one.marker is None or one.marker.evaluate(environment)]  # type: ignore[arg-type]


def lacking(*extras: str) -> list[str]:
    """The modules that are installed here, and would not be with these extras alone; without ours and the tests'."""
    there = closure(*extras) | {"sea-pipeline", "pip", "setuptools"}
    return sorted(module for module, names in providers().items() if not names & there)


def modules(names: Iterable[str]) -> set[str]:
    """The top-level modules of some distributions."""
    wanted = set(names)
    return {module for module, brought_by in providers().items() if brought_by & wanted}


HIDING = """
import sys
class Hidden:
    def __init__(self, names):
        self.names = set(names)
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden(%s))
"""
"""The beginning of a program in which modules are not installed."""
