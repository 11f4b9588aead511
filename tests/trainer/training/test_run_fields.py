"""What makes two runs one: a change of anything that decides the weights is another run, whatever it is called."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sea_pipeline import open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT
from sea_pipeline.labels.run import LabelSettings, label_images
from sea_pipeline.storage.hashing import fingerprint_of
from sea_pipeline.storage.locks import claimed_for_run
from tests.support.heard import Heard
from tests.support.refused import refused
from tests.support.run_values import write_run
from tests.support.tiny_models import tiny_llm, tiny_vision
from tests.support.tiny_runs import FinishedRuns, World, label_settings, logged, short_recipe, tiny_recipe
from tests.support.world import draw
from trainer.model.assemble import init_model
from trainer.model.digests import start_folder, weights_digest
from trainer.recipes.recipe import Parts, Recipe
from trainer.teacher.run import TeachSettings, teach_images
from trainer.training import run as train_run
from trainer.training.align_trainer import AlignTrainer
from trainer.training.run import TrainRun, train, train_stages
from trainer.training.run_folder import begin_run, hash_images, run_fields


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
    ("changes", "field"),
    [
        ({"loss": {"sea": {"weight": 2.0}}}, "loss.sea.weight"),
        ({"learning_rates": {"llm": 1e-4}}, "learning_rates.llm"),
        ({"seed": 4}, "seed"),
        ({"training_arguments": {"max_steps": 3}}, "training_arguments.max_steps: 2 there, 3 asked for"),
        ({"labels": {"transfer": True}}, "labels.transfer: false there, true asked for"),
        (
            {"training_arguments": {"max_steps": 2, "gradient_accumulation_steps": 2}},
            "processes x training_arguments.gradient_accumulation_steps: 1 there, 2 asked for",
        ),
    ],
)
def test_another_recipe(changes: dict[str, Any], field: str, tiny: World, finished: FinishedRuns) -> None:
    with pytest.raises(UserError, match=f": holds another run: {field}.*; choose another --out") as refused:
        train(short_recipe(tiny, **changes), finished(short_recipe(tiny)))
    assert str(refused.value).count(";") == 1, "only what differs is named"


def test_pixels_that_the_tower_leaves_out_are_a_field_with_labels(tiny: World, finished: FinishedRuns) -> None:
    """Its labels lie elsewhere than before this was known. Runs of other towers keep their fields."""
    recipe = short_recipe(tiny)
    finished(recipe)  # and so are its labels
    inputs: Any = train_run._inputs(recipe, SILENT)
    fields = run_fields(inputs, 1)
    assert "reach" not in fields
    cut = replace(inputs, folder=replace(inputs.folder, reach=(1.0, 0.9)))
    assert run_fields(cut, 1) == fields | {"reach": [1.0, 0.9]}
    assert "reach" not in run_fields(replace(cut, store=None), 1)


ASIDE = {
    "max_steps": 2, "save_steps": 1, "logging_steps": 2, "dataloader_num_workers": 1, "ddp_timeout": 7200,
    "per_device_eval_batch_size": 3, "run_name": "mine", "project": "mine", "torch_empty_cache_steps": 5,
    "log_level": "error", "log_on_each_node": False, "skip_memory_metrics": False, "report_to": "tensorboard",
    "include_num_input_tokens_seen": "all", "gradient_accumulation_steps": 1, "weight_decay": 0.0,
}  # fmt: skip
"""What decides no weights, and defaults."""


def test_what_does_not_decide_the_weights_makes_no_other_run(
    tiny: World, finished: FinishedRuns, tmp_path: Path
) -> None:
    """A name, how often it speaks, a default that is written out, the same model elsewhere."""
    model = shutil.copytree(tiny.model, tmp_path / "moved")
    other = short_recipe(tiny, model=str(model), name="other", evaluate_every=2, training_arguments=ASIDE)
    assert len(logged(train(other, finished(short_recipe(tiny))).out)) == 2, "it was finished"


def test_a_finished_run_may_have_had_other_processes(
    tiny: World, finished: FinishedRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with FSDP, which one process cannot have."""
    out = finished.copy(short_recipe(tiny), tmp_path / "out")
    (summary, record) = (json.loads((out / name).read_text()) for name in ("summary.json", "run.json"))
    sharded = {"max_steps": 2, "fsdp": True, "fsdp_config": {"version": 2}}
    record["recipe"]["training_arguments"] |= sharded
    record["fields"]["recipe"]["training_arguments"] |= sharded | {"gradient_accumulation_steps": 8}
    write_run(out, record)
    recipe = short_recipe(tiny, training_arguments=sharded)
    assert train(recipe, out).summary == summary
    monkeypatch.setattr(train_run, "_Training", lambda *given: given)
    stage = tiny_recipe(tiny, training_arguments={"max_steps": 2})
    shutil.move(out, tmp_path / "run" / "first")
    with pytest.raises(AttributeError, match="finish"):  # the second one is trained
        train_stages({"first": recipe, "second": stage}, tmp_path / "run")
    with pytest.raises(UserError, match="gradient_accumulation_steps: 8 there, 2 asked for"):
        train(
            short_recipe(tiny, training_arguments=sharded | {"gradient_accumulation_steps": 2}),
            tmp_path / "run" / "first",
        )


