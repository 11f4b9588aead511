"""What is wrong with values, files and folders is told before torch is loaded, which takes seconds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from sea_pipeline.cli import main
for line in json.loads(sys.argv[1]):
    sys.argv, said = ["sea-pipeline", *line.split()], io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(io.StringIO()):
            main()
    except SystemExit as end:
        print(json.dumps([end.code, said.getvalue(), "torch" in sys.modules]))
"""
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
        ("--images 10 --sample nowhere", "--images nowhere: expected a folder"),
        ("--images 10 --wordlist nowhere", "--wordlist nowhere: expected a file"),
        ("--images 10 --encoder packged", "--encoder packged: expected packaged"),
        ("--images 10 --device banana", "--device banana: expected auto"),
    ],
    "probe": [
        ("--data nowhere.json", "--data nowhere.json: expected LLaVA's .json"),
        ("--data photos.json --limit 1", "--limit: input should be greater"),
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
        ("model --data samples --lens-data x", "--lens-data x: is for --lens contextual"),
        ("model --data samples --lens contextual --lens-data x", "--lens-data x: expected a LLaVA .json"),
        ("model --data samples --lens contextual", "--lens contextual: expected captions"),
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
        ("--vision s2:packaged@7 --llm packaged --out x", "packaged@7: expected a side"),
    ],
    "report": [
        ("nowhere", "nowhere: expected labels or a run"),
        ("photos --words 0", "--words: input should be greater"),
        ("photos --limit 0", "--limit"),
    ],
}  # fmt: skip
"""By command: options, and what is said of them."""


def refusals(folder: Path, lines: list[str]) -> list[Any]:
    """The exit code, stderr, and whether torch was loaded when a line was refused, line by line."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(lines)], cwd=folder, capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_told_without_torch(tmp_path: Path, name: str) -> None:
    for folder, files in {
        "model": {"config.json": {"model_type": "llava"}},
        "clip": {"config.json": {"model_type": "clip"}},
        "rescaled": {"config.json": {"model_type": "llava"}, "alignment.json": {"inputs_scaled": True}},
        "photos": {"notes": {}},
    }.items():
        (tmp_path / folder).mkdir()
        for file, content in files.items():
            (tmp_path / folder / file).write_text(json.dumps(content))
    (tmp_path / "photos.json").write_text("[]")
    (tmp_path / "a.file").touch()
    found = refusals(tmp_path, [f"{name} {options}" for options, _ in WRONG[name]])
    for (options, expected), (code, said, loaded) in zip(WRONG[name], found, strict=True):
        assert expected in said, options
        assert said.count("\n") == 1, options
        assert code == (2 if expected.startswith("--") and ":" not in expected else 1), (options, said)
        assert not loaded, options
    assert {path.name for path in tmp_path.iterdir()} == {
        "model",
        "clip",
        "rescaled",
        "photos",
        "photos.json",
        "a.file",
    }


def test_what_is_no_mistake_loads_torch(tmp_path: Path) -> None:
    """So that the test above can fail: a device that only torch knows not to be there."""
    assert refusals(tmp_path, ["label --device cuda:99"])[0][2]
