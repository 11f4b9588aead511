"""Two processes do what one does with twice the micro-batches, go on with each other's runs, and end together."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from sea_pipeline.core.errors import UserError
from tests.support.heard import Heard
from tests.support.run_values import ALL, EVEN, close, copied, values, weights
from tests.support.tiny_runs import World, colours, evaluations, logged, tiny_recipe, tiny_trainer
from tests.support.two_processes import WHOLE, Ended, Job, launch, said
from trainer.data.sampler import BLANK
from trainer.recipes.recipe import Recipe
from trainer.training.run import train

pytestmark = pytest.mark.processes
RUNS: dict[str, dict[str, Any]] = {
    # Of 12 samples 5, 5 and 2: in every second step one process has nothing; in `gathered`, micro-step.
    "uneven": {
        "loss": ALL,
        "learning_rates": {"llm": 1e-4, "vision": 1e-4},
        "data": {"sampling": "modality_length"},
        "training_arguments": {"per_device_train_batch_size": 5, "max_grad_norm": 0.0},
    },
    "accumulated": {
        "loss": {"sea": {"weight": "auto"}, "measure_every": 2},
        "training_arguments": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    },
    "lora": {
        "loss": ALL | {"basic": {"lens": "ridge"}},
        "lora": {"rank": 4, "alpha": 8, "dropout": 0},
        "learning_rates": {"llm": 3e-3},
        "training_arguments": {"per_device_train_batch_size": 2},
    },
    "gathered": {
        "loss": {"norm": "token", "sea": {"weight": "auto", "gather": True}, "measure_every": 1},
        "training_arguments": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    },
}
STEPS = dict.fromkeys(RUNS, (2, 4)) | {"lora": (4, 5)}
"""Of each run the steps of its checkpoints, the last of which ends it. An epoch of `lora` has three steps."""
ACCUMULATION, BATCH = "gradient_accumulation_steps", "per_device_train_batch_size"


class Runs(NamedTuple):
    """Below `folder` each run of `RUNS` by `one` process and by `two`, and what was begun by others."""

    folder: Path
    killed: Ended
    left: list[str]
    """Files of the killed run, before the same command was given again."""
    lost: list[str]
    """What the process that was not killed said."""
    recipes: dict[str, Recipe]
    """Of one process."""


def recipe_of(name: str, world: World, model: Path, processes: int) -> Recipe:
    """The same global batch: by accumulation, and where negatives are gathered by a larger batch."""
    recipe = tiny_recipe(world, model=str(model), **RUNS[name])
    arguments = recipe.training_arguments | {"max_steps": STEPS[name][1], "save_steps": STEPS[name][0]} | EVEN
    if processes == 1:
        more = BATCH if name == "gathered" else ACCUMULATION
        arguments[more] = 2 * arguments.get(more, 1)
    if name == "accumulated":
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"evaluate": str(world.held_out)})})
    return recipe.model_copy(update={"training_arguments": arguments})


@pytest.fixture(scope="module")
def runs(_made: World, deep: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    root: Path = tmp_path_factory.mktemp("together")
    ones, twos = ({name: recipe_of(name, _made, deep, number) for name in RUNS} for number in (1, 2))
    with pytest.MonkeyPatch.context() as patch, colours():
        patch.setenv("SEA_PIPELINE_CACHE", str(root / "cache"))
        for name, recipe in ones.items():
            train(recipe, root / "one" / name)
        (root / "two").mkdir()
        uneven, again = twos["uneven"], root / "two" / "again"
        killed = launch([Job(uneven, again, killed=(1, 3))])
        left = [str(path.relative_to(again)) for path in again.rglob("*") if path.is_file()]
        lost = said(again, rank=0)
        begun = (root / "one" / "uneven", 2)
        damaged = copied(root / "one" / "uneven", root / "two" / "damaged", 4) / "checkpoints" / "checkpoint-4"
        (damaged / "optimizer.pt").write_bytes(b"")
        ended = launch([
            *(Job(recipe, root / "two" / name) for name, recipe in twos.items()),
            Job(uneven, again),
            Job(uneven, root / "two" / "damaged"),
            Job(uneven, root / "two" / "full", full=1),
            Job(twos["lora"], root / "two" / "lora again", begun=(root / "two" / "lora", 4)),
            Job(uneven, root / "two" / "from one", begun=begun),
            Job(ones["uneven"], root / "two" / "doubled", begun=begun),
        ])  # fmt: skip
        ended.check()
        yield Runs(root, killed, left, lost, ones)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one(name: str, runs: Runs) -> None:
    """Losses, the weights that `auto` gives, gradient norms and temperature of every step; the model at the end."""
    close(runs.folder / "two" / name, runs.folder / "one" / name)


def test_what_is_compared_is_there(runs: Runs) -> None:
    lines = logged(runs.folder / "two" / "uneven")
    names = {f"{kind}_{name}" for name in ("sea", "das", "sds") for kind in ("loss", "grad_norm", "grad_ratio")}
    assert all(names | {"loss_lm", "grad_norm_lm", "sea_scale", "sea_pairs"} <= line.keys() for line in lines)
    assert len({line["sds_weight"] for line in lines}) == 4, "auto follows"


def test_one_process_writes(runs: Runs) -> None:
    for name in RUNS:
        one, two = (runs.folder / number / name for number in ("one", "two"))
        files = [{str(path.relative_to(out)) for path in out.rglob("*")} for out in (one, two)]
        for step in STEPS[name]:
            state = f"checkpoints/checkpoint-{step}/rng_state"
            assert files[1] - files[0] >= {f"{state}_0.pth", f"{state}_1.pth"}
            files[0].discard(f"{state}.pth")
            files[1] -= {f"{state}_0.pth", f"{state}_1.pth"}
        assert files[0] == files[1]
        assert [line["step"] for line in logged(two)] == list(range(1, STEPS[name][1] + 1))
        assert [line["step"] for line in evaluations(two)] == ([0, 4] if name == "accumulated" else [])
        assert set(said(two, rank=1)) == {WHOLE}, "one process speaks"
        assert any("the run goes to" in line for line in said(two, rank=0))


def test_a_killed_process_ends_the_other(runs: Runs) -> None:
    assert runs.killed.returncode not in (0, None)
    assert "Signal 9 (SIGKILL)" in runs.killed.output
    assert "checkpoints/checkpoint-2/trainer_state.json" in runs.left
    assert "see what another process of this run has said, and run the same command again" in runs.lost[-1]
    assert not any(file.startswith(("model", "summary")) for file in runs.left)


def test_the_same_command_goes_on_exactly(runs: Runs) -> None:
    """After a kill, and from a checkpoint within the second epoch."""
    two = runs.folder / "two"
    for again, whole in (("again", "uneven"), ("lora again", "lora")):
        assert weights(two / again) == weights(two / whole) != {}
        assert values(two / again) == values(two / whole)
        (going_on,) = (line for line in said(two / again, rank=0) if line.startswith("going on"))
        assert going_on.endswith(f"checkpoint-{STEPS[whole][0]}")


CHANGED = "samples, weights and optimizer go on as they were; sums over a step are rounded otherwise, and dropout is"


def test_two_processes_go_on_with_a_run_of_one(runs: Runs) -> None:
    two = runs.folder / "two"
    (going_on,) = (line for line in said(two / "from one", rank=0) if line.startswith("going on"))
    assert f"checkpoint-2 of 1 processes with 2: {CHANGED}" in going_on
    close(two / "from one", runs.folder / "one" / "uneven")


def test_all_processes_leave_a_damaged_checkpoint_out(runs: Runs) -> None:
    two = runs.folder / "two"
    lines = said(two / "damaged", rank=0)
    assert any("checkpoint-4/optimizer.pt: expected" in line and line.endswith("is left out") for line in lines)
    assert any(line.startswith(f"going on from {two / 'damaged' / 'checkpoints' / 'checkpoint-2'}") for line in lines)
    close(two / "damaged", runs.folder / "one" / "uneven")


def test_where_one_process_cannot_write_all_say_so(runs: Runs) -> None:
    """What the second one writes of a checkpoint is the state of its random numbers."""
    out = runs.folder / "two" / "full"
    for rank in (0, 1):
        assert said(out, rank)[-1].startswith(f"{out / 'checkpoints' / 'checkpoint-2'}: cannot be written: ")
    assert list((out / "checkpoints").iterdir()) == []


def test_one_process_goes_on_with_a_run_of_two(runs: Runs, tiny: World, tmp_path: Path) -> None:
    out = copied(runs.folder / "two" / "uneven", tmp_path / "out", 2)
    lines: list[str] = []
    train(runs.recipes["uneven"], out, reporter=Heard(lines))
    assert any(f"checkpoint-2 of 2 processes with 1: {CHANGED}" in line for line in lines)
    close(out, runs.folder / "one" / "uneven")


def test_another_global_batch_is_another_run(runs: Runs, tiny: World, tmp_path: Path) -> None:
    message = r"holds another run: processes x training_arguments\.gradient_accumulation_steps: 2 there, {} asked for"
    for rank in (0, 1):
        assert message.format(4).replace("\\", "") in said(runs.folder / "two" / "doubled", rank)[-1]
    recipe = runs.recipes["uneven"]
    arguments = recipe.training_arguments | {ACCUMULATION: 1}
    out = copied(runs.folder / "two" / "uneven", tmp_path / "out", 2)
    with pytest.raises(UserError, match=message.format(1)):
        train(recipe.model_copy(update={"training_arguments": arguments}), out)


def test_a_blank_sample_is_none(tiny: World, tmp_path: Path) -> None:
    """Beside others it is left out; alone it gives all that trains a gradient of zeros, and the log nothing."""
    recipe = tiny_recipe(tiny, loss=ALL, learning_rates={"llm": 1e-3, "vision": 1e-3})
    trainer = tiny_trainer(recipe, tmp_path / "out")
    data, collate = trainer.data, trainer.data_collator
    alone, beside = collate([data[0]]), collate([data[0], data[BLANK]])
    assert alone.keys() == beside.keys()
    assert all(torch.equal(torch.as_tensor(alone[name]), torch.as_tensor(beside[name])) for name in alone)
    trainer.current_gradient_accumulation_steps = 1
    step = [alone, collate([data[BLANK]] * 2)]
    _, counted = trainer.get_batch_samples(iter(step), 2, torch.device("cpu"))
    loss = trainer.training_step(trainer.model, step[1], counted)
    assert float(loss) == 0
    for name, parameter in trainer.model.named_parameters():
        assert parameter.grad is None if not parameter.requires_grad else not parameter.grad.any(), name
    line = trainer._means.line(trainer.accelerator)
    assert not any(line.values())
    assert not {"visual_norm", "sea_pairs"} & line.keys(), "zeros would lower its mean, or be said of no image"
