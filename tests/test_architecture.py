"""Who may import whom, and what the lean parts must not bring along."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import pytest

from tests.support.paths import MODULES, ROOT

ORDERS = {
    "sea_pipeline": "core < storage < {inputs, search} < {encoders, output} < execution < labels"
    " < {report, label_cache, join} < hub < cli",
    "trainer": "{recipes, targets, sampling, towers} < losses < words < model < {data, export}"
    " < measures < attach < {evaluation, teacher, lmms_eval} < training",
}
"""Rooms, ground first: one imports only from rooms below it. Those in braces do not import from each other."""
MOVED = {"sea_pipeline": {"shards", "teacher"}, "trainer": {"recipe"}}
"""Old names of public files, which only say where they are now."""


@cache
def imports(module: str) -> list[tuple[str, bool, bool]]:
    """What a module imports of ours, whether as it is imported itself, and whether for types alone."""

    def below(node: ast.AST, at_once: bool, types: bool) -> Iterator[tuple[str, bool, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, at_once, types) for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                whole = {f"{child.module}.{alias.name}" for alias in child.names}
                yield from ((name if name in MODULES else child.module, at_once, types) for name in whole)
            lazy = isinstance(child, ast.FunctionDef)
            only_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from below(child, at_once and not lazy and not only_types, types or only_types)

    every = below(ast.parse(MODULES[module].read_text("utf-8")), True, False)
    return [found for found in every if found[0].partition(".")[0] in ORDERS]


def floors(package: str) -> dict[str, int]:
    """The floor of each room, from the ground up."""
    steps = ORDERS[package].split("<")
    return {room.strip(" {}"): floor for floor, step in enumerate(steps) for room in step.split(",")}


def room(module: str) -> str:
    """The room, or the file beside the rooms, that a module is in; empty for a package itself."""
    return [*module.split("."), ""][1]


@pytest.mark.slow
@pytest.mark.parametrize("package", ORDERS)
def test_a_room_imports_only_from_rooms_below_it(package: str) -> None:
    floor = floors(package)
    for module in MODULES:
        here = room(module)
        if module.partition(".")[0] != package or here in MOVED[package] | {"", "__main__"}:
            continue
        for name, _, _ in imports(module):
            other, there = name.partition(".")[0], room(name)
            if other != package:
                assert package == "trainer" or here == "cli", f"{module} imports the trainer"
            elif there not in ("", here):
                assert floor[there] < floor[here], f"{module} imports {name}, whose room is not below its own"


@pytest.mark.parametrize("package", ORDERS)
def test_every_room_has_its_place_and_says_its_job(package: str) -> None:
    rooms = {room(module) for module in MODULES if module.partition(".")[0] == package}
    assert rooms - MOVED[package] - {"", "__main__"} == floors(package).keys()
    for name in rooms:
        init = ROOT / package / name / "__init__.py"
        if name and init.parent.is_dir():
            said = ast.get_docstring(ast.parse(init.read_text("utf-8"))) or ""
            assert "may import" in said, f"{init}: expected its job, and what it may import"


@pytest.mark.slow
def test_no_files_import_in_a_circle() -> None:
    at_once = {
        module: {name for name, now, _ in imports(module) if now and name != module and name in MODULES}
        for module in MODULES
    }
    done: set[str] = set()

    def walk(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " imports ".join((*way[way.index(module) :], module))
        if module not in done:
            for other in at_once[module]:
                walk(other, (*way, module))
            done.add(module)

    for module in MODULES:
        walk(module, ())


def test_a_circle_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    circle = ["sea_pipeline.core.errors", "sea_pipeline.core.settings", "sea_pipeline.core.errors"]
    steps = dict(pairwise(circle))
    monkeypatch.setitem(globals(), "imports", lambda module: [(steps[module], True, False)] if module in steps else [])
    with pytest.raises(AssertionError, match="imports"):
        test_no_files_import_in_a_circle()


LEAN = [
    *("", ".output.verify", ".execution.local", ".labels.store", ".labels.statistics", ".report.figures"),
    *(".join.select", ".report.run", ".cli.tables.labels", ".cli.terminal"),
]


@pytest.mark.slow
def test_reading_labels_needs_no_torch() -> None:
    program = "import sys\n"
    for module in LEAN:
        program += f"import sea_pipeline{module}; print({{'torch', 'faiss', 'transformers'}} & set(sys.modules))\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert dict(zip(LEAN, done.stdout.splitlines(), strict=True)) == dict.fromkeys(LEAN, "set()")


@pytest.mark.slow
def test_files_and_functions_stay_short() -> None:
    for path in MODULES.values():
        text = path.read_text("utf-8")
        assert text.count("\n") <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.body[0].lineno < 45, f"{path}: {node.name}"


@pytest.mark.slow
def test_no_test_imports_from_another() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests"):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                assert not any(name.startswith("test_") for name in names[1:-1]), f"{path}: {node.module}"
