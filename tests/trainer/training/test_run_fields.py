"""What makes two runs one: a change of anything that decides the weights is another run, whatever it is called."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sea_pipeline import open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.labels.run import LabelSettings, label_images
from tests.support.tiny_models import tiny_llm, tiny_vision
from tests.support.tiny_runs import World, tiny_recipe
from trainer.model.assemble import init_model
from trainer.model.digests import start_folder, weights_digest
from trainer.recipes.recipe import Parts, Recipe
from trainer.training.run import train


def short(tiny: World, **changes: object) -> Recipe:
    return tiny_recipe(tiny, **({"training_arguments": {"max_steps": 2}} | changes))


def changed(folder: Path, name: str, copy: Path) -> Path:
    """A copy of a model folder with one tensor of other values."""
    shutil.copytree(folder, copy)
    (file,) = copy.glob("*.safetensors")
    tensors = load_file(file)
    (found,) = (key for key in tensors if name in key)
    tensors[found] = tensors[found] * 1.1
    save_file(tensors, file, metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize(
    "name", ["layers.1.mlp.up_proj", "linear_1.bias", "vision_tower.encoder.layers.0.mlp.fc1.weight"]
)
def test_another_weight_of_the_model(name: str, tiny: World, tmp_path: Path) -> None:
    other = changed(tiny.model, name, tmp_path / "other")
    assert weights_digest(other) != weights_digest(tiny.model)
    train(short(tiny), tmp_path / "out")
    with pytest.raises(UserError, match=r"holds another run: model\.weights"):
        train(short(tiny, model=str(other)), tmp_path / "out")


def test_the_same_model_elsewhere_is_the_same(tiny: World, tmp_path: Path) -> None:
    first = train(short(tiny), tmp_path / "out")
    shutil.copytree(tiny.model, tmp_path / "moved")
    assert train(short(tiny, model=str(tmp_path / "moved")), tmp_path / "out") == first


@pytest.mark.parametrize("left", ["._model.safetensors", ".DS_Store", "lost+found", "model.safetensors~"])
def test_what_systems_leave_behind_is_no_part_of_a_model_or_a_run(
    tiny: World, tmp_path: Path, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny.model, tmp_path / "a:b" / "model")
    (tmp_path / "run:1").mkdir()
    for folder in ("a:b/model", "run:1"):
        (tmp_path / folder / left).write_bytes(b"left behind")
    monkeypatch.chdir(tmp_path)
    train(short(tiny, model="a:b/model"), Path("run:1"))
    assert weights_digest(tmp_path / "a:b" / "model") == weights_digest(tiny.model)
    made = {path.name for path in (tmp_path / "run:1" / "model").iterdir()}
    assert made == {path.name for path in tiny.model.iterdir()}


def test_another_preprocessing(tiny: World, tmp_path: Path) -> None:
    train(short(tiny), tmp_path / "out")
    other = tmp_path / "other"
    shutil.copytree(tiny.model, other)
    said = json.loads((other / "processor_config.json").read_text())
    said["image_processor"]["image_mean"] = [0.0, 0.0, 0.0]
    (other / "processor_config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=r"holds another run: processing.processor_config.json"):
        train(short(tiny, model=str(other)), tmp_path / "out")


def test_without_a_name_other_images_and_another_measure_are_runs_of_their_own(
    tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    black = tmp_path / "black"
    shutil.copytree(tiny.data.parent / "images", black)
    for path in black.iterdir():
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(path)
    held_out = tmp_path / "held_out.json"
    held_out.write_text(json.dumps(json.loads(tiny.held_out.read_text())[:2]))
    changes: list[dict[str, object]] = [
        {},
        {"data": {"image_root": str(black)}},
        {"data": {"evaluate": str(tiny.held_out)}},
        {"data": {"evaluate": str(held_out)}},
    ]
    assert len({train(short(tiny, **change)).out for change in changes}) == 4
    assert train(short(tiny)).out == train(short(tiny, name="run")).out


def test_labels_of_more_images_of_the_data_are_others(tiny: World, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    every = sorted(open_labels(tiny.labels).ids)
    for name in every[:4]:
        shutil.copy2(tiny.data.parent / "images" / name, images / name)
    asked = {"images": str(images), "wordlist": str(tiny.words), "top_n": 3, "out": out, "device": "cpu"}
    label_images(LabelSettings.of(**asked))
    recipe = short(tiny, labels={"path": str(out)})
    first = train(recipe, tmp_path / "out")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(images / "of no record.png")
    label_images(LabelSettings.of(**asked, extend=True))
    assert train(recipe, tmp_path / "out") == first
    shutil.copy2(tiny.data.parent / "images" / every[4], images / every[4])
    label_images(LabelSettings.of(**asked, extend=True))
    with pytest.raises(UserError, match="holds another run: labelled"):
        train(recipe, tmp_path / "out")


def test_parts_that_changed_in_their_folder_make_another_model(tmp_path: Path) -> None:
    vision, llm = tiny_vision(tmp_path / "vision"), tiny_llm(tmp_path / "llm")
    recipe = Recipe(model=Parts(vision=str(vision), llm=str(llm)))
    first = start_folder(recipe)
    assert start_folder(recipe) == first
    init_model(str(vision), str(llm), tmp_path / "made")  # reading changes nothing
    assert start_folder(recipe) == first
    (file,) = llm.glob("*.safetensors")
    tensors = load_file(file)
    save_file({name: torch.zeros_like(value) for name, value in tensors.items()}, file, metadata={"format": "pt"})
    assert start_folder(recipe) != first
    assert start_folder(Recipe(model=Parts(vision="a/b", llm="c"))).name.startswith("b-c-")


def test_a_damaged_weight_file_is_one_line(tiny: World, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny.model, other)
    (file,) = other.glob("*.safetensors")
    file.write_bytes(b"\xff" * 1000)
    with pytest.raises(UserError, match="is damaged"):
        weights_digest(other)
