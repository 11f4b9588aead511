"""The programs of tests/bench that are no mere clocks: growth, word_lists, compare."""

import importlib
import io
import json
import runpy
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from pkgutil import walk_packages
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import yaml

from sea_pipeline import open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.verify import check_files
from sea_pipeline.storage.paths import place
from tests import bench
from tests.bench import by_word, growth, laptop, word_lists
from tests.bench.compare.hits import label_hits
from tests.bench.compare.tables import CHARTED
from tests.bench.gpu.shapes import TINY
from tests.support import compare_world
from tests.support.compare_world import TRAIN, compared, make_captioned, tiny_parts, tiny_rows
from tests.support.programs import Begin
from tests.support.world import COLOURS, Label, draw


def test_every_benchmark_finds_what_it_imports() -> None:
    there = set(sys.modules)
    for each in walk_packages(bench.__path__, "tests.bench."):
        if not each.name.endswith("__main__"):
            importlib.import_module(each.name)
    for name in set(sys.modules) - there:
        if name.startswith("tests.bench."):  # runpy warns of programs that are imported already
            del sys.modules[name]


@pytest.mark.slow
def test_labels_by_word_of_repeated_rows(
    label: Label, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    label()
    store = open_labels(tmp_path / "labels")
    word = store.words[store[store.ids[0]].word_ids.flat[0]]
    argv = ["by_word", str(store.path), "--count", "50", "--word", word, "--scratch", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", argv)
    by_word.main()
    said = json.loads(capsys.readouterr().out)
    assert said["images"] == 50
    assert said["rows"] > said["found"] > 0


@pytest.mark.slow
def test_a_laptop_says_what_each_part_takes(tmp_path: Path) -> None:
    laptop.prepare(tmp_path, TINY)
    seconds = laptop.run(tmp_path)
    assert seconds.keys() == {"features, of an image", "start", "a step", "saving"}
    assert all(spent > 0 for spent in seconds.values())


@pytest.mark.parametrize("planted", [0.5, 1.0, 1.5, 2.0])
def test_a_planted_exponent_is_found(planted: float) -> None:
    sizes = [1e3, 1e4, 1e5, 1e6]
    assert growth.exponent(sizes, [2 + 3e-3 * size**planted for size in sizes]) == pytest.approx(planted, abs=0.02)


def test_what_does_not_grow_has_no_exponent() -> None:
    assert growth.exponent([1, 2, 4, 8], [1.0, 1.1, 1.05, 1.15]) == 0.0


@pytest.mark.slow
def test_steps_of_a_folder_end_with_one_that_opens(tmp_path: Path) -> None:
    growth.links(tmp_path, 2_050)
    for step in growth.CURVES[0].steps:
        step(tmp_path, 2_050)
    checked = check_files(Ledger.open(place(tmp_path / "labels")))
    assert checked.finished
    assert not checked.problems
    assert not checked.missing


PHOTOS = ["red", "green", "blue", "red", "green", "blue"]


@pytest.fixture
def folders(label: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Path]:
    """Photos of one colour each, their captions, and two folders of their labels; `blue sky` looks like blue."""
    monkeypatch.setitem(COLOURS, "blue sky", COLOURS["blue"])
    monkeypatch.setitem(COLOURS, "greens", COLOURS["green"])
    rows = []
    for number, colour in enumerate(PHOTOS):
        draw(tmp_path / "photos" / f"{number}.png", [[colour] * 2] * 2)
        turns = [{"from": "gpt", "value": f"the {colour} unicorns"}, {"from": "gpt", "value": f"{colour}s"}]
        rows.append({"image": f"{number}.png", "conversations": turns})
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    for name, listed in (("one", "red\ngreen\n"), ("two", "red\nblue sky\ngreens\n")):
        (tmp_path / f"{name}.txt").write_text(listed)
        label(images=str(tmp_path / "photos"), wordlist=str(tmp_path / f"{name}.txt"), top_n=1, out=tmp_path / name)
    return tmp_path / "captions.json", tmp_path / "one", tmp_path / "two"


def test_every_word_of_the_captions_counts_for_every_list(folders: tuple[Path, Path, Path]) -> None:
    captions, *labels = folders
    stores = [open_labels(folder) for folder in labels]
    images, spoken = word_lists.captioned(captions, stores)
    assert images == [f"{number}.png" for number in range(6)]
    one, two = (word_lists.row(store, images, spoken, phrases=False) for store in stores)
    # of each photo: its colour, the plural, unicorns. `one` has red, reds, green, greens; `two` red, reds, greens
    assert one.own == pytest.approx((4 * 2 + 0) / 18)
    assert two.own == pytest.approx((2 * 2 + 2 * 1) / 18)
    assert (one.other, two.other) == (0, 0)
    assert one.lift.hit == pytest.approx(one.own * 18 / 12)  # unicorns, in all captions, do not count


def test_phrases_stand_for_their_words(folders: tuple[Path, Path, Path]) -> None:
    captions, *labels = folders
    stores = [open_labels(folder) for folder in labels]
    images, spoken = word_lists.captioned(captions, stores)
    one, two = (word_lists.row(store, images, spoken, phrases=True) for store in stores)
    assert one == word_lists.row(stores[0], images, spoken, phrases=False)
    assert two.own == pytest.approx((2 * 2 + 2 * 1 + 2 * 1) / 18)


def test_the_table(
    folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["word_lists", *map(str, folders)])
    monkeypatch.setenv("COLUMNS", "300")
    word_lists.main()
    said = capsys.readouterr().out
    assert "6 photos" in said
    assert "44.4%" in said


ROWS = ("lm", "sea", "sea-first", "sea-first-shuffled")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("compare")
    make_captioned(root / "data")
    tiny_rows(root / "rows.yaml")
    return root


def options(out: str, rows: tuple[str, ...] = ROWS) -> list[str]:
    given = ["--data", "data", "--out", out, "--device", "cpu", "--seeds", "1"]
    return ["rows.yaml", *given, "--rows", *rows]


@pytest.fixture(scope="module")
def whole(world: Path) -> Path:
    assert compared(world, options("whole")) == 0
    return world / "whole"


def results(out: Path) -> dict[str, dict[str, float]]:
    return {line["row"]: line for line in map(json.loads, (out / "results.jsonl").read_text().splitlines())}


@pytest.mark.slow
def test_every_row_is_measured_and_shown(whole: Path) -> None:
    found = results(whole)
    assert list(found) == list(ROWS)
    for name in ("right_photo_gain", "right_photo_gain_se", "lm_loss_other", "yes_no_accuracy", "label_hit@10"):
        assert all(name in row for row in found.values()), name
    assert len({row["lm_loss"] for row in found.values()}) == len(ROWS)  # every row trains in its own way
    table, chart = (whole / "table.md").read_text(), (whole / "chart.svg").read_text()
    titles = ("L_lm alone", "L_lm + SEA at λ = 1", "SEA first, then L_lm", "SEA first with shuffled labels, then L_lm")
    for title in titles:
        assert f"| {title} | 1 |" in table
        assert title in chart
    assert CHARTED["right_photo_gain"] in chart


@pytest.mark.slow
def test_shuffled_labels_are_the_same_labels_of_other_photos(whole: Path) -> None:
    own, other = open_labels(whole / "labels"), open_labels(whole / "shuffled")
    trained = [f"{number:02d}.png" for number in range(TRAIN)]
    assert sorted(other.ids) == trained
    rows = [[store[name].word_ids.tolist() for name in trained] for store in (own, other)]
    assert sorted(rows[0]) == sorted(rows[1])
    assert all(one != another for one, another in zip(*rows, strict=True))
    scores = [np.sort(np.stack([store[name].scores for name in trained]).ravel()) for store in (own, other)]
    assert (scores[0] == scores[1]).all()


@pytest.mark.slow
@pytest.mark.parametrize(("event", "step", "row"), [("log", 2, "sea-first-shuffled"), ("save", 3, "lm")])
def test_killed_it_goes_on_to_the_same_results(  # in the stage before L_lm, and in that of L_lm
    world: Path, whole: Path, event: str, step: int, row: str, monkeypatch: pytest.MonkeyPatch, program: Begin
) -> None:
    given = options(f"killed-{event}", (row,))
    monkeypatch.chdir(world)
    done = program(event, step, "--", *given, main=compare_world.main)
    assert done.wait() == -signal.SIGKILL, done.stderr
    assert not (world / f"killed-{event}" / "results").exists()
    assert compared(world, given) == 0
    assert results(world / f"killed-{event}")[row] == results(whole)[row]


@pytest.mark.slow
def test_stage_2_begins_with_the_row_before(world: Path, whole: Path) -> None:
    assert compared(world, options("whole", ("questions-lm",))) == 0
    found = json.loads((whole / "results" / "questions-lm" / "seed-1.json").read_bytes())
    assert list(found["recipes"]) == ["language", "questions"]
    before = [path.name.rpartition("-")[0] for path in (whole / "runs" / "train").iterdir()]
    assert before.count("lm") == 1  # not trained again
    assert {"vqa_accuracy", "answers_lm_loss", "answers_right_photo_gain", "yes_no_accuracy"} <= found["metrics"].keys()
    asked = json.loads((whole / "questions.json").read_text())
    assert len(asked) == 2 * TRAIN
    assert all((world / "data" / record["image"]).is_file() for record in asked)


@pytest.mark.slow
def test_what_is_finished_is_left_alone_and_other_settings_are_refused(
    world: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.stat().st_mtime_ns for file in (whole / "results").rglob("*.json")}
    with monkeypatch.context() as patch:
        patch.setattr("tests.bench.compare.__main__.train_stages", None)
        assert compared(world, options("whole")) == 0
    assert {file: file.stat().st_mtime_ns for file in (whole / "results").rglob("*.json")} == before
    assert compared(world, [*options("whole"), "--steps", "2"]) == 1
    assert "is of other settings" in capsys.readouterr().out


@pytest.mark.slow
def test_rows_that_are_not_there_yet_are_missing(world: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("tests.bench.compare.__main__.train_stages", Mock(side_effect=UserError("not today")))
        assert compared(world, options("whole", (*ROWS, "basic"))) == 1
    assert "| L_lm + BASIC, raw | missing |" in (whole / "table.md").read_text()
    assert "L_lm + BASIC, raw (missing)" in (whole / "chart.svg").read_text()


@pytest.mark.slow
def test_label_hit_without_the_labels_encoder_is_that_of_evaluate(world: Path, whole: Path) -> None:
    found = json.loads((whole / "results" / "sea-first" / "seed-1.json").read_bytes())
    model, data = whole / found["folder"] / "model", world / "data"
    hits = label_hits(model, data / "heldout.json", data / "photos", whole / "labels", "cpu")
    assert hits == {name: found["metrics"][name] for name in hits}
    assert hits["label_hit@10"] > 0


@pytest.mark.slow
def test_a_pack_is_cut_into_small_folders_that_hold_all(world: Path, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "x.whl").write_bytes(b"wheel")
    out, few = tmp_path / "pack", ["--photos", "6", "--held-out", "2", "--mib", "0.2"]
    given = ["--data", str(world / "data"), "--wheels", str(wheels), "--out", str(out), *few]
    with tiny_parts(world), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["pack", *given])
        runpy.run_module("tests.bench.compare.pack", run_name="__main__")
    folders = sorted((path for path in out.iterdir()), key=lambda path: int(path.name))
    assert len(folders) > 2
    assert all(sum(file.stat().st_size for file in folder.iterdir()) <= 0.2 * 2**20 for folder in folders)
    whole = b"".join(next(folder.glob("piece.*")).read_bytes() for folder in folders)
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        tar.extractall(tmp_path / "there", filter="data")
    there = tmp_path / "there"
    assert len(list((there / "data" / "photos").iterdir())) == 8
    assert (there / "wheels" / "x.whl").is_file()
    assert len(open_labels(there / "work" / "labels")) == 8
    assert len(open_labels(there / "work" / "shuffled")) == 6
    with pytest.MonkeyPatch.context() as patch:  # no encoder there
        patch.setattr("tests.bench.compare.__main__.find_spec", lambda name: None)
        rows = ["--rows", "sea-first-shuffled", "--seeds", "0", "--device", "cpu"]
        assert compared(there, [str(world / "rows.yaml"), "--data", "data", "--out", "work", *rows]) == 0
    assert "label_hit@10" in results(there / "work")["sea-first-shuffled"]
    subprocess.run(["bash", "-n", folders[0] / "run.sh"], check=True)


@pytest.mark.slow
def test_data_without_held_out_files_is_measured_as_the_recipe_says(world: Path, whole: Path) -> None:
    few = ["max_steps=1", "warmup_steps=0", "per_device_train_batch_size=2"]
    given = ["stages.align=null", "model=../whole/models/seed-1", "labels.path=../whole/labels", "data.held_out=2"]
    given += [f"stages.language.training_arguments.{one}" for one in few]
    (world / "plain.yaml").write_text(yaml.safe_dump({"a row": {"recipe": "captions-recipe.yaml", "set": given}}))
    data = ["--data", "data/train.json", "--images", "data/photos", "--out", "plain", "--device", "cpu"]
    assert compared(world, ["plain.yaml", *data, "--seeds", "0", "1"]) == 0
    table = (world / "plain" / "table.md").read_text()
    assert "| a row | 0 1 |" in table
    assert "label_hit@10" in table
    assert "yes_no_accuracy" not in table
