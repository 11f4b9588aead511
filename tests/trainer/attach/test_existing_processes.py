"""Recipes of existing models by two processes: what one process trains, whatever the family, and exact resume."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.heard import Heard
from tests.support.run_values import EVEN, close, copied, values, weights
from tests.support.tiny_runs import colours, evaluations, logged
from tests.support.two_processes import WHOLE, Ended, Job, launch, said
from tests.trainer.attach.existing import ExistingWorld, make_existing
from tests.trainer.attach.worlds import Pictures
from trainer.recipes.recipe import Recipe
from trainer.training.run import train

pytestmark = pytest.mark.processes
OFF: dict[str, Any] = {"das": {"weight": 0}, "sds": {"weight": 0}}
RUNS: dict[str, dict[str, Any]] = {
    # Of 5 rows 2, 2 and 1: in every second step the second process has nothing.
    "paligemma": {"training_arguments": {"per_device_train_batch_size": 2}},
    # Some micro-batches are of a text alone, and the tower trains.
    "qwen2_5_vl": {
        "learning_rates": {"llm": 1e-4, "vision": 1e-4},
        "training_arguments": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2,
                               "activation_checkpointing": True},
    },
    "idefics3": {
        "learning_rates": {"llm": 3e-3},
        "lora": {"rank": 4, "alpha": 8, "dropout": 0},
        "training_arguments": {"per_device_train_batch_size": 4},
    },
    # Of 6 rows 2, 2 and 2: in every second step the second process has nothing, and gathers all the same.
    "llava_next": {
        "loss": {"norm": "token", "sea": {"weight": 1, "gather": True}, **OFF},
        "training_arguments": {"per_device_train_batch_size": 2},
    },
    "llava": {"loss": {"sea": {"weight": 0}}, "training_arguments": {"per_device_train_batch_size": 1}},
}  # fmt: skip
"""By family, what is different: a fixed grid, a merged one, tiles, tiles with negatives gathered, BASIC alone."""
KILLED = "qwen2_5_vl"


class Runs(NamedTuple):
    """Below `folder` each run of `RUNS` by `one` process and by `two`, and one that was killed."""

    folder: Path
    killed: Ended
    left: list[str]
    """Files of the killed run, before the same command was given again."""
    one: Recipe
    """Of the killed run, for one process."""


def recipe_of(name: str, world: ExistingWorld, processes: int) -> Recipe:
    """Four steps with the same global batch, by accumulation, or by a larger batch if negatives are gathered."""
    steps: dict[str, Any] = {"max_steps": 4, "save_steps": 2, "per_device_eval_batch_size": 2, **EVEN}
    data = {"train": str(world.root / "five.json")} if name == "paligemma" else {}
    recipe = world.recipe(name, data=data, evaluate_every=2, **RUNS[name])
    arguments = recipe.training_arguments | steps
    if processes == 1:
        more = "per_device_train_batch_size" if name == "llava_next" else "gradient_accumulation_steps"
        arguments[more] = 2 * arguments.get(more, 1)
    return recipe.model_copy(update={"training_arguments": arguments})


@pytest.fixture(scope="module")
def runs(pictures: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    root: Path = tmp_path_factory.mktemp("together")
    world = make_existing(root, pictures)
    rows = [row for row in json.loads(world.data.read_text()) if row["id"] not in ("turns", "text")]
    (root / "five.json").write_text(json.dumps([*rows, {**rows[0], "id": "fifth", "image": "tall.png"}]))
    with pytest.MonkeyPatch.context() as patch, colours():
        patch.setenv("SEA_PIPELINE_CACHE", str(root / "cache"))
        ones, twos = ({name: recipe_of(name, world, number) for name in RUNS} for number in (1, 2))
        for name, recipe in ones.items():
            train(recipe, root / "one" / name)
        (root / "two").mkdir()
        again = root / "two" / "again"
        jobs = [Job(recipe, root / "two" / name) for name, recipe in twos.items()]
        jobs.append(Job(twos[KILLED], root / "two" / "from one", begun=(root / "one" / KILLED, 2)))
        killed = launch([*jobs, Job(twos[KILLED], again, killed=(1, 3))])
        left = [str(path.relative_to(again)) for path in again.rglob("*") if path.is_file()]
        ended = launch([Job(twos[KILLED], again)])
        assert ended.returncode == 0, (killed.output + ended.output)[-5000:]
        yield Runs(root, killed, left, ones[KILLED])


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one(name: str, runs: Runs) -> None:
    """Losses, gradient norms and temperature of every step, to 1e-4; the model at the end."""
    one, two = runs.folder / "one" / name, runs.folder / "two" / name
    assert said(two, rank=1) == [WHOLE, WHOLE], "one process speaks"
    close(two, one)
    terms = {"llava_next": {"sea"}, "llava": {"das", "sds"}}.get(name, {"sea", "das", "sds"})
    for line in logged(two):
        assert {f"loss_{term}" for term in ("lm", "sea", "das", "sds")} & line.keys() == {
            f"loss_{term}" for term in {"lm", *terms}
        }


@pytest.mark.parametrize("name", RUNS)
def test_rows_held_out_are_measured_once(name: str, runs: Runs) -> None:
    """Three of them, by two processes."""
    one, two = (evaluations(runs.folder / number / name) for number in ("one", "two"))
    assert [line["step"] for line in two] == [0, 2, 4]
    for ours, theirs in zip(two, one, strict=True):
        assert ours["eval_trained_tokens"] == theirs["eval_trained_tokens"]
        assert {"eval_lm_loss", "eval_right_photo_gain", "eval_label_hit@1", "eval_gap"} <= ours.keys()
        assert ours["measured_on"] == theirs["measured_on"]
        for key in theirs.keys() - {"epoch", "seconds", "measured_on"}:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-4), key


def test_the_same_command_goes_on_exactly(runs: Runs) -> None:
    two = runs.folder / "two"
    assert "Signal 9 (SIGKILL)" in runs.killed.output
    assert "checkpoints/checkpoint-2/trainer_state.json" in runs.left
    assert not any(file.startswith(("model", "summary", "checkpoints/checkpoint-4")) for file in runs.left)
    assert weights(two / "again") == weights(two / KILLED) != {}
    assert values(two / "again") == values(two / KILLED)
    assert [untimed(line) for line in evaluations(two / "again")] == [untimed(o) for o in evaluations(two / KILLED)]
    (going_on,) = (line for line in said(two / "again", rank=0) if line.startswith("going on"))
    assert going_on.endswith("checkpoint-2")


def test_another_number_of_processes_goes_on(runs: Runs, tmp_path: Path) -> None:
    close(runs.folder / "two" / "from one", runs.folder / "one" / KILLED)
    out = copied(runs.folder / "two" / KILLED, tmp_path / "out", 2)
    lines: list[str] = []
    with colours():
        train(runs.one, out, reporter=Heard(lines))
    assert any("checkpoint-2 of 2 processes with 1: samples, weights and optimizer go on" in line for line in lines)
    close(out, runs.folder / "one" / KILLED)


def untimed(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name != "seconds"}