def test_a_run_that_has_saved_nothing_is_begun_anew(
    tiny: World, finished: FinishedRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = short_recipe(tiny, seed=4, data={"evaluate": str(tiny.held_out)})
    whole = finished(right)
    with monkeypatch.context() as patch:
        patch.setattr(AlignTrainer, "training_step", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(short_recipe(tiny, data={"evaluate": str(tiny.held_out)}), tmp_path / "out")
    for left in ("checkpoints/checkpoint-2", "kept/checkpoint-1", "model"):
        saved = Path(shutil.copytree(tmp_path / "out", tmp_path / "saved" / left))
        (saved / left).mkdir(parents=True)
        with pytest.raises(UserError, match="holds another run: seed: 3 there, 4 asked for"):
            train(right, saved)
    with claimed_for_run(tmp_path / "out"), pytest.raises(UserError, match="holds another run: seed"):
        train(right, tmp_path / "out")
    run = train(right, tmp_path / "out")
    record, other = (json.loads((out / "run.json").read_text()) for out in (run.out, whole))
    assert record["fingerprint"] == other["fingerprint"]
    assert run.summary["start"] == json.loads((whole / "summary.json").read_text())["start"]


def test_another_input(tiny: World, finished: FinishedRuns, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps(json.loads(tiny.data.read_text())[:-1]))
    model = Path(shutil.copytree(tiny.model, tmp_path / "other"))
    said = json.loads((model / "processor_config.json").read_text())
    said["image_processor"]["image_mean"] = [0.0, 0.0, 0.0]
    (model / "processor_config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match="holds another run: data"):
        train(short_recipe(tiny, data={"train": str(tmp_path / "data.json")}), finished(short_recipe(tiny)))
    with pytest.raises(UserError, match=r"holds another run: processing.processor_config.json"):
        train(short_recipe(tiny, model=str(model)), finished(short_recipe(tiny)))


def test_rows_that_an_earlier_version_took_are_named(
    tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = json.loads(tiny.data.read_text())
    rows[0]["conversations"][1]["weight"] = 0
    data = tmp_path / "data.json"
    data.write_text(json.dumps(rows))
    recipe = short_recipe(tiny, data={"train": str(data), "bad_rows": "leave_out"})

    def begin(out: Path) -> None:
        inputs = train_run._inputs(recipe, SILENT)
        begin_run(out, run_fields(inputs, 1), recipe, False, (), hash_images(inputs))
        (out / "model").mkdir(exist_ok=True)

    with monkeypatch.context() as earlier:
        earlier.setattr("trainer.data.conversations.VERSION", 11)
        earlier.setattr("trainer.data.conversations.turns_of", lambda row: row["conversations"])
        for _ in range(2):
            begin(tmp_path / "out")
    said = "; 1 of its rows would be left out now: an earlier version took them, or their images were there; finish it"
    with refused(
        said, "put the images back, or choose another --out", start=f"{tmp_path / 'out'}: holds another run: "
    ):
        begin(tmp_path / "out")
    begin(tmp_path / "another")


def test_other_labels(tiny: World, finished: FinishedRuns, tmp_path: Path) -> None:
    """They are no part of a run that uses none."""
    label_images(label_settings(tiny.data.parent / "images", tiny.words, tmp_path / "labels", top_n=2))
    other: dict[str, Any] = {"labels": {"path": str(tmp_path / "labels")}}
    with pytest.raises(UserError, match="holds another run: labels"):
        train(short_recipe(tiny, **other), finished(short_recipe(tiny)))
    without: dict[str, Any] = {"loss": {"sea": {"weight": 0}}}
    whole = finished(short_recipe(tiny, **without))
    assert train(short_recipe(tiny, **without, **other), whole).out == whole


@pytest.mark.slow
@pytest.mark.parametrize("used", ["labels", "teacher"])
def test_labels_and_targets_of_other_photos(used: str, tiny: World, tmp_path: Path) -> None:
    """Of the same names, made with the same settings. Those that were moved, and runs of earlier versions, go on."""
    photos = Path(shutil.copytree(tiny.data.parent / "images", tmp_path / "images"))

    def made(name: str) -> Path:
        if used == "labels":
            label_images(label_settings(photos, tiny.words, tmp_path / name))
        else:
            teach_images(TeachSettings.of(model=tiny.model, data=str(tiny.data), image_root=photos, device="cpu",
                                          codec="float16", out=tmp_path / name))  # fmt: skip
        return tmp_path / name

    def asked(made: Path) -> Recipe:
        if used == "labels":
            return short_recipe(tiny, labels={"path": str(made)})
        return short_recipe(tiny, loss={"sea": {"weight": 0}, "das": {"weight": 1}}, teacher=str(made))

    first = made("first")
    run = train(asked(first), tmp_path / "run")
    moved = Path(shutil.move(first, tmp_path / "moved"))
    assert train(asked(moved), tmp_path / "run") == run
    draw(photos / "00.png", [["blue"] * 4] * 4, size=(48, 48))
    other = made("other")
    with refused(match=rf"holds another run: {used} \(sha256 of their images\): [^;]*; choose another"):
        train(asked(other), tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["fingerprint"] == fingerprint_of(record["fields"])
    assert record.pop("images").keys() == {used}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert train(asked(other), tmp_path / "run") == run


@pytest.mark.parametrize(
    "name", ["layers.1.mlp.up_proj", "linear_1.bias", "vision_tower.encoder.layers.0.mlp.fc1.weight"]
)
def test_another_weight_of_the_model(name: str, tiny: World, finished: FinishedRuns, tmp_path: Path) -> None:
    """Its files have the names and sizes of the first one's."""
    other = changed(tiny.model, name, tmp_path / "other")
    assert weights_digest(other) != weights_digest(tiny.model)
    with pytest.raises(UserError, match=r"holds another run: model\.weights"):
        train(short_recipe(tiny, model=str(other)), finished(short_recipe(tiny)))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_another_weight_of_a_part_that_is_pickled(zipped: bool, tmp_path: Path) -> None:
    """Behind the first bytes of its tensor, in a file of the same size."""

    def start(bias: float) -> Path:
        folder = tmp_path / str(bias)
        if not folder.exists():  # saved again, the old form would hold another address of memory
            folder.mkdir()
            weight = torch.zeros(5000)
            weight[-1] = bias
            torch.save({"weight": weight}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        shutil.copytree(folder, tmp_path / "part", dirs_exist_ok=True)
        parts = {"vision": str(tmp_path / "part"), "llm": str(tmp_path / "part"), "projector": "mlp2x_gelu"}
        return start_folder(Recipe.model_validate({"model": parts}))

    assert start(1.0) == start(1.0) != start(2.0)


def test_what_systems_leave_behind_is_no_part_of_a_model_or_a_run(
    tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny.model, tmp_path / "a:b" / "model")
    (tmp_path / "run:1").mkdir()
    for folder in ("a:b/model", "run:1"):
        for left in ("._model.safetensors", ".DS_Store", "lost+found", "model.safetensors~"):
            (tmp_path / folder / left).write_bytes(b"left behind")
    monkeypatch.chdir(tmp_path)
    train(short_recipe(tiny, model="a:b/model"), Path("run:1"))
    assert weights_digest(tmp_path / "a:b" / "model") == weights_digest(tiny.model)
    made = {path.name for path in (tmp_path / "run:1" / "model").iterdir()}
    assert made == {path.name for path in tiny.model.iterdir()}


@pytest.mark.slow
def test_without_a_name_other_images_and_another_measure_are_runs_of_their_own(
    tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_run._Training, "finish", lambda training: TrainRun(training.out, {}))
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
    assert len({train(short_recipe(tiny, **change)).out for change in changes}) == 4
    assert train(short_recipe(tiny)).out == train(short_recipe(tiny, name="run")).out


@pytest.mark.slow
def test_a_run_without_a_name_is_found_where_its_project_has_moved(
    tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And by the name that earlier versions gave it."""
    monkeypatch.setattr(train_run._Training, "finish", lambda training: TrainRun(training.out, {}))
    for folder in (tiny.data.parent / "images", tiny.labels, tiny.model):
        shutil.copytree(folder, tmp_path / "a" / folder.name)
    shutil.copy(tiny.data, tmp_path / "a" / "data.json")
    recipe = tiny_recipe(tiny, model="model", data={"train": "data.json", "image_root": "images"})
    monkeypatch.chdir(tmp_path / "a")
    out = train(recipe).out
    (tmp_path / "a").rename(tmp_path / "b")
    monkeypatch.chdir(tmp_path / "b")
    assert train(recipe).out == out
    fields = json.loads((out / "run.json").read_text())["fields"]
    others = {"image_root": str(tmp_path / "b" / "images"), "evaluate": None}
    earlier = out.with_name(f"run-{fingerprint_of(fields | others)[:8]}")
    out.rename(earlier)
    assert train(recipe).out == earlier


@pytest.mark.slow
@pytest.mark.parametrize("named", [True, False])
def test_a_run_goes_on_with_the_labels_that_it_was_begun_with(
    named: bool, tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newer ones that fit, too, are for other runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_run._Training, "finish", lambda training: TrainRun(training.out, {}))
    shutil.copytree(tiny.labels, "runs/labels/first")
    recipe = short_recipe(tiny, labels={"path": None})
    out = train(recipe, Path("out") if named else None).out
    begun = (out / "run.json").read_bytes()
    label_images(label_settings(tiny.data.parent / "images", tiny.words, Path("runs/labels/second"), top_n=2))
    again = train(recipe, Path("out") if named else None).out
    assert (again == out, (out / "run.json").read_bytes() == begun) == (named, True)


@pytest.mark.slow
def test_labels_of_more_images_of_the_data_are_others(tiny: World, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    every = sorted(open_labels(tiny.labels).ids)
    for name in every[:4]:
        shutil.copy2(tiny.data.parent / "images" / name, images / name)
    asked = {"images": str(images), "wordlist": str(tiny.words), "top_n": 3, "out": out, "device": "cpu"}
    label_images(LabelSettings.of(**asked))
    recipe = short_recipe(tiny, labels={"path": str(out)})
    first = train(recipe, tmp_path / "out")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(images / "of no record.png")
    label_images(LabelSettings.of(**asked, extend=True))
    assert train(recipe, tmp_path / "out") == first
    shutil.copy2(tiny.data.parent / "images" / every[4], images / every[4])
    label_images(LabelSettings.of(**asked, extend=True))
    heard, grown = Heard(), "3 of its images had labels when it began, and 4 have some now"
    assert train(recipe, tmp_path / "out", reporter=heard) == first
    assert any(said.endswith(f"this run is finished; {grown}") for said in heard.lines)
    (tmp_path / "out" / "summary.json").unlink()  # as if it were stopped after its last checkpoint
    with refused(f"{grown}; remove this folder to begin it again with them, or choose another --out"):
        train(recipe, tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    train(recipe, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "run.json").read_text())["fields"]["labelled"] == 4


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
