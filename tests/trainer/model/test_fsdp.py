"""FSDP, version 2, by the recipes' own keys: the same training as by one process, whole weights on disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from tests.support.refused import refused
from tests.support.run_values import ALL, EVEN, ROUNDED, close, values, weights
from tests.support.tiny_models import tiny_llm, tiny_vision
from tests.support.tiny_runs import World, colours, evaluations, logged, tiny_recipe
from tests.support.two_processes import CUT, WHOLE, Job, launch, said
from trainer.model.assemble import init_model
from trainer.recipes.recipe import Recipe
from trainer.training.arguments import training_arguments
from trainer.training.run import train

pytestmark = pytest.mark.processes
BOTH = {"llm": 1e-4, "vision": 1e-4}
BF16 = {"bf16": True, "activation_checkpointing": True}
RUNS: dict[str, dict[str, Any]] = {
    "stage 1": {},
    "stage 2": {"learning_rates": BOTH, "data": {"sampling": "modality_length"}},
    "tied": {"learning_rates": BOTH},  # Gemma's embeddings are its head, and scaled
    "lora": {"learning_rates": {"llm": 3e-3}, "lora": {"rank": 4, "alpha": 8, "dropout": 0}},
    "bf16": {"learning_rates": {"llm": 1e-4}, "training_arguments": BF16},
    "not clipped": {
        "learning_rates": BOTH,
        "data": {"sampling": "modality_length"},
        "training_arguments": {"max_grad_norm": 0},
    },
    "sgd": {"learning_rates": BOTH, "training_arguments": {"optim": "sgd"}},  # an optimizer without a state
}
LAYERS = {"tied": "GemmaDecoderLayer"}
IN_PIECES = {
    "activation_checkpointing": True,  # accelerate wraps layers, which shows in parameters' names
    "state_dict_type": "SHARDED_STATE_DICT",
}
"""Of `fsdp_config`, beside what `fsdp` gives, for a run like that of stage 2."""

AGAIN = ("stage 2", "lora", "stage 2 in pieces", "sgd", "sgd in pieces")
"""What is stopped and goes on."""


def fsdp(layer: str = "LlamaDecoderLayer") -> dict[str, Any]:
    """As jobs/sea-llava-1.5-7b.yaml has it."""
    return {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": [layer]}}


class Runs(NamedTuple):
    """Of each of `RUNS` one by one process, one by two with FSDP; below two/ also what goes on with others."""

    one: Path
    two: Path


def recipe_of(name: str, world: World, model: Path, processes: int) -> Recipe:
    """Batches of 5, 5 and 2 samples of an epoch's 12: in every second step one process of two has nothing."""
    recipe = tiny_recipe(world, model=str(model), loss=ALL, **RUNS[name])
    arguments = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 5} | ({} if name == "sgd" else EVEN)
    extra = {"gradient_accumulation_steps": 2} if processes == 1 else fsdp(LAYERS.get(name, "LlamaDecoderLayer"))
    if name == "stage 1":
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"evaluate": str(world.held_out)})})
    clipped = {"max_grad_norm": 0.5} | recipe.training_arguments
    return recipe.model_copy(update={"training_arguments": clipped | arguments | extra, "keep_checkpoints": (3,)})


def configured(recipe: Recipe, config: dict[str, Any]) -> Recipe:
    arguments = recipe.training_arguments
    return recipe.model_copy(
        update={"training_arguments": arguments | {"fsdp_config": arguments["fsdp_config"] | config}}
    )


