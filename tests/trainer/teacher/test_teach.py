"""The teacher's cache: what is in it is what the model computes, and training from it is training online."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sea_pipeline.core.errors import UserError
from sea_pipeline.execution import shard
from tests.support.heard import Heard
from tests.support.refused import refused
from tests.support.run_values import settings
from tests.support.tiny_runs import ROWS, FinishedRuns, World, logged, tiny_recipe, tiny_trainer
from trainer.recipes.recipe import Recipe
from trainer.targets.store import open_targets
from trainer.teacher import run as teach_run
from trainer.teacher.run import teach_images
from trainer.training.run import train

DAS = {"sea": {"weight": 0}, "das": {"weight": 1}, "sds": {"weight": 0.01}}


@pytest.mark.slow
def test_the_targets_are_what_the_model_computes(world: World, targets: Path, tmp_path: Path) -> None:
    store = open_targets(targets)
    assert len(store) == ROWS - 1
    assert store.grid == (4, 4)
    assert store.width == 32
    trainer = tiny_trainer(tiny_recipe(world, loss=DAS), tmp_path / "run")
    model, term = trainer.model.eval(), trainer.model.basic_term
    for row in (0, 1, 5):  # alone: neither the batch nor its padding may matter
        batch = dict(trainer.data_collator([trainer.data[row]]))
        columns = batch["input_ids"] == model.config.image_token_id
        with torch.no_grad(), term.watching(batch, columns, model.get_input_embeddings()) as seen:
            model(**{name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")})
        found = store[trainer.data.rows[row]["images"][0]]
        expected = seen.refined.float().numpy()
        assert found.refined.dtype == found.attention.dtype == np.float32
        np.testing.assert_allclose(found.refined, expected, rtol=1e-3, atol=1e-3)
        degrees = (seen.attention / seen.attention.sum()).numpy()
        np.testing.assert_allclose(found.attention, degrees, rtol=1e-4)
        assert degrees.std() > 0


@pytest.mark.parametrize(
    ("codec", "dtype", "tolerance"),
    [("float16", "float32", 1e-4), ("int8", "float32", 1e-3), ("float16", "bfloat16", 1e-3)],
)
def test_training_from_the_cache_begins_as_online(
    world: World, targets: Path, finished: FinishedRuns, tmp_path: Path, codec: str, dtype: str, tolerance: float
) -> None:
    if (codec, dtype) != ("float16", "float32"):
        targets = tmp_path / "targets"
        teach_images(settings(world, targets, codec=codec, dtype=dtype))
    train(tiny_recipe(world, loss=DAS, teacher=str(targets), frozen_dtype=dtype), tmp_path / "cached")
    online = logged(finished(tiny_recipe(world, loss=DAS, frozen_dtype=dtype)))
    cached = logged(tmp_path / "cached")
    for name in ("loss_lm", "loss_das", "loss_sds", "loss"):
        assert cached[0][name] == pytest.approx(online[0][name], rel=tolerance)
    assert cached[-1]["loss_das"] != online[-1]["loss_das"]  # the teacher online has moved on


@pytest.mark.slow
def test_without_the_llm_the_targets_are_enough(world: World, targets: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(world, loss=DAS | {"lm": 0}, teacher=str(targets))
    assert len(tiny_trainer(recipe, tmp_path / "run").model.model.language_model.layers) == 0
    train(recipe, tmp_path / "out")
    losses = [line["loss_das"] for line in logged(tmp_path / "out")]
    assert losses[-1] < losses[0]
    with pytest.raises(ValueError, match="set teacher to cached targets"):
        tiny_recipe(world, loss=DAS | {"lm": 0})


def test_another_model_is_another_run(world: World, targets: Path, finished: FinishedRuns) -> None:
    other = finished(tiny_recipe(world, training_arguments={"max_steps": 3})) / "model"
    with pytest.raises(UserError, match=r"holds another run.*model\.weights"):
        teach_images(settings(world, targets, model=other))
    with pytest.raises(UserError, match=r"basic\.layer_weights"):
        teach_images(settings(world, targets, basic={"layer_weights": "dec"}))


@pytest.mark.slow
def test_a_bad_image_costs_that_image(world: World, tmp_path: Path) -> None:
    records = json.loads(world.data.read_text())
    shutil.copytree(world.data.parent / "images", tmp_path / "images")
    (tmp_path / "images" / records[3]["image"]).write_bytes(b"no image")
    changed = {"data": str(world.data), "image_root": tmp_path / "images", "max_bad": 0.5}
    done = teach_images(settings(world, tmp_path / "targets", **changed))
    assert (done.report.images, done.report.bad) == (ROWS - 2, 1)
    store = open_targets(tmp_path / "targets")
    assert records[3]["image"] not in store
    recipe = tiny_recipe(world, loss=DAS, teacher=str(tmp_path / "targets"))
    with refused("lacks 1 images", "of which its quarantine says: expected an image", "data.bad_rows: leave_out"):
        train(recipe, tmp_path / "run")
    summary = train(left_out(world, tmp_path / "targets"), tmp_path / "run").summary
    assert summary["rows"]["rows"] == ROWS - 1
    assert summary["rows"]["left out: expected images with a teacher's targets"] == 1
    (tmp_path / "images" / records[3]["image"]).write_bytes((tmp_path / "images" / records[0]["image"]).read_bytes())
    teach_images(settings(world, tmp_path / "mended", **changed))
    recipe = tiny_recipe(world, loss=DAS, teacher=str(tmp_path / "mended"), training_arguments={"max_steps": 1})
    assert train(recipe, tmp_path / "other").summary["rows"]["rows"] == ROWS


@pytest.mark.slow
def test_an_image_that_can_never_be_read_does_not_fail_its_shard(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one, to which the codec is fitted, and the one that a sample shows before another."""
    records = json.loads(world.data.read_text())[:6]
    records[4]["image"] = ["05.png", "04.png"]
    records[4]["conversations"][0]["value"] = "<image><image> what?"
    (tmp_path / "data.json").write_text(json.dumps([records[4], *records[:4]]))
    asked = {"data": str(tmp_path / "data.json"), "max_bad": 0.9, "shard_size": 2}
    teach_images(settings(world, tmp_path / "whole", **asked))
    plain, broken = Path.read_bytes, {"00.png", "05.png"}

    def read_bytes(path: Path) -> bytes:
        if path.name in broken:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return plain(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_bytes)
        patch.setattr(shard, "_PAUSES", (0.0, 0.0))
        done = teach_images(settings(world, tmp_path / "targets", **asked))
    assert (done.report.images, done.report.bad, done.report.failed) == (2, 3, {})
    bad = {row["image_id"]: (row["error"], row["message"]) for row in open_targets(tmp_path / "targets").quarantine()}
    assert bad["00.png"] == bad["05.png"] == ("OSError", bad["00.png"][1])
    assert bad["04.png"] == ("OtherImage", f"its sample also shows 05.png, which cannot be used: {bad['05.png'][1]}")
    teach_images(settings(world, tmp_path / "targets", **asked, retry_bad=True))
    whole, mended = (open_targets(tmp_path / name) for name in ("whole", "targets"))
    for image in whole:
        np.testing.assert_array_equal(mended[image].refined, whole[image].refined)


