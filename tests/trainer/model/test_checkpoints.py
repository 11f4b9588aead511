"""A checkpoint is whole or it is not there: damage to any file, a full disk, a kill at any moment."""

import itertools
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.support import tiny_runs
from tests.support.damage import without
from tests.support.heard import Heard
from tests.support.kills import killed_around
from tests.support.programs import Begin
from tests.support.refused import refused
from tests.support.run_values import HARMS, PARTS, copied, values, weights, write_run
from tests.support.tiny_runs import FinishedRuns, World, tiny_recipe
from trainer.model import checkpoints
from trainer.recipes.recipe import Recipe
from trainer.training.run import train

SAVED = (2, 4, 6)
NONE = "expected a whole checkpoint in .*, found none"


def short(world: World, **arguments: object) -> Recipe:
    """Six steps, the last of them without a checkpoint."""
    loss = {"sea": {"weight": "auto"}, "measure_every": 1}
    return tiny_recipe(world, loss=loss, training_arguments={"max_steps": 6, "save_steps": 2} | arguments)


@pytest.fixture
def whole(tiny: World, finished: FinishedRuns) -> Path:
    """A run that nothing happens to."""
    return finished(short(tiny))


@pytest.fixture
def stopped(whole: Path, tmp_path: Path) -> Path:
    """The same run as a kill behind step 4 leaves it."""
    return copied(whole, tmp_path / "out", 4)


def of(out: Path, step: int) -> Path:
    return out / "checkpoints" / f"checkpoint-{step}"


def steps_of(out: Path) -> list[int]:
    return sorted(checkpoints.step_of(path) for path in (out / "checkpoints").glob("checkpoint-*"))


def resumed(world: World, out: Path, **arguments: object) -> list[str]:
    """What a run says that goes on."""
    said: list[str] = []
    train(short(world, **arguments), out, reporter=Heard(said))
    return said


@pytest.mark.parametrize("part", PARTS)
def test_the_one_before_a_damaged_checkpoint_is_used(part: str, tiny: World, stopped: Path, whole: Path) -> None:
    file = of(stopped, 4) / PARTS[part]
    plain = file.read_bytes()
    for harm in HARMS.values():
        file.write_bytes(plain)
        harm(file)
        if part == "record" and not file.exists():
            continue
        said: list[str] = []
        assert checkpoints.latest(stopped / "checkpoints", Heard(said)) == of(stopped, 2)
        (line,) = said
        assert line.startswith(f"{file}: ")
        assert line.endswith("; this checkpoint is left out")
        assert "\n" not in line
    HARMS["cut" if part == "record" else "gone"](file)
    assert f"going on from {of(stopped, 2)}" in resumed(tiny, stopped)
    assert weights(stopped) == weights(whole) != {}
    assert values(stopped) == values(whole)
    assert steps_of(stopped) == list(SAVED)
    assert checkpoints.latest(stopped / "checkpoints") == of(stopped, 6)


def test_without_a_whole_one_a_line_says_so(tiny: World, stopped: Path, whole: Path) -> None:
    """Its advice begins the run anew."""
    for harm, part in itertools.product(("gone", "emptied", "cut"), sorted(set(PARTS) - {"record"})):
        held = {file: file.read_bytes() for file in (of(stopped, step) / PARTS[part] for step in (2, 4))}
        for file in held:
            HARMS[harm](file)
        with refused(f"or remove {stopped / 'checkpoints'} to begin the run anew", match=rf"{PARTS[part]}: .*; {NONE}"):
            checkpoints.latest(stopped / "checkpoints")
        for file, content in held.items():
            file.write_bytes(content)
    for step in (2, 4):
        HARMS["cut"](of(stopped, step) / "optimizer.pt")
    with refused(match=rf"optimizer\.pt: .*{NONE}"):
        resumed(tiny, stopped)
    shutil.rmtree(stopped / "checkpoints")
    resumed(tiny, stopped)
    assert weights(stopped) == weights(whole)


