"""What is advised of a training run's folder, followed to the letter: it ends with a run that is read."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from sea_pipeline.core.errors import UserError
from sea_pipeline.output.records import FILES
from tests.support.refused import refused, refuses
from tests.support.run_values import HARMS
from tests.support.tiny_runs import FinishedRuns, World, tiny_recipe
from trainer.model.checkpoints import TRAINED
from trainer.model.run_record import kept_path, last_step, read_run
from trainer.training.callbacks import Screen
from trainer.training.run import train, train_stages

pytestmark = pytest.mark.slow


def short(tiny: World, **changes: Any) -> Any:
    arguments = {"training_arguments": {"max_steps": 4, "save_steps": 2}, "keep_checkpoints": [1, 3]}
    return tiny_recipe(tiny, **(arguments | changes))


@pytest.fixture
def run(tiny: World, finished: FinishedRuns, tmp_path: Path) -> Path:
    return finished.copy(short(tiny), tmp_path / "run")


def test_an_unfinished_run_is_gone_on_with(command: Any, tiny: World, tmp_path: Path, run: Path) -> None:
    (run / "summary.json").unlink()
    shutil.rmtree(run / "model")
    exported = ("export", run, "--out", tmp_path / "exported")
    for asked, said in (
        (("report", run, "--images", 0, "--out", tmp_path / "r.html"), "run the same sea-pipeline train command again"),
        (exported, "this run is not finished; run the same sea-pipeline train command again, then export it"),
    ):
        refuses(command, said, *asked)
    with pytest.raises(UserError, match=r"found no summary\.json; wait for its end, or, if it was stopped, run"):
        read_run(run)
    train(short(tiny), run, resume=True)
    assert command("report", run, "--images", 0, "--out", tmp_path / "r.html")[0] == 0
    assert command(*exported)[0] == 0
    assert read_run(run).fingerprint


def test_another_step_is_named_or_it_is_trained_again(
    command: Any, tiny: World, finished: FinishedRuns, tmp_path: Path, run: Path
) -> None:
    """Also if a bit of a weight is another, the record of its hash lacks it, or the folder has another step's name."""
    asked = ("export", run, "--out", tmp_path / "exported", "--checkpoint")
    resumed = run / "checkpoints" / "checkpoint-2"
    for step, file, harm in (
        (1, kept_path(run, 1) / TRAINED, HARMS["one bit"]),
        (1, kept_path(run, 1) / TRAINED, HARMS["emptied"]),
        (1, kept_path(run, 1) / FILES, lambda path: path.write_text('{"files": []}')),
        (2, resumed / TRAINED, HARMS["one bit"]),
        (1, kept_path(run, 1), lambda path: (shutil.rmtree(path), shutil.copytree(kept_path(run, 3), path))),
        (1, kept_path(run, 1) / TRAINED, lambda path: (shutil.rmtree(path.parent), path.parent.mkdir())),
    ):
        harm(file)
        line = refuses(command, "name another step, or train it again", *asked, step)
        assert line.startswith(f"error: {file}: ")
    (kept_path(run, 1).parent / "checkpoint-03").mkdir()
    assert "files.json" not in command(*asked, 3)[2]
    (kept_path(run, 3) / FILES).unlink()  # as an earlier version left it, or somebody removed it
    shutil.rmtree(tmp_path / "exported")
    assert "No files.json of the checkpoint says whether" in "".join(map(str, command(*asked, 3)))
    again = finished(short(tiny))
    assert command("export", again, "--out", tmp_path / "x", "--checkpoint", 1)[0] == 0


def test_the_model_that_a_run_began_with_is_put_back(command: Any, tiny: World, tmp_path: Path) -> None:
    model = shutil.copytree(tiny.model, tmp_path / "model")
    run = train(short(tiny, model=str(model)), tmp_path / "run").out
    asked = ("export", run, "--checkpoint", 1, "--out")
    (weights,) = model.glob("*.safetensors")
    held = weights.read_bytes()
    half = len(held) // 2
    for harm, said in (
        (lambda: weights.write_bytes(held[:half] + bytes(len(held) - half)), "which has changed since; put back what"),
        (lambda: shutil.rmtree(model), "which is not there; put it back, or run this where train was run"),
    ):
        harm()
        refuses(command, said, *asked, tmp_path / "x")
        shutil.rmtree(model, ignore_errors=True)
        shutil.copytree(tiny.model, model)
        assert command(*asked, tmp_path / "x")[0] == 0
        shutil.rmtree(tmp_path / "x")


TEXTS = ["", "{", "[]", '{"steps": -1, "recipe": []}', '{"a": NaN}', '{"recipe": {"nmae": 1}, "fields": {}}', "{}"]


