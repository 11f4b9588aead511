"""Photos that stand in several rows, or twice in one: each is looked at once, at its first appearance."""

import json
from pathlib import Path

import pytest
import torch

from tests.support.analysis_models import Make, record, write
from tests.support.tiny_runs import World, tiny_recipe
from trainer.evaluation.contextual_lens import build_index
from trainer.evaluation.contextual_shares import captioned_photos, look_through
from trainer.evaluation.evaluator import Evaluator, ShownImage
from trainer.evaluation.nearest_by_layer import look_at_layers
from trainer.evaluation.token_replacement import replace_and_describe
from trainer.training.report_views import ViewSettings, run_views
from trainer.training.run import train

ROWS = [["00.png", "00.png"], ["00.png"], ["01.png", "00.png", "01.png"], ["01.png"], ["03.png"], ["04.png"]]
FIRST = [ShownImage(0, "00.png"), ShownImage(2, "01.png"), ShownImage(4, "03.png"), ShownImage(5, "04.png")]


def repeated(path: Path) -> Path:
    names = ("red", "green", "blue", "grey", "black", "white")
    return write(path, [record(f"r{row}", images, "What?", f"a {names[row]} patch") for row, images in enumerate(ROWS)])


@pytest.mark.parametrize("batch_size", [1, 4])
def test_layers_and_lens_take_each_photo_once(batch_size: int, ready: Make, tmp_path: Path) -> None:
    made = ready(repeated(tmp_path / "data.json"), batch_size=batch_size, labelled=True)
    for limit in (None, 3):
        found = look_at_layers(made.evaluator, made.model, limit)
        assert found.images == made.evaluator.first_images(limit) == FIRST[:limit]
        assert found.tokens.shape[1:] == (limit or 4, 16)
        single = ready(write(tmp_path / "one.json", [record("one", ["01.png"], "What?", "a patch")]))
        alone = look_at_layers(single.evaluator, made.model)
        assert found.tokens[0, 1].equal(alone.tokens[0, 0]), "layer 0 is the photo alone"
    index = build_index(made.model, made.folder.processor.tokenizer, ["a red patch and a blue patch"])
    photos = captioned_photos(made.evaluator)
    assert list(photos) == FIRST
    lens = look_through(made.evaluator, made.model, index, photos)
    assert lens.words.shape[1:] == (4, 16)
    every = look_at_layers(made.evaluator, made.model).tokens
    batches = made.evaluator.batches(torch.device("cpu"), [0, 2])
    places = [made.evaluator.places(batch, set(FIRST)) for batch in batches]
    assert places == ([[0], [0]] if batch_size == 1 else [[0, 2]]), "row 0 shows one photo twice"
    assert len({tuple(row) for row in every[0].tolist()}) > 1


def test_a_description_is_of_each_photo_once(ready: Make, tmp_path: Path) -> None:
    made = ready(repeated(tmp_path / "data.json"))
    found = replace_and_describe(made.evaluator, made.model, 3, 1)
    assert found.images == FIRST[:3]
    assert found.summary["images"] == 3


def test_labels_of_a_photo_are_kept_once(ready: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ready(repeated(tmp_path / "data.json"), labelled=True)
    kept: list[torch.Tensor] = []
    monkeypatch.setattr(Evaluator, "meaningful", lambda _, __, words, ___: kept.extend(words))
    made.evaluator(made.model)
    assert [len(kept), len({id(one) for one in kept}), kept[0].dtype] == [9, 4, torch.int32]


@pytest.mark.slow
def test_the_report_shows_different_photos(tiny: World, tmp_path: Path) -> None:
    data = repeated(tmp_path / "data.json")
    changes = {"max_steps": 1, "save_strategy": "no"}
    run = train(tiny_recipe(tiny, data={"evaluate": str(data)}, training_arguments=changes), tmp_path / "run")
    views = run_views(run.out, ViewSettings(images=3, new_tokens=1, device="cpu"))
    assert views["notes"] == {}
    assert [image["image"] for image in views["images"]] == ["00.png", "01.png", "03.png"]
    for image in views["images"]:
        assert {"before", "after", "layers", "describing", "degree", "generated"} < set(image)
    rows = [[name] for name in ("00.png", "01.png", "03.png")]
    once = write(
        tmp_path / "once.json",
        [record(f"{n}", images, "What?", "a patch") for n, images in enumerate(rows)],
    )
    record_file = run.out / "run.json"
    record_file.write_text(record_file.read_text().replace(json.dumps(str(data)), json.dumps(str(once))))
    plain = run_views(run.out, ViewSettings(images=3, new_tokens=1, device="cpu"))
    for image, alone in zip(views["images"], plain["images"], strict=True):
        assert views_texts(views, image["after"]["nearest"]) == views_texts(plain, alone["after"]["nearest"])
        assert image["after"]["cosine"] == pytest.approx(alone["after"]["cosine"], abs=1e-3)


def views_texts(views: dict[str, list[str]], numbers: list[int]) -> list[str]:
    return [views["texts"][number] for number in numbers]
