"""A stage that pads: words on the tokens that show them and none on bars; the folder that it leaves pads by itself."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from sea_pipeline import open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.encoders.base import Preprocess
from sea_pipeline.labels import run as label_run
from tests.support.analysis_models import record, write
from tests.support.tiny_runs import (
    FinishedRuns,
    SquareEncoder,
    World,
    colours,
    label_settings,
    logged,
    tiny_recipe,
    tiny_trainer,
)
from tests.support.world import COLOURS, draw
from trainer.evaluation.run import EvaluateSettings, evaluate_model
from trainer.export.run import ExportSettings, export_model
from trainer.model.aspect_ratio import pads
from trainer.recipes.recipe import Recipe
from trainer.targets.store import open_targets
from trainer.teacher.run import TeachSettings, teach_images
from trainer.training import report_views
from trainer.training.run import train, train_stages

CELLS = (2, 4)
"""Rows and columns of a wide photo's colours, each of 24 x 24 pixels: padded, each is one of 4 x 4 tokens."""
CENTRE = {5, 6, 9, 10}
WHOLE = {"wide": set(range(4, 12)), "tall": {1, 2, 5, 6, 9, 10, 13, 14}}
"""Tokens of a padded photo that show it; the others show bars."""
SHOWN = {"shortest": {"wide": CENTRE, "tall": CENTRE}, "squash": WHOLE, "longest": WHOLE}
"""Of those, the ones that an encoder saw, by its preprocessing."""
PAD = {"image_aspect_ratio": "pad"}
BASIC = {"sea": {"weight": 0}, "das": {"weight": 1}, "sds": {"weight": 0.01}}