def left_out(world: World, targets: Path) -> Recipe:
    arguments = {"max_steps": 1}
    data = {"bad_rows": "leave_out"}
    return tiny_recipe(world, loss=DAS, teacher=str(targets), data=data, training_arguments=arguments)


def test_images_that_were_not_taught_cost_their_rows(world: World, tmp_path: Path) -> None:
    teach_images(settings(world, tmp_path / "targets", limit=4))
    recipe = tiny_recipe(world, loss=DAS, teacher=str(tmp_path / "targets"))
    with refused(f"lacks {ROWS - 5} images", "run sea-pipeline teacher on that file", "data.bad_rows: leave_out"):
        train(recipe, tmp_path / "run")
    rows = train(left_out(world, tmp_path / "targets"), tmp_path / "run").summary["rows"]
    assert rows["left out: expected images with a teacher's targets"] == ROWS - 5
    assert rows["rows"] == 5, "a text without an image needs none"


def test_images_that_the_teacher_did_not_reach_cost_their_rows(world: World, tmp_path: Path) -> None:
    records = json.loads(world.data.read_text())
    records[5] = json.loads(json.dumps(records[5]).replace("<image>", "a " * 100 + "<image>"))
    (tmp_path / "data.json").write_text(json.dumps(records))
    changed = {"data": str(tmp_path / "data.json"), "max_length": 250, "bad_rows": "leave_out", "max_bad": 0.5}
    changed["image_root"] = world.data.parent / "images"
    teach_images(settings(world, tmp_path / "targets", **changed))
    data = {"train": str(tmp_path / "data.json")}
    recipe = tiny_recipe(world, loss=DAS, teacher=str(tmp_path / "targets"), data=data)
    with refused("lacks 1 images", "raise --max-length", "another --out", "data.bad_rows: leave_out"):
        train(recipe, tmp_path / "run")


def test_of_several_samples_the_first_counts(world: World, tmp_path: Path) -> None:
    records = json.loads(world.data.read_text())
    first, other = records[0], records[1] | {"id": "again", "image": records[0]["image"]}
    for name, kept in (("both", [first, other]), ("one", [first])):
        (tmp_path / f"{name}.json").write_text(json.dumps(kept))
        teach_images(settings(world, tmp_path / name, data=str(tmp_path / f"{name}.json")))
    both, one = (open_targets(tmp_path / name)[first["image"]] for name in ("both", "one"))
    np.testing.assert_array_equal(both.attention, one.attention)
    np.testing.assert_array_equal(both.refined, one.refined)


