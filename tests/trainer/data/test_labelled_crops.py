"""Training on labelled crops, and the length of visual tokens after training without L_lm."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sea_pipeline import open_labels
from sea_pipeline.inputs.crops import crop_id
from sea_pipeline.labels import run as label_run
from sea_pipeline.labels.run import LabelSettings
from tests.support.tiny_runs import World, logged, tiny_recipe, tiny_trainer
from trainer.training.match_norm import match_norm
from trainer.training.run import train

CROPS = 3


@pytest.fixture
def cropped(tiny: World, tmp_path: Path) -> Path:
    """Labels of the tiny world's images and three crops of each."""
    out = tmp_path / "cropped"
    images = str(tiny.data.parent / "images")
    label_run.label_images(
        LabelSettings.of(images=images, wordlist=str(tiny.words), top_n=3, out=out, device="cpu", crops=CROPS)
    )
    return out


@pytest.mark.slow
def test_a_view_of_each_image_is_drawn_with_its_own_labels(tiny: World, cropped: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny, labels={"path": str(cropped), "crops": CROPS}, loss={"sea": {"window": 1}})
    data = tiny_trainer(recipe, tmp_path / "run").data
    store = open_labels(cropped)
    row = next(place for place in range(len(data)) if data.rows[place]["images"])
    (image_id,) = data.rows[row]["images"]
    drawn = set()
    for epoch in range(40):
        sample = data[epoch * len(data) + row]
        words = dict(zip(sample["patches"].tolist(), sample["words"].tolist(), strict=True))
        (view,) = {
            view
            for view in data.views(image_id)
            if torch.equal(sample["images"][0], data.pixels(data.image(view, "s")[0]))
        }
        own = store[view].word_ids
        assert words
        assert all(word in own[patch] for patch, word in words.items())
        drawn.add(view)
    assert drawn == {crop_id(image_id, number) for number in range(CROPS + 1)}


@pytest.mark.slow
def test_kept_features_hold_every_view(tiny: World, cropped: Path, tmp_path: Path) -> None:
    runs = {}
    for kept in (False, True):
        labels, arguments = {"path": str(cropped), "crops": CROPS}, {"save_strategy": "no"}
        recipe = tiny_recipe(tiny, labels=labels, data={"keep_features": kept}, training_arguments=arguments)
        train(recipe, tmp_path / str(kept))
        runs[kept] = [line["loss"] for line in logged(tmp_path / str(kept))]
    np.testing.assert_allclose(runs[True], runs[False], rtol=1e-4)


def test_visual_tokens_become_as_long_as_embeddings(tiny: World, tmp_path: Path) -> None:
    trainer = tiny_trainer(tiny_recipe(tiny, loss={"lm": 0}), tmp_path / "run")
    model = trainer.model
    pixels = torch.stack([trainer.data[row]["images"][0] for row in range(12) if trainer.data.rows[row]["images"]])
    with torch.no_grad():
        features = model.tower_output(pixels)
        before = model.model.multi_modal_projector(features)
        factor = match_norm(model, trainer.data, 300)
        after = model.model.multi_modal_projector(features)
    torch.testing.assert_close(after, before * factor)
    wanted = model.get_input_embeddings().weight[:300].norm(dim=-1).mean()
    torch.testing.assert_close(after.norm(dim=-1).mean(), wanted, rtol=1e-4, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("match", [True, False])
def test_the_recipe_says_whether(tiny: World, tmp_path: Path, match: bool) -> None:
    arguments = {"max_steps": 2}
    recipe = tiny_recipe(tiny, loss={"lm": 0, "sea": {"match_norm": match}}, training_arguments=arguments)
    run = train(recipe, tmp_path / "run")
    trained = load_file(tmp_path / "run" / "checkpoints" / "checkpoint-2" / "trained.safetensors")
    saved = load_file(run.model / "model.safetensors")
    name = "multi_modal_projector.linear_2.weight"
    (before,) = (value for key, value in trained.items() if key.endswith(name))
    (after,) = (value for key, value in saved.items() if key.endswith(name))
    assert torch.equal(before, after) is not match
    torch.testing.assert_close(after / after.norm(), before / before.norm())