@pytest.fixture(scope="module")
def runs(_made: World, deep: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    root: Path = tmp_path_factory.mktemp("fsdp")
    gemma = tiny_llm(root / "llm", "gemma", initializer_range=0.3)  # of smaller weights L_sds is rounding alone
    models = dict.fromkeys(RUNS, deep) | {
        "tied": init_model(str(tiny_vision(root / "vision")), str(gemma), root / "gemma")
    }
    one, two = root / "one", root / "two"
    two.mkdir()
    with pytest.MonkeyPatch.context() as patch, colours():
        patch.setenv("SEA_PIPELINE_CACHE", str(root / "cache"))
        for name, model in models.items():
            train(recipe_of(name, _made, model, 1), one / name)
        recipes = {name: recipe_of(name, _made, model, 2) for name, model in models.items()}
        recipes |= {f"{name} in pieces": configured(recipes[name], IN_PIECES) for name in ("stage 2", "sgd")}
        plain = {key: value for key, value in recipes["stage 1"].training_arguments.items() if "fsdp" not in key}
        ended = launch([
            *(Job(recipe, two / name) for name, recipe in recipes.items()),
            *(Job(recipes[name], two / f"{name} again", begun=(two / name, 2)) for name in AGAIN),
            Job(recipes["stage 1"], two / "stage 1 ended", begun=(two / "stage 1", 4)),
            Job(recipes["stage 2"], two / "full", full=0),
            Job(recipes["stage 1"].model_copy(update={"training_arguments": plain}), two / "without"),
        ])  # fmt: skip
        ended.check()
        yield Runs(one, two)


@pytest.mark.parametrize("name", [name for name in RUNS if name != "bf16"])
def test_cut_weights_train_as_whole_ones(name: str, runs: Runs) -> None:
    close(runs.two / name, runs.one / name)
    assert said(runs.two / name, rank=1) == [CUT, CUT]


def test_what_is_not_clipped_is_logged_as_it_is(runs: Runs) -> None:
    """The first gradient is the same in both runs; from the second step on Adam tells clipped ones apart."""
    for out in runs:
        free, clipped = (logged(out / name) for name in ("not clipped", "stage 2"))
        assert free[0]["grad_norm"] == pytest.approx(clipped[0]["grad_norm"], rel=1e-5)
        assert min(line["grad_norm"] for line in free) > 0.5
        assert free[-1]["loss"] != clipped[-1]["loss"]


def test_bfloat16_is_near_and_losses_keep_their_precision(runs: Runs) -> None:
    for ours, theirs in zip(logged(runs.two / "bf16"), logged(runs.one / "bf16"), strict=True):
        for name in ("loss_lm", "loss_sea", "loss_das", "loss_sds"):
            assert ours[name] == pytest.approx(theirs[name], rel=2e-2)
            assert torch.tensor(ours[name]).bfloat16().float() != torch.tensor(ours[name])
    mine, others = (load_file(out / "bf16" / "model" / "model.safetensors") for out in runs)
    for name, value in others.items():
        assert float((mine[name] - value).abs().mean()) < 1e-4, name
        rounded = torch.equal(mine[name], mine[name].bfloat16().float())
        assert not rounded or torch.equal(value, value.bfloat16().float()), f"{name}: what trains stays float32"


def test_how_it_is_kept_and_computed_changes_nothing(runs: Runs) -> None:
    close(runs.two / "stage 2 in pieces", runs.one / "stage 2")
    for name in ("stage 2", "stage 2 in pieces"):
        kept = {path.name for path in (runs.two / name / "checkpoints" / "checkpoint-2").iterdir()}
        assert ("optimizer_0" in kept) == name.endswith("in pieces")


@pytest.mark.parametrize("name", ["stage 1", "stage 2", "tied", "lora"])
def test_the_folder_is_a_stock_one(name: str, runs: Runs) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(runs.two / name / "model")
    saved = load_file(runs.two / name / "model" / "model.safetensors")
    assert saved.keys() == load_file(runs.one / name / "model" / "model.safetensors").keys()
    assert sum(value.numel() for value in saved.values()) == sum(value.numel() for value in model.parameters())


def test_checkpoints_hold_what_trains(runs: Runs) -> None:
    for name in ("stage 1", "lora"):
        one, two = (out / name / "checkpoints" / "checkpoint-2" for out in runs)
        assert {path.name for path in two.iterdir()} == {
            "files.json", "optimizer.bin", "rng_state_0.pth", "rng_state_1.pth", "scheduler.pt", "trained.safetensors",
            "trainer_state.json",
        }  # fmt: skip
        mine, others = (load_file(folder / "trained.safetensors") for folder in (two, one))
        assert {key: value.shape for key, value in mine.items()} == {key: value.shape for key, value in others.items()}


@pytest.mark.parametrize("name", ["stage 1", "stage 2", "tied", "lora"])
def test_kept_checkpoints_are_whole(name: str, runs: Runs) -> None:
    one, two = (load_file(out / name / "kept" / "checkpoint-3" / "trained.safetensors") for out in runs)
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=2e-5, rtol=1e-3, msg=key)


@pytest.mark.parametrize("name", AGAIN)
def test_a_killed_run_goes_on_exactly(name: str, runs: Runs) -> None:
    assert weights(runs.two / f"{name} again") == weights(runs.two / name) != {}
    assert values(runs.two / f"{name} again") == values(runs.two / name)


def test_where_the_process_that_writes_cannot_all_say_so(runs: Runs) -> None:
    """The others meet it for the optimizer's state, although the weights before that could not be written."""
    out = runs.two / "full"
    for rank in (0, 1):
        assert said(out, rank)[-1].startswith(f"{out / 'checkpoints'}")
        assert ": cannot be written: File too large; " in said(out, rank)[-1]
    assert list((out / "checkpoints").iterdir()) == []


def test_evaluated_as_by_one_process(runs: Runs) -> None:
    """The one that was stopped behind its last step evaluates before it has taken any."""
    assert weights(runs.two / "stage 1 ended") == weights(runs.two / "stage 1")
    for name in ("stage 1", "stage 1 ended"):
        lines = [evaluations(out) for out in (runs.two / name, runs.one / "stage 1")]
        assert [line["step"] for line in lines[0]] == [0, 4]
        for ours, theirs in zip(*lines, strict=True):
            assert ours.pop("measured_on") == theirs.pop("measured_on")
            assert ours | {"seconds": 0} == pytest.approx(theirs | {"seconds": 0}, rel=1e-4, abs=ROUNDED)


def test_a_later_stage_without_it_is_without_it(runs: Runs) -> None:
    assert said(runs.two / "without", rank=1) == [WHOLE, WHOLE]
    assert (runs.two / "without" / "checkpoints" / "checkpoint-2" / "optimizer.pt").is_file()
    close(runs.two / "without", runs.one / "stage 1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training_arguments": fsdp()}, r"training_arguments\.fsdp: it cuts weights over processes; found one; begin"),
        ({"training_arguments": fsdp() | {"torch_compile": True}}, "fsdp: weights that are cut and compiled cannot be"),
        (
            {"training_arguments": fsdp() | {"fsdp_config": {"version": 1}}},
            r"fsdp_config\.version: expected 2; found 1",
        ),
    ],
)
def test_where_it_cannot_be(changes: dict[str, Any], message: str, tiny: World) -> None:
    with refused(match=message):
        training_arguments(tiny_recipe(tiny, **changes), Path())
