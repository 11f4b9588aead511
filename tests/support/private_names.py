"""Private names of other libraries that source files use, found in their syntax trees; and docs/private-names.md."""

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any, NamedTuple

OURS = ("sea_pipeline", "trainer")
_PRIVATE = re.compile(r"_[a-zA-Z]\w*")
_DOCUMENTED = ("_replace", "_asdict", "_fields", "_make", "_field_defaults", "_exit")
_BY_STRING = ("getattr", "setattr", "hasattr", "delattr")
_ROW = re.compile(r"\| `([^`]+)` \| `([^`]+)` \| ([^|]+) \|")


class Row(NamedTuple):
    """A row of the page."""

    name: str
    signature: str
    files: list[str]

    @property
    def last(self) -> str:
        """What stands in our files."""
        return re.split(r"[.:(]", self.name.removesuffix(")"))[-1]


def rows(page: str) -> tuple[list[Row], list[Row]]:
    """The two tables: private names, public ones."""
    first, second = (
        [Row(name, signature, re.findall("`([^`]+)`", files)) for name, signature, files in _ROW.findall(part)]
        for part in re.split("^## ", page, flags=re.MULTILINE)[1:]
    )
    return first, second


class Module:
    """A source file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.nodes = list(ast.walk(ast.parse(file.read_text("utf-8"))))
        self.imported: dict[str, str] = {}
        for node in self.nodes:
            if isinstance(node, ast.Import):
                for one in node.names:
                    first = one.name.partition(".")[0]
                    self.imported |= {one.asname: one.name} if one.asname else {first: first}
            elif isinstance(node, ast.ImportFrom):
                self.imported |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
        self.classes = {node.name: node for node in self.nodes if isinstance(node, ast.ClassDef)}
        self.own = set(self._defined())

    def _defined(self) -> Iterator[str]:
        for node in self.nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield node.name
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            elif isinstance(node, ast.arg):
                yield node.arg
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
                yield node.attr

    def uses(self, modules: dict[str, "Module"]) -> Iterator[str]:
        """Private names of others, some more than once."""
        for node in self.nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield from _imports(node)
            elif isinstance(node, ast.keyword) and node.arg not in self.own:
                yield from _private(node.arg or "")
            elif isinstance(node, ast.FunctionDef):
                yield from self._strings(node)
            elif isinstance(node, ast.Attribute) and not _is_self(node.value) and not _is_super(node.value):
                if node.attr not in self.own:
                    yield from _private(node.attr)
                if not isinstance(node.ctx, ast.Load) and self._is_others(node.value):
                    yield node.attr  # a patch, whatever its name
        for kind in self.classes.values():
            yield from self._of_class(kind, modules)

    def _is_others(self, node: ast.expr) -> bool:
        """Whether an expression is a module of another library, or something in one, such as a class."""
        while isinstance(node, ast.Attribute):
            node = node.value
        home = self.imported.get(node.id, "") if isinstance(node, ast.Name) else ""
        return home != "" and home.partition(".")[0] not in {*OURS, *sys.stdlib_module_names}

    def _strings(self, function: ast.FunctionDef) -> Iterator[str]:
        inside = list(ast.walk(function))
        if any(isinstance(node, ast.Name) and node.id in _BY_STRING for node in inside):
            for node in inside:
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in self.own:
                    yield from _private(node.value)

    def _of_class(self, kind: ast.ClassDef, modules: dict[str, "Module"]) -> Iterator[str]:
        """What a class overrides, and what of its bases it takes by `self` or `super()`."""
        lineage = list(self._lineage(kind, modules))
        ours = [(module, one) for module, one in lineage if isinstance(one, ast.ClassDef)]
        theirs = [one for _, one in lineage if not isinstance(one, ast.ClassDef)]
        for name in _members(kind):
            if any(hasattr(base, name) for base in theirs):
                yield from _private(name)
        above = {name for _, one in ours[1:] for name in _members(one)}
        for node in ast.walk(kind):
            if isinstance(node, ast.Attribute) and _is_super(node.value) and node.attr not in above:
                yield from _private(node.attr)
            if isinstance(node, ast.Attribute) and _is_self(node.value) and node.attr not in above | {*_members(kind)}:
                yield from _private(node.attr)

    def _lineage(self, kind: ast.ClassDef, modules: dict[str, "Module"]) -> Iterator[tuple["Module", Any]]:
        """The class and its bases: syntax trees of ours, classes of others; not the standard library's."""
        yield self, kind
        for base in kind.bases:
            spelled = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
            first, _, rest = spelled.partition(".")
            if spelled in self.classes:
                yield from self._lineage(self.classes[spelled], modules)
                continue
            path = ".".join(filter(None, (self.imported.get(first, first), rest)))
            module, _, name = path.rpartition(".")
            if module in modules and name in modules[module].classes:
                yield from modules[module]._lineage(modules[module].classes[name], modules)
            elif path.partition(".")[0] not in sys.stdlib_module_names and module:
                yield self, resolve(path)


def _imports(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    from_where = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
    for one in node.names:
        path = f"{from_where}{one.name}".split(".")
        if path[0] not in OURS:
            for name in path:
                yield from _private(name)


def _private(name: str) -> Iterator[str]:
    if _PRIVATE.fullmatch(name) and name not in _DOCUMENTED:
        yield name


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def _is_super(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


def _members(kind: ast.ClassDef) -> set[str]:
    """What a class defines: methods, attributes, and what its methods set on `self`."""
    found = {node.name for node in kind.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    for node in ast.walk(kind):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
            found.add(node.attr)
    targets = [target for node in kind.body if isinstance(node, ast.Assign) for target in node.targets]
    targets += [node.target for node in kind.body if isinstance(node, ast.AnnAssign)]
    return found | {target.id for target in targets if isinstance(target, ast.Name)}


def resolve(path: str) -> Any:
    """What a dotted name stands for; raises AttributeError or ImportError if there is nothing."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError as error:
            if error.name is None or not path.startswith(error.name):
                raise
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise AttributeError(path)


def signature(name: str) -> str:
    """As the page has it; `nothing` if the installed library has no such name."""
    path, _, text = name.partition(":")
    if text:
        return "text" if text in inspect.getsource(resolve(path)) else "nothing"
    path, _, parameter = name.removesuffix(")").partition("(")
    try:
        found = resolve(path)
    except (AttributeError, ImportError):
        return "attribute" if _is_set_inside(*path.rpartition(".")[::2]) else "nothing"
    if not callable(found):
        return "property" if isinstance(found, property) else "attribute"
    try:
        whole = inspect.signature(found)
    except ValueError:
        return "builtin"
    bare = [one.replace(annotation=inspect.Parameter.empty) for one in whole.parameters.values()]
    if parameter:
        return next(
            (str(one).removeprefix(parameter) or "required" for one in bare if one.name == parameter), "nothing"
        )
    return str(inspect.Signature(bare))


def _is_set_inside(path: str, attribute: str) -> bool:
    """Whether a class sets an attribute on `self`."""
    try:
        kinds = resolve(path).__mro__
    except (AttributeError, ImportError):
        return False
    return any(
        re.search(rf"self\.{attribute}\b[^=\n]*=|register_buffer\(['\"]{attribute}['\"]", inspect.getsource(kind))
        for kind in kinds
        if kind.__module__ != "builtins"
    )


@cache
def _distributions() -> dict[str, list[str]]:
    return {name: list(found) for name, found in packages_distributions().items()}


def library(name: str) -> str:
    """The package that a name belongs to, and its version."""
    package = _distributions()[name.partition(".")[0]][0]
    return f"{package} {version(package)}"