def test_checkpoints_of_older_versions_count_if_they_can_be_read(tiny: World, stopped: Path, whole: Path) -> None:
    """They have no record."""
    for step in (2, 4):
        (of(stopped, step) / "files.json").unlink()
    for part in set(PARTS) - {"record"}:
        file = of(stopped, 4) / PARTS[part]
        plain = file.read_bytes()
        for harm in ("cut", "emptied", "gone"):
            HARMS[harm](file)
            said: list[str] = []
            assert checkpoints.latest(stopped / "checkpoints", Heard(said)) == of(stopped, 2), (part, harm)
            assert len(said) == 1
            file.write_bytes(plain)
    assert f"going on from {of(stopped, 4)}, which an older version wrote; all of it can be read" in resumed(
        tiny, stopped
    )
    assert weights(stopped) == weights(whole)


@pytest.mark.parametrize("limit", [1, 2])
def test_the_last_whole_one_is_never_removed(limit: int, tiny: World, stopped: Path, whole: Path) -> None:
    """The newest is damaged, so the one before is all there is, until another one is whole."""
    HARMS["cut"](of(stopped, 4) / "optimizer.pt")
    for moment in ("sync_folder", "file_record"):
        with killed_around(checkpoints, moment, 1, before=True):
            resumed(tiny, stopped, save_total_limit=limit)
        assert steps_of(stopped) == [2, 4]
        assert checkpoints.latest(stopped / "checkpoints") == of(stopped, 2)
    resumed(tiny, stopped, save_total_limit=limit)
    assert steps_of(stopped) == list(SAVED)[-limit:]
    assert weights(stopped) == weights(whole)


def test_a_damaged_one_goes_before_whole_ones(stopped: Path) -> None:
    """Even where it is the newer: it is of the run as it was before it went on from an older one."""
    HARMS["emptied"](of(stopped, 4) / "scheduler.pt")
    written = checkpoints.unfinished(stopped / "checkpoints") / "checkpoint-3"
    shutil.copytree(of(stopped, 2), written, ignore=shutil.ignore_patterns("files.json"))
    checkpoints.publish(written, stopped / "checkpoints", limit=2)
    assert steps_of(stopped) == [2, 3]


def test_one_of_another_run_is_left_out(tmp_path: Path) -> None:
    """It is neither offered nor counted nor removed. Those of earlier versions do not say whose they are."""
    own, other = (tmp_path / name for name in ("own", "other"))
    for seed, run in enumerate((own, other)):
        checkpoints.make_checkpoints_folder(run / "checkpoints")
        write_run(run, {"fields": {"seed": seed}})
        written = checkpoints.unfinished(run / "checkpoints") / "checkpoint-1"
        checkpoints.save_trained({}, torch.nn.ModuleDict(), written)
        checkpoints.publish(written, run / "checkpoints")
        assert checkpoints.latest(run / "checkpoints") == of(run, 1)
    (of(own, 9)).symlink_to(of(other, 1))
    said: list[str] = []
    assert checkpoints.latest(own / "checkpoints", Heard(said)) == of(own, 1)
    assert re.search(r"checkpoint-9: expected a checkpoint of the run \w{12}…; found one of the run \w{12}…; ", said[0])
    assert list(checkpoints.complete(own / "checkpoints")) == [1]
    for step in (3, 4):
        written = checkpoints.unfinished(own / "checkpoints") / f"checkpoint-{step}"
        checkpoints.save_trained({}, torch.nn.ModuleDict(), written)
        checkpoints.publish(written, own / "checkpoints", limit=2)
    assert steps_of(own) == [3, 4, 9]
    for key in ("run", "step"):
        without(of(other, 1) / "files.json", key)
    assert checkpoints.latest(own / "checkpoints") == of(own, 9)
    assert checkpoints.find_damage(of(own, 4), tmp_path) is None, "its run has lost its record"