def readers(run: Path, tmp_path: Path, name: str) -> list[tuple[object, ...]]:
    """Commands that read a record."""
    exported = ("export", run, "--out", tmp_path / "x")
    asked = [exported, ("report", run, "--images", 0, "--out", tmp_path / "r.html")]
    return asked + ([(*exported, "--checkpoint", 1)] if name == "run.json" else [])


@pytest.mark.parametrize("name", ["run.json", "summary.json"])
def test_a_record_is_restored(command: Any, tiny: World, tmp_path: Path, run: Path, name: str) -> None:
    """A damaged one is a line, whatever reads it; a summary's is of no need to most of them."""
    held = (run / name).read_bytes()
    for text in TEXTS:
        (run / name).write_text(text)
        for each in readers(run, tmp_path, name):
            code, _, line = command(*each)
            assert "Traceback" not in line
            assert "pydantic" not in line
            assert (code, line.count("\n")) in ((1, 1), (0, 0)), line
            assert code == 0 or "restore it" in line or "restore the file" in line, line
            shutil.rmtree(tmp_path / "x", ignore_errors=True)
        with pytest.raises(UserError, match=rf"{name}: .*; restore (it|the file)"):
            read_run(run) if name == "run.json" else last_step(run)
        with pytest.raises(UserError, match=rf"{name}: .*; restore (it|the file)|holds another run"):
            train(short(tiny), run)
    (run / name).write_bytes(held)
    for each in readers(run, tmp_path, name):
        assert command(*each)[0] == 0
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
    assert train(short(tiny), run).summary["steps"] == last_step(run) == 4


def test_another_out_is_chosen_or_resume_left_out(tiny: World, tmp_path: Path, run: Path) -> None:
    with pytest.raises(UserError, match=r"holds another run: .*; choose another --out"):
        train(short(tiny, seed=4), run)
    train(short(tiny, seed=4), tmp_path / "another")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("")
    with pytest.raises(UserError, match="found other files; choose another --out"):
        train(short(tiny), tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes"]
    with pytest.raises(UserError, match="expected a run to go on with; found none; leave out --resume to begin one"):
        train(short(tiny), tmp_path / "new", resume=True)
    assert not (tmp_path / "new").exists()
    assert train(short(tiny), tmp_path / "new").summary["steps"] == 4
    held = (run / "run.json").read_bytes()
    (run / "run.json").unlink()
    for resume in (False, True):
        with refused(match=r"run\.json: expected the record of the run whose .*; put it back, or choose"):
            train(short(tiny), run, resume=resume)
    (run / "run.json").write_bytes(held)
    assert train(short(tiny), run).summary["steps"] == 4
    (run / "run.json").write_text(json.dumps({"fields": []}))
    with pytest.raises(UserError, match=r"run\.json: damaged: fields: .*; restore it, or choose another --out"):
        train(short(tiny), run)


def test_a_resume_of_nothing_makes_neither_model_nor_labels(
    tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for change in ({"model": {"vision": "packaged", "llm": "packaged"}}, {"labels": {"path": None}}):
        recipe = short(tiny, **change)
        for recipes in ({"": recipe}, {"one": recipe, "two": recipe}):
            with pytest.raises(UserError, match=r"expected a run to go on with; found none; leave out --resume"):
                train_stages(recipes, resume=True)
    assert not [name for name in ("models", "labels") if (tmp_path / "runs" / name).exists()]


def test_the_same_command_goes_on_when_memory_is_free(
    tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, said in (
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            r"free some memory and run the same command again \(there is no checkpoint yet\), or begin anew",
        ),
        (
            RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:52314"),
            "see what another process of this run has said, and run the same command again",
        ),
        (ImportError("No module named 'x'"), "install what is missing, and run the same command again"),
    ):
        with monkeypatch.context() as patch, pytest.raises(UserError, match=said):
            patch.setattr(Screen, "on_step_end", Mock(side_effect=error))
            train(short(tiny), tmp_path / "run")
    assert train(short(tiny), tmp_path / "run").summary["steps"] == 4


def test_a_mended_image_lets_a_run_go_on(tiny: World, tmp_path: Path) -> None:
    images = shutil.copytree(tiny.data.parent / "images", tmp_path / "images")
    broken = images / json.loads(tiny.data.read_text())[0]["image"]
    held = broken.read_bytes()
    recipe = short(tiny, data={"image_root": str(images)})
    broken.write_bytes(held[: len(held) // 2])
    said = "mend it and go on with --resume, or remove the sample from the data and begin anew with another --out"
    with pytest.raises(UserError, match=said):
        train(recipe, tmp_path / "run")
    rest = tmp_path / "rest.json"
    rest.write_text(json.dumps(json.loads(tiny.data.read_text())[1:]))
    other = short(tiny, data={"image_root": str(images), "train": str(rest)})
    assert train(other, tmp_path / "another").summary["steps"] == 4
    broken.write_bytes(held)
    assert train(recipe, tmp_path / "run", resume=True).summary["steps"] == 4
