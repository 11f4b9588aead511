"""Rows too long, or refused by the processor, are known before a run; what is measured is never cut."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sea_pipeline.core import progress
from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.pixels import read_image, upright_size
from sea_pipeline.storage.paths import cache_folder
from tests.support.heard import Heard
from tests.support.refused import refused
from tests.trainer.attach.existing import ExistingWorld
from tests.trainer.attach.families import MAKERS, tiny
from tests.trainer.attach.worlds import Pictures
from trainer.attach import attach, expansions
from trainer.attach.batches import ChatData
from trainer.attach.expansions import Expansions
from trainer.attach.folder import open_existing_folder
from trainer.attach.lengths import RowLengths
from trainer.attach.rows import read_texts
from trainer.evaluation.existing_evaluator import ExistingEvaluator
from trainer.evaluation.existing_run import load_attached
from trainer.evaluation.run import EvaluateSettings, evaluate_model
from trainer.model.parts import quiet
from trainer.training.run import train

pytestmark = pytest.mark.usefixtures("colour_encoder")


def strip(root: Path, pictures: Pictures, size: tuple[int, int]) -> Path:
    """Copies the images, and draws one more beside them, which has no labels."""
    folder = root / "images"
    shutil.copytree(pictures.folder, folder)
    Image.new("RGB", size, "red").save(folder / "strip.png")
    return folder


def written(path: Path, *records: tuple[str, str, str]) -> Path:
    turns = [
        {"id": number, "image": image, "conversations": [
            {"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}
        ]}
        for (image, question, answer), number in zip(records, "abcdefgh", strict=False)
    ]  # fmt: skip
    path.write_text(json.dumps(turns))
    return path


THREE = (("wide.png", "What?", "red"), ("strip.png", "What?", "red"), ("odd.png", "A?", "b"))


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_lengths_are_those_of_the_processor(name: str, world: ExistingWorld) -> None:
    """At each `max_length`, the rows found are those that the collator refuses, and those cut are those it cuts."""
    folder = world.open(name)
    data, stores = world.read(folder, None), (None, world.pictures.open())  # sizes of headers, and those of labels
    wanted = [int(data.collator(0, 0)([data[number]])["attention_mask"].sum()) for number in range(len(data))]
    for store in stores:
        found = RowLengths(folder.chat, world.locate, store)
        assert found.lengths([(row, found._expanded(row["images"])) for row in data.rows]) == wanted
    for max_length in sorted({length - less for length in wanted for less in (0, 1, 3, 30) if length > less}):
        short = world.read(folder, max_length)
        refused, cut = set(), 0
        for number, length in enumerate(wanted):
            try:
                short.collator(0, 0)([short[number]])
                cut += length > max_length
            except UserError:
                refused.add(data.rows[number]["id"])
        for store in stores:
            lengths = RowLengths(folder.chat, world.locate, store)
            assert {row.id for row in lengths.unfit(data.rows, max_length)} == refused, max_length
            assert lengths.cut == cut, max_length
            assert not lengths.unfit(data.rows, None)


@pytest.mark.slow
def test_rows_too_long_stop_a_run_before_its_first_step_or_are_left_out(world: ExistingWorld, tmp_path: Path) -> None:
    data = world.read(world.open("qwen2_5_vl"), None)
    lengths = [int(data.collator(0, 0)([data[number]])["attention_mask"].sum()) for number in range(len(data))]
    one, two = lengths[0], lengths[3]
    assert two > one - 2
    recipe: dict[str, Any] = {"training_arguments": {"max_steps": 1, "save_strategy": "no"}}
    stopped = world.recipe("qwen2_5_vl", data={"max_length": one - 2}, **recipe)
    with refused("'two'", "raise data.max_length", match=r"rows? cannot be trained|expected its images"):
        train(stopped, tmp_path / "stopped")
    assert not list(tmp_path.glob("stopped/checkpoints/*"))
    left = world.recipe("qwen2_5_vl", data={"max_length": one - 2, "bad_rows": "leave_out"}, **recipe)
    run = train(left, tmp_path / "left")
    rows = json.loads((run.out / "summary.json").read_text())["rows"]
    out = {kind: count for kind, count in rows.items() if kind.startswith("left out")}
    assert list(out) == [
        f"left out: expected its images and the beginning of an answer within data.max_length {one - 2}"
    ]
    assert sum(out.values()) + rows["rows"] == len(lengths)
    assert rows["cut at max_length"] == sum(length > one - 2 for length in lengths) - sum(out.values()) > 0


@pytest.mark.slow
def test_images_that_the_processor_refuses_are_bad_rows(world: ExistingWorld, tmp_path: Path) -> None:
    images = strip(tmp_path, world.pictures, (1000, 4))
    file = written(tmp_path / "data.json", *THREE)
    held = written(tmp_path / "held.json", ("wide.png", "What?", "red"), ("tall.png", "What?", "red"))
    group: dict[str, Any] = {"train": str(file), "evaluate": str(held), "image_root": str(images)}
    short = {"max_steps": 1, "save_strategy": "no"}
    recipe = {"training_arguments": short, "loss": {"sea": {"weight": 0}}, "labels": {"path": None}}
    with pytest.raises(UserError, match=r"id 'b': expected images that the model's processor takes; found 'strip.png'"):
        train(world.recipe("qwen2_5_vl", data=group, **recipe), tmp_path / "stopped")
    run = train(world.recipe("qwen2_5_vl", data=group | {"bad_rows": "leave_out"}, **recipe), tmp_path / "left")
    rows = json.loads((run.out / "summary.json").read_text())["rows"]
    assert rows["rows"] == 2
    assert rows["left out: expected images that the model's processor takes"] == 1
    asked = EvaluateSettings.of(model=world.model("qwen2_5_vl"), image_root=images, data=str(file), device="cpu")
    with pytest.raises(UserError, match=r"found 'strip.png' of 1000 x 4 pixels: .*aspect ratio"):
        evaluate_model(asked)
    assert evaluate_model(asked.model_copy(update={"bad_rows": "leave_out"}))["lm_loss"] > 0


@pytest.mark.filterwarnings("ignore::UserWarning")  # the new rows are random
def test_tokens_without_an_embedding_are_known_before_a_run(world: ExistingWorld, tmp_path: Path) -> None:
    """The advice is followed: with embeddings for all tokens the rows are good."""
    made = copy.deepcopy(tiny("llava"))
    made.processor.tokenizer.add_tokens([*(f"<{number}>" for number in range(200)), "red"])
    red = made.processor.tokenizer.convert_tokens_to_ids("red")
    with quiet():
        made.model.save_pretrained(tmp_path / "model")
        made.processor.save_pretrained(tmp_path / "model")
    folder = open_existing_folder(tmp_path / "model")
    rows = world.read(folder, None, written(tmp_path / "data.json", THREE[0], THREE[2])).rows
    said = f"expected tokens of the 512 rows of the LLM's embeddings; found 'red', whose id is {red}; call "
    found = [row.reason.startswith(said) for row in RowLengths(folder.chat, world.locate, None).unfit(rows, 1)]
    assert found == [True, False], "the other one is too long"
    with pytest.raises(UserError, match=rf"a word of the labels: {said}"):
        attach(made.model, made.processor, labels=world.pictures.open(), sea={})
    made.processor.tokenizer.pad_token = "red"
    made.processor.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=said):
        open_existing_folder(tmp_path / "model")
    with quiet():
        made.model.resize_token_embeddings(len(made.processor.tokenizer))
        made.model.save_pretrained(tmp_path / "model")
    folder = open_existing_folder(tmp_path / "model")
    assert not RowLengths(folder.chat, world.locate, None).unfit(rows, None)
    attach(made.model, made.processor, labels=world.pictures.open(), sea={}).detach()


def test_a_refused_sample_is_named_in_a_batch(world: ExistingWorld, tmp_path: Path) -> None:
    images = strip(tmp_path, world.pictures, (4, 1000))
    file = written(tmp_path / "data.json", *THREE)
    folder = world.open("qwen2_vl")
    data = ChatData(read_texts(file, folder.chat).rows, images.__truediv__, folder.chat, max_length=2048)
    with pytest.raises(UserError, match=r"sample 'b': 'strip.png' of 4 x 1000 pixels, the model's processor refuses"):
        data.collator(0, 0)([data[0], data[1], data[2]])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_next", "idefics3"])
def test_what_is_measured_is_never_cut(name: str, world: ExistingWorld, tmp_path: Path) -> None:
    """With photos of two sizes, of which one is longer than `max_length`."""
    folder, store = world.open(name), world.pictures.open()
    two = ("tall.png", "What?", "green and blue"), ("wide.png", "What?", "a red patch")
    file, model = written(tmp_path / "held.json", *two), load_attached(folder, store)

    def evaluated(max_length: int | None) -> dict[str, float]:
        data = world.read(folder, max_length, file)
        return ExistingEvaluator(data, store, vocabulary=folder.vocabulary, batch_size=1)(model)

    whole, data = evaluated(None), world.read(folder, None, file)
    lengths = sorted(int(data.collator(0, 0)([data[number]])["attention_mask"].sum()) for number in range(2))
    assert lengths[0] < lengths[1]
    for max_length in (*lengths, lengths[1] - 2, lengths[0] - 2, 16):
        assert evaluated(max_length) == whole, max_length
    assert whole["trained_tokens"] == sum(len(data.collator(0, 0)([data[number]])["targets"]) for number in range(2))


@pytest.mark.slow
def test_evaluate_takes_photos_of_more_tokens_than_2048(world: ExistingWorld, tmp_path: Path) -> None:
    long = "a red patch " * 700
    file = written(tmp_path / "data.json", ("wide.png", "What?", "red"), ("tall.png", "What?", long))
    settings: dict[str, Any] = {"model": world.model("qwen2_5_vl"), "image_root": world.pictures.folder}
    found = evaluate_model(EvaluateSettings.of(**settings, data=str(file), batch_size=1, device="cpu"))
    assert found["trained_tokens"] > 2048
    assert torch.isfinite(torch.tensor(found["right_photo_gain"]))


CUTTING = ("idefics3", "smolvlm", "internvl")
"""Families whose sizes are taken together by the tiles that they are cut into."""
SIDES = (1, 2, 7, 31, 32, 33, 48, 63, 64, 65, 95, 96, 97, 131, 200, 517)


@pytest.mark.slow
@pytest.mark.parametrize("name", CUTTING)
def test_sizes_that_are_cut_alike_have_the_same_text(name: str, world: ExistingWorld) -> None:
    """To the character, and refused or not, as the processor has it of each size alone."""
    chat = world.open(name).chat
    together, apart = Expansions(chat), Expansions(chat)
    apart._cut = None
    sizes = [(width, height) for width in SIDES for height in SIDES]

    def of(expansions: Expansions, size: tuple[int, int]) -> str | None:
        try:
            return expansions.of(size, several=False).text
        except UserError:
            return None

    assert [of(together, size) for size in sizes] == [of(apart, size) for size in sizes]
    assert len(together._found) < len(sizes) / 4


def test_what_is_found_is_kept_for_the_next_run(world: ExistingWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = world.open("qwen2_5_vl")
    images = [((96, 48), False), ((40, 80), False), ((64, 64), True), ((1000, 4), False)]
    first = Expansions(folder.chat)
    first.find(images)
    wanted = [first.of(size, several=several) for size, several in images[:3]]
    asked: list[Any] = []
    plain = expansions.written_out

    def counted(chat: Any, given: Any) -> str:
        asked.append(given[0].size)
        return plain(chat, given)

    monkeypatch.setattr(expansions, "written_out", counted)
    again = Expansions(folder.chat)
    again.find([*images, ((48, 48), False)])
    assert sorted(asked) == [(48, 48), (1000, 4)], "one is new, and what was refused is asked again"
    assert [again.of(size, several=several) for size, several in images[:3]] == wanted
    with pytest.raises(UserError, match="aspect ratio"):
        again.of((1000, 4), several=False)
    for harm in (lambda data: data[:-9], lambda data: data.replace(b"40", b"41"), lambda data: b"[]"):
        whole = first.path.read_bytes()
        first.path.write_bytes(harm(whole))
        assert not Expansions(folder.chat)._found
        first.path.write_bytes(whole)
    folder.processor.image_processor.size = {"shortest_edge": 64, "longest_edge": 1024}
    assert not Expansions(folder.chat)._found, "another processor"


def test_what_takes_long_is_said(world: ExistingWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, heard = world.open("qwen2_5_vl"), Heard()
    data = world.read(folder)
    RowLengths(folder.chat, world.locate, None, heard).unfit(data.rows, 2048)
    assert heard.lines == []
    monkeypatch.setattr(progress, "SLOW", -1.0)
    shutil.rmtree(cache_folder() / "expansions")
    RowLengths(folder.chat, world.locate, None, heard).unfit(data.rows, 2048)
    headers, blank = heard.lines
    assert headers.startswith("sizes of images from their files' headers: 1 of 5 done, about")
    assert blank.startswith("the model's processor on a blank image of each size, kept for later runs: 1 of ")
    assert blank.endswith(" s left")


@pytest.mark.parametrize(
    ("kind", "orientation"),
    [*(("jpg", orientation) for orientation in (1, 3, 5, 6, 7, 8)), ("png", 6), ("webp", 6), ("tiff", 6), ("mpo", 6)],
)
def test_a_header_gives_the_upright_size(kind: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"turned.{kind}"
    Image.new("RGB", (30, 20), "red").save(file, exif=exif)
    assert upright_size(file) == read_image(file).image.size
    assert upright_size(file) == ((20, 30) if orientation > 4 else (30, 20))