@pytest.mark.parametrize("lost", [[], ["files.json"], ["trainer_state.json"]])
def test_one_that_has_the_name_of_another_step_is_left_out(lost: list[str], tmp_path: Path) -> None:
    """Earlier versions wrote no step into the record; what transformers keeps of the run says it, too."""
    for step in (2, 4, 6):
        written = checkpoints.unfinished(tmp_path / "checkpoints") / f"checkpoint-{step}"
        checkpoints.save_trained({}, torch.nn.ModuleDict(), written)
        (written / "trainer_state.json").write_text(json.dumps({"global_step": step, "grad_norm": math.nan}))
        checkpoints.publish(written, tmp_path / "checkpoints")
    if lost != ["trainer_state.json"]:
        without(of(tmp_path, 4) / "files.json", "step")
    shutil.rmtree(of(tmp_path, 6))
    of(tmp_path, 4).rename(of(tmp_path, 6))
    for name in lost:
        (of(tmp_path, 6) / name).unlink()
    expected = f"{of(tmp_path, 6)}: expected a checkpoint of step 6, as its name says; found one of step 4"
    assert checkpoints.find_damage(of(tmp_path, 6), tmp_path, checkpoints.TRAINED) == expected
    said: list[str] = []
    assert checkpoints.latest(tmp_path / "checkpoints", Heard(said)) == of(tmp_path, 2)
    assert len(said) == 1


@pytest.mark.parametrize("harm", ["file", "link"])
def test_what_is_in_the_place_of_checkpoints_is_named(harm: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints"
    path.touch() if harm == "file" else path.symlink_to(tmp_path / "nowhere")
    with refused(f"{path}: expected a folder; found a file, or a link that leads to none; mend or remove it"):
        checkpoints.make_checkpoints_folder(path)
    path.unlink()
    for _ in range(2):
        checkpoints.make_checkpoints_folder(path)


def test_the_best_one_is_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        written = checkpoints.unfinished(tmp_path) / f"checkpoint-{step}"
        written.mkdir(parents=True)
        (written / "trainer_state.json").write_text("{}")
        checkpoints.publish(written, tmp_path, limit=2, best=2 if step > 1 else 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-5"]


MOMENTS = [
    ("save_trained", 1), ("sync_folder", 1), ("file_record", 1), ("sync", 1), ("sync", 2), ("sync", 3), ("_remove", 1),
    ("_remove", 2), ("clear", 2),
]  # fmt: skip
"""In their order: what is on the disk behind one is there before the next, but for what saves the weights."""


@pytest.mark.parametrize(
    ("moment", "call", "before"),
    [*((*moment, True) for moment in MOMENTS), (*MOMENTS[0], False), (*MOMENTS[-1], False)],
)
def test_a_kill_at_any_moment(moment: str, call: int, before: bool, tiny: World, stopped: Path, whole: Path) -> None:
    """As the checkpoint of step 6 is written, and the one of step 2 removed."""
    with killed_around(checkpoints, moment, call, before=before):
        resumed(tiny, stopped, save_total_limit=2)
    newest = checkpoints.latest(stopped / "checkpoints")
    assert newest in (of(stopped, 4), of(stopped, 6))
    assert of(stopped, 4).is_dir()
    resumed(tiny, stopped, save_total_limit=2)
    assert weights(stopped) == weights(whole)
    assert steps_of(stopped) in ([4, 6], [2, 4, 6])  # nothing is written any more where the last one was whole


def test_a_disk_that_fills(tiny: World, stopped: Path, whole: Path, program: Begin) -> None:
    """The optimizer's file may not become as large as it was; then there is room again."""
    recipe = stopped.parent / "recipe.json"
    recipe.write_text(short(tiny).model_dump_json())
    limit = (of(stopped, 4) / "optimizer.pt").stat().st_size - 1
    done = program(recipe, stopped, main=tiny_runs.main, file_size=limit)
    assert done.wait() == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"sea_pipeline.core.errors.UserError: {of(stopped, 6)}: cannot be written: ")
    assert last.endswith("run the same command again (what is finished is kept)")
    assert {path.name for path in (stopped / "checkpoints").iterdir()} == {"checkpoint-2", "checkpoint-4"}
    assert f"going on from {of(stopped, 4)}" in resumed(tiny, stopped)
    assert weights(stopped) == weights(whole)


def test_the_record_names_every_file_and_who_reads_one_reads_all(whole: Path) -> None:
    for step in SAVED:
        assert len({path.stat().st_mode for path in of(whole, step).iterdir()}) == 1
        named = {file["path"] for file in json.loads((of(whole, step) / "files.json").read_text())["files"]}
        there = {path.name for path in of(whole, step).iterdir()} - {"files.json"}
        assert named == there == set(PARTS.values()) - {"files.json"}