@pytest.fixture(scope="module")
def _photos(_made: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    root, random = tmp_path_factory.mktemp("padded"), np.random.default_rng(0)
    records = []
    for number in range(8):
        kind, (rows, columns) = (("wide", CELLS), ("tall", CELLS[::-1]))[number % 2]
        cells = [[str(random.choice(list(COLOURS))) for _ in range(columns)] for _ in range(rows)]
        name = f"{kind}{number}.png"
        draw(root / "photos" / name, cells, size=(24 * columns, 24 * rows))
        records.append(record(name, [name], "What do you see?", f"a {cells[0][0]} and a {cells[1][1]} patch"))
    world = _made._replace(data=root / "data.json", held_out=root / "held.json", labels=root / "labels")
    write(world.data, records[:6])
    write(world.held_out, records[6:])
    with colours():
        label_run.label_images(label_settings(root / "photos", _made.words, world.labels, top_n=1))
    return world


@pytest.fixture
def photos(tiny: World, _photos: World) -> World:
    """Eight photos, wide and tall, with captions; the last two are held out. Labels are of the centre squares."""
    return _photos


def images_of(photos: World) -> Path:
    return photos.data.parent / "photos"


def padded(photos: World, **changes: Any) -> Recipe:
    recipe: dict[str, Any] = {"labels": {"transfer": True}, "loss": {"sea": {"weight": 1.0, "window": 1}}}
    data = {"image_root": str(images_of(photos))} | PAD | changes.pop("data", {})
    return tiny_recipe(photos, **({"data": data, "training_arguments": {"max_steps": 2}} | recipe | changes))


def colours_of(data: Any, pixels: torch.Tensor) -> Iterator[str | None]:
    """The colour in the middle of each token; None for a bar."""
    processor = data.processor.image_processor
    mean, std = (np.array(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    bars = np.floor(255 * mean[:, 0, 0])
    for row in range(4):
        for column in range(4):
            patch = pixels.numpy()[:, 8 * row + 3 : 8 * row + 5, 8 * column + 3 : 8 * column + 5]
            colour = (255 * (patch * std + mean)).mean((1, 2))
            distances = {name: np.abs(colour - np.array(each)).max() for name, each in COLOURS.items()}
            nearest = min(distances, key=lambda name: distances[name])
            if np.abs(colour - bars).max() < 2:
                yield None
            else:
                assert distances[nearest] < 30
                yield nearest


@pytest.mark.slow
@pytest.mark.parametrize("mode", SHOWN)
def test_words_are_on_the_tokens_that_show_them(
    mode: Any, photos: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder that pads names its bars, too; those words go."""

    class Encoder(SquareEncoder):
        preprocess = Preprocess(size=48, mode=mode)

    monkeypatch.setattr(label_run, "load_encoder", lambda *given: Encoder())
    store = tmp_path / mode
    label_run.label_images(label_settings(images_of(photos), photos.words, store, top_n=1))
    words = open_labels(store).words
    assert (open_labels(store)["wide0.png"].word_ids >= 0).all(), "every patch of the label has a word"
    data = tiny_trainer(padded(photos, labels={"path": str(store), "transfer": True}), tmp_path / "run").data
    for row in range(len(data)):
        kind = data.rows[row]["images"][0][:4]
        drawn: dict[int, str] = {}
        for epoch in range(12):
            sample = data[epoch * len(data) + row]
            drawn |= {int(patch): words[word] for patch, word in zip(sample["patches"], sample["words"], strict=True)}
        assert sample["images"] is not None
        seen = dict(enumerate(colours_of(data, sample["images"][0])))
        assert {token for token, colour in seen.items() if colour is not None} == WHOLE[kind]
        assert drawn.keys() == SHOWN[mode][kind]
        assert drawn == {token: seen[token] for token in drawn}


@pytest.mark.slow
def test_the_folder_that_a_stage_leaves_pads_by_itself(photos: World, tmp_path: Path) -> None:
    recipe = padded(photos, data={"evaluate": str(photos.held_out)})
    run = train(recipe, tmp_path / "run")
    for name in {path.name for path in photos.model.iterdir()} - {"model.safetensors", "processor_config.json"}:
        assert (run.model / name).read_bytes() == (photos.model / name).read_bytes(), name
    data = tiny_trainer(recipe, tmp_path / "again").data
    out = export_model(ExportSettings.of(source=run.out, out=tmp_path / "export")).out
    for folder in (run.model, out):
        stock = AutoProcessor.from_pretrained(folder).image_processor
        assert type(stock).__name__ == "LlavaImageProcessor"
        for image in (Image.open(path).convert("RGB") for path in (images_of(photos)).iterdir()):
            assert torch.equal(stock(image, return_tensors="pt")["pixel_values"][0], data.pixels(image))
    settings: dict[str, Any] = {"data": str(photos.held_out), "image_root": images_of(photos), "device": "cpu"}
    settings |= {"labels": photos.labels, "transfer": True}
    end = run.summary["end"]
    assert end["label_hit@10"] > 0
    assert evaluate_model(EvaluateSettings.of(model=run.model, **settings)) == pytest.approx(end, rel=1e-5)
    cropped = evaluate_model(EvaluateSettings.of(model=photos.model, **settings))
    assert run.summary["start"]["lm_loss"] != pytest.approx(cropped["lm_loss"], rel=1e-6), "the start folder crops"
    found = report_views.run_views(run.out, report_views.ViewSettings(images=2, new_tokens=1, device="cpu"))
    assert found["images"][0]["box"] == [0, -0.5, 1, 1.5]
    assert [[bool(words) for words in image["labels"]] for image in found["images"]] == [
        [token in CENTRE for token in range(16)]
    ] * 2


@pytest.mark.slow
@pytest.mark.parametrize("said", [None, "square", "pad"])
def test_a_later_stage_sees_what_the_folder_does_unless_it_says_otherwise(
    said: str | None, photos: World, tmp_path: Path
) -> None:
    later = padded(photos, data={"image_aspect_ratio": said})
    runs = train_stages({"first": padded(photos, loss={"lm": 0, "sea": {"weight": 1}}), "later": later}, tmp_path)
    processors = [AutoProcessor.from_pretrained(run.model).image_processor for run in runs.values()]
    assert [pads(one) for one in processors] == [True, said != "square"]
    image = Image.open(images_of(photos) / "wide0.png").convert("RGB")
    own = AutoProcessor.from_pretrained(photos.model).image_processor
    first, last, before = (one(image, return_tensors="pt")["pixel_values"] for one in (*processors, own))
    assert torch.equal(last, before if said == "square" else first)


def test_another_aspect_ratio_is_another_run_and_none_is_as_it_was(photos: World, finished: FinishedRuns) -> None:
    run = finished(padded(photos, data={"image_aspect_ratio": None}))
    assert "image_aspect_ratio" not in json.loads((run / "run.json").read_text())["fields"]["recipe"]["data"]
    with pytest.raises(UserError, match=r"holds another run: data\.image_aspect_ratio"):
        train(padded(photos), run)


def test_kept_features_are_of_padded_images(photos: World, finished: FinishedRuns) -> None:
    losses = [
        [line["loss"] for line in logged(finished(padded(photos, data={"keep_features": kept})))]
        for kept in (False, True)
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


def taught(photos: World, out: Path, **settings: Any) -> Path:
    given = {"model": photos.model, "data": str(photos.data), "image_root": images_of(photos)}
    teach_images(TeachSettings.of(**given, out=out, codec="float16", device="cpu", **settings))
    return out


@pytest.mark.slow
def test_a_teacher_sees_what_the_stage_sees(photos: World, deep: Path, tmp_path: Path) -> None:
    photos = photos._replace(model=deep)
    square, pad = (taught(photos, tmp_path / ratio, image_aspect_ratio=ratio) for ratio in ("square", "pad"))
    own = taught(photos, tmp_path / "own")
    first = open_targets(pad).ids[0]
    refined = [open_targets(each)[first].refined for each in (square, own, pad)]
    assert np.array_equal(refined[0], refined[1])
    assert not np.allclose(refined[0], refined[2], atol=1e-4)
    labels = {"path": None, "transfer": False}
    losses = {}
    for name, teacher in (("online", None), ("cached", str(pad))):
        train(padded(photos, labels=labels, loss=BASIC, teacher=teacher), tmp_path / name)
        losses[name] = logged(tmp_path / name)[0]["loss_das"]
    assert losses["cached"] == pytest.approx(losses["online"], rel=1e-3)
    for ratio, targets, other in (("pad", own, "square"), (None, pad, "pad")):
        recipe = padded(photos, labels=labels, loss=BASIC, teacher=str(targets), data={"image_aspect_ratio": ratio})
        shown = ratio or "square"
        wanted = rf"expected targets of images .*: {shown}; found {other}; .* --image-aspect-ratio {shown}, or set"
        with pytest.raises(UserError, match=wanted):
            train(recipe, tmp_path / "refused")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"transfer": False}}, r"data\.image_aspect_ratio: pad puts bars .* set labels\.transfer: true"),
        (
            {"labels": {"transfer": False}, "loss": {"sea": {"weight": 0}}},
            r"data\.image_aspect_ratio: pad puts bars .* set labels\.transfer: true",
        ),
        ({"data": {"random_crop": 0.5}}, r"data\.random_crop: its crops are squares, which get no bars; set data\."),
    ],
)
def test_what_does_not_go_with_bars(changes: dict[str, Any], message: str, photos: World) -> None:
    with pytest.raises(ValueError, match=message):
        padded(photos, **changes)
    unlabelled = {"labels": {"path": None, "transfer": False}, "loss": {"sea": {"weight": 0}}}
    assert padded(photos, **unlabelled).data.image_aspect_ratio == "pad"


def test_random_crops_do_not_go_with_a_folder_that_pads(photos: World, finished: FinishedRuns, tmp_path: Path) -> None:
    model = str(finished(padded(photos, data={"keep_features": False})) / "model")
    crops = {"random_crop": 0.5, "image_aspect_ratio": None}
    with pytest.raises(UserError, match=r"data\.random_crop: .* pads images; set data\.image_aspect_ratio: square"):
        train(padded(photos, model=model, data=crops), tmp_path / "refused")
    run = train(padded(photos, model=model, data=crops | {"image_aspect_ratio": "square"}), tmp_path / "square")
    assert not pads(AutoProcessor.from_pretrained(run.model).image_processor)


@pytest.mark.slow
def test_labels_that_nobody_named_are_looked_for_with_leave_alone(
    photos: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos.labels, tmp_path / "runs" / "labels" / "some")
    held_out = {"evaluate": str(photos.held_out)}
    for transfer in (False, True):
        recipe = padded(photos, labels={"path": None, "transfer": transfer}, loss={"sea": {"weight": 0}}, data=held_out)
        assert ("label_hit@1" in train(recipe, tmp_path / str(transfer)).summary["end"]) == transfer
    # of a folder that pads, where no key of the recipe tells
    model = str(tmp_path / "True" / "model")
    recipe = padded(photos, model=model, labels={"path": None}, data={"image_aspect_ratio": None})
    recipe = recipe.model_copy(update={"labels": recipe.labels.model_copy(update={"transfer": False})})
    with pytest.raises(UserError, match=r"labels\.transfer: .* pads images to a square"):
        train(recipe, tmp_path / "refused")
