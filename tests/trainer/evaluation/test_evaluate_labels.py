"""`evaluate --labels`: of other photos, of some, of photos in several rows; and the texts of `meaningful`."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from sea_pipeline.core.errors import UserError
from sea_pipeline.labels.run import label_images
from sea_pipeline.labels.store import open_labels
from tests.support.analysis_models import Make, measured, record, write
from tests.support.heard import Heard
from tests.support.tiny_runs import SquareEncoder, World, label_settings, tiny_recipe
from trainer.evaluation import evaluator
from trainer.evaluation.contextual_lens import build_index
from trainer.evaluation.contextual_shares import captioned_photos, look_through
from trainer.evaluation.evaluator import Evaluator, ShownImage
from trainer.evaluation.nearest_by_layer import look_at_layers
from trainer.evaluation.question_file import read_questions
from trainer.evaluation.token_replacement import replace_and_describe
from trainer.training.report_views import ViewSettings, run_views
from trainer.training.run import train
from trainer.words import whole_words

NAMES = [f"{number:02d}.png" for number in range(8)]


def captions(path: Path, names: list[str]) -> Path:
    return write(path, [record(f"{row}", [name], "What?", "a red patch") for row, name in enumerate(names)])


def labels_of(tiny: World, names: list[str], root: Path) -> Path:
    root.mkdir(parents=True)
    for name in names:
        shutil.copy(tiny.data.parent / "images" / name, root / name)
    return Path(label_images(label_settings(root, tiny.words, root.parent / f"{root.name}-labels")).ledger.root)


def test_labels_of_other_photos_are_refused(tiny: World, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "x").symlink_to(tiny.data.parent / "images")
    data = captions(tmp_path / "data.json", [f"x/{name}" for name in NAMES])
    with pytest.raises(UserError, match=r"labels: holds none of the 8 images of .*data.json; .* such as 'x/00.png'"):
        measured(tiny, data=data, labels=tiny.labels, image_root=tmp_path / "photos")


@pytest.mark.slow
def test_labels_of_some_photos_are_measured_on_these_alone(tiny: World, tmp_path: Path) -> None:
    labels = labels_of(tiny, NAMES[::2], tmp_path / "half")
    heard, whole = Heard(), Heard()
    every = captions(tmp_path / "all.json", NAMES)
    some = measured(tiny, heard, data=every, labels=labels, layers=True)
    said, by_chance = heard.warnings
    assert by_chance.startswith("label_hit@10: ")
    assert "holds 4 of the 8 images of" in said
    assert "such as '01.png'" in said
    alone = measured(tiny, data=captions(tmp_path / "held.json", NAMES[::2]), labels=labels, layers=True)
    for name in ("label_hit@1", "label_hit@10", "meaningful", "meaningful_chance"):
        assert some[name] == alone[name], name
    assert alone["meaningful"] > 0
    for found, expected in zip(some["layers"], alone["layers"], strict=True):
        assert found["meaningful"] == expected["meaningful"]
        assert found["meaningful_chance"] == expected["meaningful_chance"]
    measured(tiny, whole, data=every, labels=tiny.labels)
    assert whole.warnings == [by_chance]


def test_what_no_photo_has_a_label_for_is_absent(ready: Make, tiny: World, tmp_path: Path) -> None:
    """A share of no labels is nothing, and not 0. Here no photo has labels, as may be in a run's held-out data."""
    labels = labels_of(tiny, NAMES[:2], tmp_path / "two")
    made = ready(captions(tmp_path / "others.json", NAMES[2:]), labelled=True, labels=labels)
    found = made.evaluator(made.model)
    assert not {"label_hit@1", "label_hit@10", "meaningful", "meaningful_chance"} & set(found)
    assert {"gap", "distinct_tokens", "tacs"} <= set(found)


@pytest.mark.slow
def test_chance_is_of_another_photo_however_rows_follow_each_other(ready: Make, tmp_path: Path) -> None:
    """Five captions of each photo, one after the other: each photo weighs as much as once."""
    once = ready(captions(tmp_path / "once.json", NAMES[:4]), labelled=True)
    expected = once.evaluator(once.model)
    often = ready(captions(tmp_path / "often.json", [name for name in NAMES[:4] for _ in range(5)]), labelled=True)
    found = often.evaluator(often.model)
    assert found["meaningful"] == pytest.approx(expected["meaningful"])
    assert found["meaningful_chance"] == pytest.approx(expected["meaningful_chance"])
    assert expected["meaningful_chance"] != pytest.approx(expected["meaningful"])
    same = ready(captions(tmp_path / "same.json", NAMES[:1] * 3), labelled=True)
    assert "meaningful_chance" not in same.evaluator(same.model), "three rows of one photo know no other"


