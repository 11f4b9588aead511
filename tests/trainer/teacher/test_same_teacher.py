"""A run refuses targets of other pixels and of another LLM, and takes those that only look so."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.damage import flip
from tests.support.refused import refused
from tests.support.run_values import settings
from tests.support.tiny_runs import World, tiny_recipe
from trainer.data.inputs import open_teacher
from trainer.data.run_rows import open_conversations
from trainer.model.load import open_model_folder
from trainer.recipes.recipe import AspectRatio
from trainer.teacher.run import teach_images

pytestmark = pytest.mark.slow

LOSS = {"sea": {"weight": 0}, "das": {"weight": 1}}


@pytest.fixture
def model(world: World, tmp_path: Path) -> Path:
    """A copy of the world's model, to be changed."""
    return Path(shutil.copytree(world.model, tmp_path / "model"))


def teach(world: World, out: Path, **asked: Any) -> Path:
    """Of one image."""
    teach_images(settings(world, out, limit=1, **asked))
    return out


def opened(world: World, model: Path, targets: Path, ratio: AspectRatio | None = None) -> None:
    data = {"image_aspect_ratio": ratio, "bad_rows": "leave_out"}
    recipe = tiny_recipe(world, model=str(model), loss=LOSS, teacher=str(targets), data=data, labels={"path": None})
    folder = open_model_folder(model, ratio)
    assert open_teacher(recipe, folder, open_conversations(recipe.data, folder)) is not None


def pixels(change: dict[str, Any]) -> Callable[[Path], None]:
    def harm(model: Path) -> None:
        said = json.loads((model / "processor_config.json").read_text())
        said["image_processor"] |= change
        (model / "processor_config.json").write_text(json.dumps(said))

    return harm


def weights(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def harm(model: Path) -> None:
        held = load_file(model / "model.safetensors")
        changed = {name: change(value).contiguous() for name, value in held.items() if part in name}
        assert changed
        save_file(held | changed, model / "model.safetensors", {"format": "pt"})

    return harm


EMBEDDINGS = "embed_tokens"
OTHERS = {
    "another mean": (pixels({"image_mean": [0, 0, 0]}), "image processing"),
    "another spread": (pixels({"image_std": [0.229, 0.224, 0.225]}), "image processing"),
    "no crop": (pixels({"do_center_crop": False, "size": {"height": 32, "width": 32}}), "image processing"),
    "another LLM": (weights(EMBEDDINGS, lambda value: value.roll(1, 0)), "LLM"),
}
SAME = {
    "another spelling": pixels({"crop_size": 32, "unknown": 1}),
    "another projector": weights("multi_modal_projector", lambda value: value.roll(1, 0)),
    "an LLM that trained": weights(EMBEDDINGS, lambda value: value + 0.1 * value.std() * torch.randn_like(value)),
    "rounded weights": weights(EMBEDDINGS, lambda value: value.bfloat16()),
}


@pytest.mark.parametrize("what", OTHERS)
def test_targets_of_others_are_refused(world: World, targets: Path, model: Path, tmp_path: Path, what: str) -> None:
    harm, part = OTHERS[what]
    harm(model)
    with refused(f"{targets}: expected targets of the {part} that {model} has", f"teacher with --model {model}"):
        opened(world, model, targets)
    opened(world, model, teach(world, tmp_path / "own", model=model))


@pytest.mark.parametrize("what", SAME)
def test_what_only_looks_another_is_taken(world: World, targets: Path, model: Path, what: str) -> None:
    SAME[what](model)
    opened(world, model, targets)


def test_pixels_are_those_of_the_stage(world: World, tmp_path: Path) -> None:
    opened(world, world.model, teach(world, tmp_path / "targets", image_aspect_ratio="pad"), "pad")


def test_shards_of_older_versions_fit_any(
    world: World, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("trainer.teacher.run.teacher_samples", lambda folder: {})
        targets = teach(world, tmp_path / "targets")
    OTHERS["another LLM"][0](model)
    opened(world, model, targets)
    (targets / "manifest.json").unlink()
    (targets / "commits" / "00000.json").unlink()
    teach(world, targets)  # the same command finishes them
    with refused("expected targets of the LLM"):
        opened(world, model, targets)


def test_a_damaged_footer_is_no_other_teacher(world: World, tmp_path: Path) -> None:
    (shard,) = (teach(world, tmp_path / "targets") / "targets").iterdir()
    plain = shard.read_bytes()
    digit = re.search(rb'"embeddings": \[-?\d\.(\d)', plain)
    assert digit
    places = (plain.index(b'"embeddings"') + 2, plain.index(b'"teacher"') + 2, digit.start(1))
    for place in places:
        shard.write_bytes(plain)
        flip(shard, place)
        with refused(f"{shard}: damaged: expected sha256"):
            opened(world, world.model, tmp_path / "targets")
