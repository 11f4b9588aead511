"""Rows that cannot be trained: one run finds all of them, by kind and id; left out, they are counted."""

import json
import os
import re
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.llava_json import images_of, relative_path
from sea_pipeline.inputs.sources import list_samples
from sea_pipeline.labels.run import LabelSettings, label_images
from sea_pipeline.labels.store import open_labels
from tests.support.conversations_json import Row, load, record, written
from tests.support.heard import Heard
from tests.support.tiny_runs import World, colours, tiny_recipe
from tests.support.tiny_tokenizers import byte_level
from trainer.data.bad_rows import BadRow, LeftOutRows, refuse
from trainer.data.conversations import read_conversations
from trainer.data.run_rows import Conversations, open_conversations, warn_of_rows
from trainer.model.load import open_model_folder
from trainer.recipes.recipe import Recipe
from trainer.training.run import TrainRun, train

GOOD: list[Row] = [
    record([("<image>\nWhat?", "A cat.")], "a.jpg"),
    record([("<image>", "A cat.")], images=["a.jpg"]),
    record([("<image>", "A cat.")], "a.jpg", images="a.jpg"),
    record([("What?", "A cat.")], image_id=7, image_size=[1, 2], width=3, model="gpt", video=None, images=[]),
    {"conversations": [{"from": "gpt", "value": "Hello!"}, *record([("What?", "A cat.")])["conversations"]]},
    {"image": "a.jpg", "conversations": [
        {"from": "system", "value": "Be brief."},
        {"from": "gpt", "value": "Hi."},
        {"from": "user", "value": "What?"},
        {"from": "assistant", "value": "A cat."},
    ]},
]  # fmt: skip
MEDIA = [
    "video", "videos", "audio", "img", "image_path", "imagePath", "image-url", "image_urls", "picture", "photo_file",
    "frames", "video_path", "image_bytes", "media", "images_list", "pics", "clip", "image_name",
]  # fmt: skip
TURNS: dict[str, Any] = {
    "no turns": [],
    "turns that are text": "hello",
    "one question": [{"from": "human", "value": "a"}],
    "a question last": [*record([("a", "b")])["conversations"], {"from": "human", "value": "c"}],
    "two questions": [{"from": "human", "value": "a"}] * 2,
    "an answer alone": [{"from": "gpt", "value": "a"}],
    "a number as text": [{"from": "human", "value": 7}, {"from": "gpt", "value": "b"}],
    "a stranger": [{"from": "tool", "value": "a"}, {"from": "gpt", "value": "b"}],
    "a turn that is none": ["a", "b"],
    "no value": [{"from": "human"}, {"from": "gpt", "value": "b"}],
    "half a letter": record([("a \ud83d", "b")])["conversations"],
    "too long": record([("a " * 3000, "b")])["conversations"],
    "an image in an answer": record([("a", "<image>")])["conversations"],
    "media in a turn": [{"from": "human", "value": "a", "image": "x.jpg"}, {"from": "gpt", "value": "b"}],
}
IMAGES: dict[str, Row] = {
    "a number": record([("<image>", "b")], 7),
    "an object": record([("<image>", "b")], {"path": "a.jpg"}),
    "an empty name": record([("<image>", "b")], [""]),
    "a zero": record([("<image>", "b")], "a\0.jpg"),
    "two for one": record([("<image> or <image>, <image>", "b")], ["a.jpg", "a.jpg"]),
    "no image for a place": record([("<image>", "b")]),
    "both keys": record([("<image>", "b")], "a.jpg", images=["b.jpg"]),
    "outside": record([("<image>", "b")], "../../../../../../../../nowhere/a.jpg"),
    "a web address": record([("<image>", "b")], "https://example.org/a.jpg"),
    "missing": record([("<image>", "b")], "missing.jpg"),
}


def odd() -> dict[str, Row]:
    """About forty kinds of rows that cannot be trained, by name."""
    rows = {name: {"conversations": turns} for name, turns in TURNS.items()} | dict(IMAGES)
    rows |= {f"media {key}": record([("What?", "A cat.")], **{key: "x"}) for key in MEDIA}
    return {name: {"id": name, **row} for name, row in rows.items()}