def test_labels_are_counted_by_photo(tiny: World, tmp_path: Path) -> None:
    heard, labels = Heard(), labels_of(tiny, NAMES[:2], tmp_path / "two")
    data = captions(
        tmp_path / "data.json", ["./00.png", "00.png", "./01.png", "01.png", "./02.png", "./03.png", "03.png"]
    )
    measured(tiny, heard, data=data, labels=labels)
    said, by_chance = heard.warnings
    assert by_chance.startswith("label_hit@10: ")
    assert "holds 2 of the 4 images" in said
    assert "such as './02.png'" in said


@pytest.mark.slow
def test_one_photo_with_two_spellings_is_one(ready: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`a.jpg` and `./a.jpg` are no other photos to each other, and both have the photo's labels."""
    names = [spelled for name in NAMES[:3] for spelled in (name, f"./{name}")]
    twice = ready(captions(tmp_path / "twice.json", names), labelled=True)
    plain = ready(captions(tmp_path / "plain.json", [name for name in NAMES[:3] for _ in range(2)]), labelled=True)
    assert twice.evaluator(twice.model) == plain.evaluator(plain.model)
    assert [image for _, image in twice.evaluator.first_images()] == NAMES[:3]
    only = ready(captions(tmp_path / "only.json", [names[1], names[1]]), labelled=True)
    assert only.evaluator.first_images()[0].image_id == names[1], "a single spelling stays as the data has it"
    assert "right_photo_gain" not in ready(captions(tmp_path / "one.json", names[:2])).evaluator(twice.model)
    assert capfd.readouterr().err == "", "no library's bar"


def test_questions_know_one_photo_by_one_name(tmp_path: Path) -> None:
    asked = [{"image": name, "question": "Q?", "label": "yes"} for name in ("a.jpg", "./a.jpg", "x/../a.jpg")]
    (tmp_path / "q.json").write_text(json.dumps(asked))
    assert {one.image for one in read_questions(tmp_path / "q.json").asked} == {"a.jpg"}


def nothing(_: int) -> None:
    pass


@pytest.fixture
def encoder(tiny: World, monkeypatch: pytest.MonkeyPatch) -> SquareEncoder:
    """Counts what it embeds."""
    counting = SquareEncoder()
    monkeypatch.setattr(evaluator, "load_encoder", lambda *given: counting)
    return counting


def test_a_word_of_both_is_embedded_once(ready: Make, tiny: World, encoder: SquareEncoder) -> None:
    made, listed = ready(labelled=True), open_labels(tiny.labels).words
    by_token = whole_words(made.folder.processor.tokenizer, made.folder.vocabulary)
    words = set(by_token.values())
    assert words & set(listed)
    assert words - set(listed)
    rows, token_text, word_text = made.evaluator._texts
    assert encoder.embedded_words == len(words | set(listed))
    assert torch.equal(word_text, encoder.words(listed, nothing))
    assert (rows >= 0).nonzero().flatten().tolist() == list(by_token)
    assert torch.equal(token_text[rows[rows >= 0]], encoder.words(list(by_token.values()), nothing))


def test_where_the_list_has_every_word_nothing_else_is_embedded(
    ready: Make, tiny: World, encoder: SquareEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = open_labels(tiny.labels).words
    monkeypatch.setattr(evaluator, "whole_words", lambda *given: {7: listed[2], 9: listed[0]})
    rows, token_text, _ = ready(labelled=True).evaluator._texts
    assert encoder.embedded_words == len(listed)
    assert rows[[7, 9]].tolist() == [2, 0]
    assert torch.equal(token_text, encoder.words(listed, nothing))


ROWS = [["00.png", "00.png"], ["00.png"], ["01.png", "00.png", "01.png"], ["01.png"], ["03.png"], ["04.png"]]
FIRST = [ShownImage(0, "00.png"), ShownImage(2, "01.png"), ShownImage(4, "03.png"), ShownImage(5, "04.png")]


def repeated(path: Path) -> Path:
    names = ("red", "green", "blue", "grey", "black", "white")
    return write(path, [record(f"r{row}", images, "What?", f"a {names[row]} patch") for row, images in enumerate(ROWS)])


@pytest.mark.slow
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
    once = write(tmp_path / "once.json", [record(f"{n}", images, "What?", "a patch") for n, images in enumerate(rows)])
    record_file = run.out / "run.json"
    record_file.write_text(record_file.read_text().replace(json.dumps(str(data)), json.dumps(str(once))))
    plain = run_views(run.out, ViewSettings(images=3, new_tokens=1, device="cpu"))
    for image, alone in zip(views["images"], plain["images"], strict=True):
        assert views_texts(views, image["after"]["nearest"]) == views_texts(plain, alone["after"]["nearest"])
        assert image["after"]["cosine"] == pytest.approx(alone["after"]["cosine"], abs=1e-3)


def views_texts(views: dict[str, list[str]], numbers: list[int]) -> list[str]:
    return [views["texts"][number] for number in numbers]
