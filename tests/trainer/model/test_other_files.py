"""What a trained folder takes from the one that it began with."""

from pathlib import Path

import pytest

from tests.support.other_formats import OTHER_FORMATS
from tests.support.run_values import tensors
from tests.support.tiny_models import tiny_model
from tests.support.tiny_runs import World, tiny_recipe
from trainer.model.other_files import copy_others
from trainer.training.run import train

WEIGHTS = ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "MODEL.GGUF")
KEPT = ("config.json", "tokenizer.model", "additional_chat_templates/tool.jinja", "LICENSE", "NOTICE.md", "merges.txt")


def fill(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_what_belongs_to_the_weights_is_copied(tmp_path: Path) -> None:
    start = fill(tmp_path / "start", (*KEPT, *WEIGHTS, *OTHER_FORMATS))
    (tmp_path / "out").mkdir()
    copy_others(start, tmp_path / "out", without=["merges.txt"])
    out = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert out == {*KEPT} - {"merges.txt"}


@pytest.mark.slow
@pytest.mark.parametrize("lm", [0, 1])
def test_a_run_leaves_no_weights_of_its_start(lm: int, tiny: World, tmp_path: Path) -> None:
    """In no format: programs would take them for the trained ones."""
    start = tiny_model(tmp_path / "start")
    there = {path.name for path in start.iterdir()}
    fill(start, OTHER_FORMATS)
    run = train(
        tiny_recipe(tiny, model=str(start), loss={"lm": lm}, training_arguments={"max_steps": 1}), tmp_path / "out"
    )
    assert {path.name for path in run.model.iterdir()} == there
    assert tensors(run.model).keys() == tensors(start).keys()