def test_every_odd_row_is_found_at_once(tmp_path: Path) -> None:
    assert len(odd()) >= 40
    data = written(tmp_path, *GOOD, *odd().values(), *GOOD, name="data.jsonl")
    read = read_conversations(data, byte_level(), template="own", image_tokens=5)
    elsewhere = {"outside", "a web address", "missing"}  # seen by who knows the root
    assert [row.id for row in read.bad] == [name for name in odd() if name not in elsewhere]
    assert len(read.rows) == 2 * len(GOOD) + len(elsewhere)
    with pytest.raises(UserError) as error:
        load(data, byte_level(), "own", max_length=2048)
    kinds = Counter[str]()
    for row in read.bad:
        kinds[row.kind] += 1
        assert (repr(row.id) in str(error.value)) == (kinds[row.kind] <= 10), row
    assert "\n" not in str(error.value)
    total = len(GOOD) * 2 + len(odd())
    assert f"{len(read.bad)} of {total} rows cannot be trained" in str(error.value)


def test_good_rows_are_what_they_say(tmp_path: Path) -> None:
    rows = load(written(tmp_path, *GOOD), byte_level(), "own")
    assert rows["images"][:] == [["a.jpg"], ["a.jpg"], ["a.jpg"], [], [], ["a.jpg"]]
    plain = load(written(tmp_path, GOOD[3]), byte_level(), "own")[0]
    assert rows[4]["input_ids"] == plain["input_ids"], "an answer before the first question is left out"


def test_alike_rows_are_counted_with_ten_ids() -> None:
    reason = "expected turns by human and gpt; found human; mend it"
    rows = [BadRow(number, f"row {number}", reason) for number in range(1, 31)]
    other = BadRow(31, "other", "expected an answer within max_length 20; found 40 tokens before it")
    with pytest.raises(UserError) as error:
        refuse(Path("d.json"), [*rows, other], 1000)
    said = str(error.value)
    assert said.startswith(f"d.json: 31 of 1,000 rows cannot be trained: 30 x {reason} (ids 'row 1'")
    assert "'row 10', ...)" in said
    assert "'row 11'" not in said
    assert f"1 x {other.reason} (ids 'other')" in said
    with pytest.raises(UserError, match=r"d\.json: entry 31, id 'other': expected an answer.*; mend or remove it, or"):
        refuse(Path("d.json"), [other], 1000)