def test_much_is_asked_about(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teach_run, "_LARGE", 1000)
    said: list[str] = []
    with pytest.raises(UserError, match="--yes"):
        teach_images(settings(world, tmp_path / "targets"), Heard(said))
    assert f"{ROWS - 1} images" in said[0]
    assert not (tmp_path / "targets").exists()
    teach_images(settings(world, tmp_path / "targets", yes=True))


@pytest.mark.slow
def test_the_command(world: World, tmp_path: Path, command: Any) -> None:
    where = ("--data", world.data, "--image-root", world.data.parent / "images", "--out", tmp_path / "targets")
    code, stdout, stderr = command("teacher", "--model", world.model, *where, "--codec", "float16")
    assert code == 0, stderr
    assert f"{ROWS - 1} taught, 0 bad" in stdout
    assert "float16" in stderr
    code, again, _ = command("teacher", "--model", world.model, *where, "--codec", "float16", "--json")
    made = json.loads(again)
    assert (made["folder"], made["finished"], made["run"]["images"]) == (str(tmp_path / "targets"), True, 0)
    assert command("verify", tmp_path / "targets")[0] == 0
    for option, value, said in (
        ("--layers", "3", "basic.layers"),
        ("--layers", "9", "the LLM has 4 layers"),
        ("--image-aspect-ratio", "pad", "image_aspect_ratio"),
    ):
        code, _, stderr = command("teacher", "--model", world.model, *where, option, value)
        assert code == 1
        assert said in stderr
        assert "Traceback" not in stderr
        assert "damaged" not in stderr


def test_the_sample_photos(world: World, tmp_path: Path) -> None:
    run = teach_images(settings(world, tmp_path / "out", data="samples", image_root=None, limit=2))
    assert (run.report.images, run.report.bad) == (2, 0)


@pytest.mark.slow
def test_the_cache_is_not_asked_for_held_out_images(world: World, targets: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"data": {"evaluate": str(world.held_out)}, "training_arguments": {"max_steps": 1}}
    run = train(tiny_recipe(world, loss=DAS, teacher=str(targets), **asked), tmp_path / "run")
    assert run.summary["end"]["lm_loss"] > 0


@pytest.mark.slow
def test_settings_that_the_cache_was_not_made_with_are_refused(world: World, tmp_path: Path) -> None:
    teach_images(settings(world, tmp_path / "targets", basic={"layers": 2}))
    for basic in ({"layers": 1}, {"layer_weights": "dec"}, {"normalise": "unit"}, {"text": "prompt"}, {"outliers": 3}):
        recipe = tiny_recipe(world, loss=DAS | {"basic": basic}, teacher=str(tmp_path / "targets"))
        with pytest.raises(UserError, match=rf"loss\.basic\.{next(iter(basic))}: .* were made with"):
            train(recipe, tmp_path / "run")
    same = {"layers": 2, "layer_weights": "inc", "degree": "equal"}
    recipe = tiny_recipe(world, loss=DAS | {"basic": same}, teacher=str(tmp_path / "targets"))
    tiny_trainer(recipe, tmp_path / "run")  # which opens them


@pytest.mark.slow
def test_what_only_l_sds_sees_is_left_as_it_was_trained(world: World, targets: Path, tmp_path: Path) -> None:
    lengths = {}
    for name, loss in (("das", DAS | {"sds": {"weight": 0}}), ("sds", DAS)):
        recipe = tiny_recipe(world, loss=loss | {"lm": 0}, teacher=str(targets))
        train(recipe, tmp_path / name)
        again = tiny_trainer(recipe.model_copy(update={"model": tmp_path / name / "model"}), tmp_path / f"{name}-again")
        with torch.no_grad():
            given = again.model(**again.data_collator([again.data[row] for row in range(4)]))
        lengths[name] = float(given["visual_norm"])
        embeddings = again.model.basic_term.embeddings(again.model.get_input_embeddings())
        lengths["embeddings"] = float(embeddings.norm(dim=-1).mean())
    assert lengths["das"] == pytest.approx(lengths["embeddings"], rel=0.1)
    assert lengths["sds"] == pytest.approx(logged(tmp_path / "sds")[-1]["visual_norm"], rel=0.3)


def test_an_image_that_every_sample_cuts_off_is_quarantined(world: World, tmp_path: Path) -> None:
    records = json.loads(world.data.read_text())
    first = records[0] | {"image": [records[0]["image"], records[1]["image"]]}
    first["conversations"][0]["value"] = "<image>\nWhat do you see?"
    first["conversations"] += [
        {"from": "human", "value": "What colour is it? " * 60},
        {"from": "gpt", "value": "red"},
        {"from": "human", "value": "<image>\nAnd here?"},
        {"from": "gpt", "value": "green"},
    ]
    (tmp_path / "two.json").write_text(json.dumps([first, records[3]]))
    changed = {"data": str(tmp_path / "two.json"), "max_length": 230, "max_bad": 0.5}
    done = teach_images(settings(world, tmp_path / "targets", **changed))
    assert next(iter(done.ledger.quarantined()))["error"] == "CutOff"