def test_a_number_that_differs_between_rows_of_a_kind_is_n() -> None:
    limit, turn = "expected an answer within max_length 20", "expected turn {} to be an object"
    reasons = [f"{limit}; found 40", turn.format(1), f"{limit}; found 41", turn.format(2), f"{limit}; found 4"]
    rows = tuple(BadRow(number, "", reason) for number, reason in enumerate(reasons))
    assert LeftOutRows(rows).kinds() == {limit: 3, turn.format("N"): 2}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"id": ' + "1" * 4400 + ', "conversations": []}]', "expected 'conversations' to be a list"),
        ('[{"id": 1e999999999999999999999, "conversations": []}]', "after entry 0: a number that is too large"),
        ('[{"conversations": ' + "[" * 3000 + "]" * 3000 + "}]", "expected turn 1 to be an object"),
        ('[{"conversations": [], "texts": ' + "[" * 3000 + "]" * 3000 + "}]", "id '1': maximum recursion depth"),
        ('[{"conversations": [], "x": ' + "[" * 3000 + "]" * 3000 + "}]", "expected 'conversations' to be a list"),
        ('["a.jpg", 7]', "2 of 2 rows cannot be trained: 2 x expected a LLaVA record"),
    ],
)
def test_json_that_ends_other_programs(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(UserError, match=expected) as error:
        load(tmp_path / "data.json", byte_level(), "own")
    assert len(str(error.value)) < 5000


def test_names_too_long_for_a_file_cost_their_rows(tiny: World, tmp_path: Path) -> None:
    long = [record([("<image>", "b")], "A" * 6000), record([("<image>", "b")], "x" * 300 + ".jpg")]
    with pytest.raises(UserError, match=r"2 of .* rows cannot be trained") as error:
        opened(tiny, written(tmp_path, *long, *rows_of(tiny)))
    assert len(str(error.value)) < 1000


@pytest.mark.slow
def test_bad_rows_of_the_evaluation_file_are_counted(tiny: World, tmp_path: Path) -> None:
    other = written(tmp_path, *rows_of(tiny)[:4], *list(odd().values())[:3], name="held.jsonl")
    with pytest.raises(UserError, match=r"held\.jsonl: 3 of 7 rows cannot be trained"):
        opened(tiny, tiny.data, evaluate=str(other))
    with colours():
        settings = {"evaluate": str(other), "bad_rows": "leave_out"}
        rows = run(tiny, tiny.data, tmp_path / "out", data=settings, training_arguments=SHORT).summary["rows"]
    assert rows["held out"] == 4
    assert sum(number for what, number in rows.items() if what.startswith("held out, left out: ")) == 3


# A run

SHORT = {"max_steps": 1, "save_strategy": "no"}


def recipe_of(world: World, file: Path, **changes: Any) -> Recipe:
    data = {"train": str(file), "image_root": str(world.data.parent / "images"), **changes.pop("data", {})}
    return tiny_recipe(world, data=data, **changes)


def opened(world: World, file: Path, **data: Any) -> Conversations:
    """What a run reads before it makes anything."""
    return open_conversations(recipe_of(world, file, data=data).data, open_model_folder(world.model))


def run(world: World, file: Path, out: Path, reporter: Heard | None = None, **changes: Any) -> TrainRun:
    return train(recipe_of(world, file, **changes), out, reporter=reporter or Heard())


def rows_of(world: World) -> list[Row]:
    rows: list[Row] = json.loads(world.data.read_text())
    return rows


@pytest.mark.slow
def test_a_run_leaves_them_out_and_counts_them(tiny: World, tmp_path: Path) -> None:
    good = rows_of(tiny)
    data = written(tmp_path, *odd().values(), *good, name="data.jsonl")
    heard = Heard()
    with colours():
        with pytest.raises(UserError, match=f"{len(odd())} of {len(odd()) + len(good)} rows cannot be trained"):
            run(tiny, data, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        done = run(tiny, data, tmp_path / "out", heard, data={"bad_rows": "leave_out"})
        clean = run(tiny, written(tmp_path, *good, name="clean.json"), tmp_path / "clean")
    assert heard.rows == [done.summary["rows"]]
    left = {key: value for key, value in heard.rows[0].items() if key.startswith("left out: ")}
    assert sum(left.values()) == len(odd())
    assert heard.rows[0]["rows"] == clean.summary["rows"]["rows"] == len(good)
    fields = [json.loads((out / "run.json").read_text())["fields"] for out in (done.out, clean.out)]
    assert fields[0]["left_out"][0] == len(odd())
    assert "left_out" not in fields[1]
    assert (done.model / "model.safetensors").read_bytes() == (clean.model / "model.safetensors").read_bytes()


def test_nothing_left_is_refused(tiny: World, tmp_path: Path) -> None:
    data = written(tmp_path, *odd().values(), name="data.jsonl")
    with pytest.raises(UserError, match="rows cannot be trained"):
        opened(tiny, data, bad_rows="leave_out")


@pytest.mark.slow
def test_images_in_the_labels_quarantine_are_named_before_the_first_step(tiny: World, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    rows = [row for row in rows_of(tiny) if isinstance(row.get("image"), str)]
    for row in rows:
        Image.open(tiny.data.parent / "images" / row["image"]).save(photos / row["image"])
    data = written(tmp_path, *rows)
    broken = photos / rows[3]["image"]
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    with colours():
        made = label_images(
            LabelSettings.of(images=str(data), image_root=photos, out=str(tmp_path / "labels"), max_bad=0.5)
        )
        assert [bad["image_id"] for bad in open_labels(made.ledger.root).quarantine()] == [rows[3]["image"]]
        settings = {"labels": {"path": str(tmp_path / "labels")}, "data": {"image_root": str(photos)}}
        with pytest.raises(UserError, match=r"found '.*' in the labels' quarantine"):
            run(tiny, data, tmp_path / "out", **settings)
        assert not (tmp_path / "out").exists()
        settings["data"]["bad_rows"] = "leave_out"
        settings["training_arguments"] = SHORT
        done = run(tiny, data, tmp_path / "out", **settings)
        assert done.summary["rows"]["rows"] == len(rows) - 1
        broken.write_bytes(whole)  # mended since: it is trained on, as it can be read
        assert run(tiny, data, tmp_path / "mended", **settings).summary["rows"]["rows"] == len(rows)


# Where images are


def test_paths_below_the_root_in_every_spelling(tmp_path: Path) -> None:
    real = tmp_path / "real" / "sub"
    real.mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    photo = real / "a b.jpg"
    Image.new("RGB", (8, 8)).save(photo)
    roots = [tmp_path / "real", tmp_path / "link", tmp_path / "real" / "sub" / "..", Path("/"), tmp_path]
    spelled = [str(photo), str(tmp_path / "link" / "sub" / "a b.jpg"), photo.as_uri(), f"{real}/../sub/./a b.jpg"]
    rows = [record([("<image>", "b")], text) for text in spelled]
    forms = {
        "json": json.dumps(rows),
        "jsonl": "\n".join(map(json.dumps, rows)),
        "csv": "path\n" + "\n".join(f'"{text}"' for text in spelled),
        "txt": "\n".join(spelled),
    }
    for root in roots:
        for text in spelled:
            assert (root / relative_path(text, str(root))).samefile(photo), (root, text)
        for form, held in forms.items():
            file = tmp_path / f"list.{form}"
            file.write_text(held)
            uris = [sample.uri for sample in list_samples(str(file), root).samples if sample.problem is None]
            assert [os.path.realpath(root / uri) for uri in uris] == [os.path.realpath(photo)] * len(spelled), file
    for text in ("/etc/hostname", "../../../../../../../../etc/hostname", "file:///etc/hostname", "file://host/x.jpg"):
        with pytest.raises(ValueError, match="leaves the image root"):
            relative_path(text, str(tmp_path / "real"))
    with pytest.raises(ValueError, match="leaves the image root"):
        relative_path("/a.jpg")


def test_urls_below_a_root_that_is_one() -> None:
    for text, key in {
        "s3://bucket/x/y.jpg": "y.jpg", "y.jpg": "y.jpg", "./y.jpg": "y.jpg", "a//y.jpg": "a//y.jpg",
        "a/../y.jpg": "a/../y.jpg", "s3://bucket/x//y.jpg": "/y.jpg", "s3://bucket/x/../y.jpg": "../y.jpg",
        "a?b#c.jpg": "a?b#c.jpg", "s3://bucket/x/a%20b?c#d.jpg": "a%20b?c#d.jpg",
    }.items():  # fmt: skip
        assert relative_path(text, "s3://bucket/x") == key
    for text, name in {
        "http://h/x/a%20b.jpg#c": "a b.jpg", "a%20b?c#d.jpg": "a%20b?c#d.jpg", "a//y.jpg": "a//y.jpg",
        "http://h/x/a%20b.jpg?c=%2F#d": "http://h/x/a%20b.jpg?c=%2F",
    }.items():  # fmt: skip
        assert relative_path(text, "http://h/x") == name
    outside = ["http://h/x/../y.jpg", "http://h/x/%2E%2e/y.jpg?c", "http://h/y.jpg?c", "a/../../y.jpg"]
    stores = ["s3://bucket/z.jpg", "/y.jpg", "../y.jpg", "file:///y.jpg"]
    for root, texts in (("s3://bucket/x", stores), ("http://h/x", [*stores, *outside])):
        for text in texts:
            with pytest.raises(ValueError, match="leaves the image root"):
                relative_path(text, root)


@pytest.mark.parametrize("key", MEDIA)
def test_media_that_would_not_be_read_are_named(key: str) -> None:
    with pytest.raises(UserError, match=f"not under '{key}'; found media there, which would not be read"):
        images_of({"conversations": [], key: ["x.jpg"]})
    with pytest.raises(UserError, match=f"not under '{key}'"):
        images_of({"conversations": [], key: "b.jpg", "image": "a.jpg"})
    for nothing in ([], 1, 0.31, Decimal("0.31"), "a.jpg", ["a.jpg"]):
        assert images_of({"conversations": [], key: nothing, "image": "a.jpg"}) == ["a.jpg"]


@pytest.mark.parametrize(
    "key", ["image_id", "image_size", "imageWidth", "source", "datasource", "caption", "framework", "image_source"]
)
def test_what_is_said_of_an_image_is_no_medium(key: str) -> None:
    assert images_of({"conversations": [], key: "x", "images": ["a.jpg", "b.jpg"]}) == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("key", ["image_id", "imageId", "coco_image_id", "photo_ids"])
def test_an_id_that_looks_like_a_file_is_no_medium_beside_an_image(key: str) -> None:
    row = {"conversations": [], key: "COCO_0001.jpg"}
    assert images_of(row | {"image": "a.jpg"}) == ["a.jpg"]
    for other in (row, {"image": "a.jpg", "video_id": "b.mp4"}, {"image": "a.jpg", "left_image": "b.jpg"}):
        with pytest.raises(UserError, match="found media there"):
            images_of(other)


@pytest.mark.parametrize("key", ["system", "tools", "system_prompt", "system_message"])
def test_what_stands_beside_the_turns_is_refused_with_advice_that_works(key: str, tmp_path: Path) -> None:
    """LLaMA-Factory's files have them there."""
    row = record([("What?", "A cat.")])
    with pytest.raises(UserError, match=f"found '{key}' beside them, which would not be read") as error:
        load(written(tmp_path, row | {key: "Be brief."}), byte_level(), "own")
    (turn,) = re.findall(r"\{.*\}", str(error.value))
    first = json.loads(turn.replace("text", '"Be brief."'))
    mended = row | {"conversations": [first, *row["conversations"]]}
    for template in ("vicuna_v1", "own"):
        (found,) = load(written(tmp_path, mended), byte_level(), template)
        assert "Be brief." in byte_level().decode(found["input_ids"])
    for empty in ("", None, [], "[]"):
        assert len(load(written(tmp_path, row | {key: empty}), byte_level(), "own")) == 1


# Images on both sides


@pytest.mark.slow
def test_held_out_images_that_are_trained_on_are_counted(tiny: World, tmp_path: Path) -> None:
    """Data with many questions on an image gives each a row with an id of its own."""
    rows = rows_of(tiny)
    many = [row | {"id": f"{row['id']} {number}"} for row in rows for number in range(3)]
    heard = Heard()
    run(tiny, written(tmp_path, *many), tmp_path / "out", heard, training_arguments=SHORT, data={"held_out": 6})
    (said,) = (line for line in heard.warnings if "also trained on" in line)
    held_out = re.fullmatch(r"(\d+) of (\d+) held-out images are also trained on, in other rows, such as '.*", said)
    assert held_out is not None
    assert 0 < int(held_out[1]) <= int(held_out[2]) <= 6
    for data in ({"held_out": 3}, {"evaluate": str(tiny.data)}, {"evaluate": str(tiny.held_out)}):
        heard = Heard()
        warn_of_rows(opened(tiny, tiny.data, **data), recipe_of(tiny, tiny.data, data=data).data, None, heard)
        assert heard.lines == [], data


# What is left empty


def test_an_empty_id_is_none(tmp_path: Path) -> None:
    rows = [record([("What?", "A cat.")]) | {"id": given} for given in ("", "", "seven", None, 0)]
    assert load(written(tmp_path, *rows), byte_level(), "own")["id"] == ["1", "2", "seven", "4", "0"]


def test_rows_with_empty_ids_are_split(tiny: World, tmp_path: Path) -> None:
    """As one id they would all be held out, or none."""
    found = opened(tiny, written(tmp_path, *(row | {"id": ""} for row in rows_of(tiny))), held_out=3)
    assert found.held_out is not None
    assert (len(found.train), len(found.held_out)) == (len(rows_of(tiny)) - 3, 3)


@pytest.mark.parametrize("empty", ["", None, []])
@pytest.mark.parametrize("key", ["image", "images"])
def test_an_empty_image_is_none(key: str, empty: object, tmp_path: Path) -> None:
    """Exporters that need a text in each cell write one for rows without an image."""
    text, shown = record([("What?", "A cat.")]) | {key: empty}, record([("<image>", "b")], "a.jpg")
    data = written(tmp_path, text, shown)
    assert load(data, byte_level(), "own")["images"] == [[], ["a.jpg"]]
    assert [(sample.image_id, sample.problem) for sample in list_samples(str(data), tmp_path).samples] == [
        ("a.jpg", None)
    ]


def test_a_missing_image_whose_place_is_marked_is_one_fault_to_all(tmp_path: Path) -> None:
    nothing: list[Row] = [{}, {"image": None}, {"image": []}, {"image": ""}, {"images": []}]
    rows = [record(turns) | none for turns in ([("<image>", "b")], [("What?", "b")]) for none in nothing]
    data = written(tmp_path, *rows, *GOOD[:1])
    listing = list_samples(str(data), tmp_path)
    bad = [sample.problem for sample in listing.samples if sample.problem]
    assert [row.reason for row in read_conversations(data, byte_level(), template="own", image_tokens=5).bad] == bad
    assert len(bad) == len(nothing) == listing.notes["text-only entries"]
    (said,) = set(bad)
    assert said.startswith("expected an image, because the turns have <image>; found none, and the record names no")
