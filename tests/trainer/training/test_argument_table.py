"""Every argument of transformers does what it says, is refused before a run begins, or is no part of what a run is."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from sea_pipeline.core.errors import UserError
from tests.support.heard import Heard
from tests.support.refused import refused
from tests.support.tiny_runs import ROWS, World, tiny_recipe
from trainer.evaluation.evaluator import Evaluator
from trainer.measures.metrics import HIGHER_IS_BETTER
from trainer.recipes.recipe import Recipe
from trainer.training import run as train_run
from trainer.training.argument_checks import effective_arguments
from trainer.training.argument_table import REFUSED, changes_weights
from trainer.training.arguments import training_arguments
from trainer.training.run import train

FIXED = {"output_dir", "learning_rate", "seed", "data_seed"}
"""Set by the recipe's own keys and by --out."""
IDENTITY = {
    "per_device_train_batch_size", "num_train_epochs", "max_steps", "lr_scheduler_type", "lr_scheduler_kwargs",
    "warmup_steps", "optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
    "gradient_accumulation_steps", "max_grad_norm", "bf16", "fp16", "tf32", "activation_checkpointing",
    "activation_checkpointing_kwargs", "gradient_checkpointing", "gradient_checkpointing_kwargs", "torch_compile",
    "torch_compile_backend", "torch_compile_mode", "use_liger_kernel", "liger_kernel_config", "use_cache",
    "neftune_noise_alpha", "full_determinism", "use_cpu", "accelerator_config", "parallelism_config",
    "dataloader_drop_last", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers",
    "ddp_static_graph", "ddp_backend", "fsdp", "fsdp_config", "deepspeed",
}  # fmt: skip
"""May change the weights, or how they are rounded."""
OF_METRICS = {"eval_delay", "metric_for_best_model", "greater_is_better"}
"""The same, only with a schedule that follows a metric."""
ASIDE = {
    "logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter", "log_on_each_node",
    "include_num_input_tokens_seen", "log_level", "log_level_replica", "disable_tqdm", "report_to", "run_name",
    "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id",
    "per_device_eval_batch_size", "save_strategy", "save_steps", "save_total_limit",
    "hub_private_repo", "restore_callback_states_from_checkpoint", "dataloader_num_workers", "dataloader_pin_memory",
    "dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context",
    "ddp_timeout", "debug", "skip_memory_metrics", "do_train", "local_rank", "torch_empty_cache_steps",
}  # fmt: skip
"""May change for a run that has begun."""


def test_every_argument_is_sorted() -> None:
    every = {field.name for field in dataclasses.fields(TrainingArguments)}
    sorts = (FIXED, IDENTITY, OF_METRICS, ASIDE, REFUSED.keys())
    assert every == set().union(*sorts)
    assert sum(map(len, sorts)) == len(every), "each is in one of them"
    for schedule, more in ((None, set()), ("cosine", set()), ("greedy", OF_METRICS)):
        found = {name for name in every - FIXED if changes_weights(name, schedule)}
        assert found == IDENTITY | more | {"auto_find_batch_size"}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_nothing_is_refused_and_its_default_is_not(name: str, tiny: World) -> None:
    allowed, reason = REFUSED[name]
    if name not in ("eval_strategy", "eval_steps"):
        training_arguments(tiny_recipe(tiny, training_arguments={name: allowed}), Path())
    wrong: Any = (not allowed) if isinstance(allowed, bool) else "group_by_length"
    with refused(reason, start=f"training_arguments.{name}: found "):
        training_arguments(tiny_recipe(tiny, training_arguments={name: wrong}), Path())


def test_a_token_is_not_shown(tiny: World, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        train(tiny_recipe(tiny, training_arguments={"hub_token": "hf_secret"}), tmp_path / "out")
    assert "hf_secret" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", [{"max_steps": 0}, {"max_steps": -1, "num_train_epochs": 0}])
def test_no_steps_are_refused(given: dict[str, Any], tiny: World, tmp_path: Path) -> None:
    with refused("expected ", start="training_arguments."):
        train(tiny_recipe(tiny, training_arguments=given), tmp_path / "out")


def test_several_gpus_in_one_process_are_refused_before_any_work(
    tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nn.DataParallel would cut a batch whose positions are those in the whole batch."""
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    monkeypatch.setattr(train_run, "_inputs", lambda *_, **__: pytest.fail("work was done"))
    with refused("found 2", "torchrun --nproc-per-node 2 -m sea_pipeline train", "CUDA_VISIBLE_DEVICES"):
        train(tiny_recipe(tiny), tmp_path / "out")
    with refused("found 2"):
        train_run.train_stages({"a": tiny_recipe(tiny), "b": tiny_recipe(tiny)}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    training_arguments(tiny_recipe(tiny), tmp_path, finished=True)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("max_steps", "two", "input should be a valid integer, found 'two'"),
        ("max_steps", None, "input should be a valid integer, found None"),
        ("max_steps", 2.5, "input should be a valid integer, got a number with a fractional part, found 2.5"),
        ("per_device_train_batch_size", 0, "input should be greater than or equal to 1, found 0"),
        ("per_device_eval_batch_size", -1, "input should be greater than or equal to 1, found -1"),
        ("gradient_accumulation_steps", "2", "input should be a valid integer, found '2'"),  # 2 processes: '22'
        ("gradient_accumulation_steps", 0, "input should be greater than or equal to 1, found 0"),
        ("save_steps", 0, "input should be greater than 0, found 0"),
        ("warmup_steps", "ten", "input should be a valid number, found 'ten'"),
        ("per_device_train_batch_size", 10**20, "input should be less than 9007199254740992, found"),
        ("warmup_steps", float("inf"), "input should be a finite number, found inf"),
        ("adam_epsilon", float("inf"), "input should be a finite number, found inf"),
        ("bf16", "False", "input should be a valid boolean, found 'False'"),
        ("tf32", 3, "input should be a valid boolean, found 3"),
        ("optim", 3, "3 is not a valid OptimizerNames"),  # transformers' own words
        ("optim", "adam_of_nobody", "training_arguments.optim=VALUE"),
        ("lr_scheduler_type", "up", "training_arguments.lr_scheduler_type=VALUE"),
        ("warmup_steps", -1, "training_arguments.warmup_steps=VALUE"),
        ("tf32", True, "training_arguments.tf32=false"),
        ("fp16", True, "it does nothing without a GPU"),
        ("use_liger_kernel", True, "its kernels need a GPU; leave it out"),
        ("learning_rate", 1e-3, "set `seed`, `learning_rates` or --out instead"),
        ("max_grad_norm", None, "expected a number, 0 for no clipping; found None"),
        ("max_grad_norm", -1, "expected a number, 0 for no clipping; found -1"),
    ],
)
def test_a_value_that_does_not_fit_is_named(
    name: str, value: Any, said: str, tiny: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.training_args.is_torch_tf32_available", lambda: False)
    others = {"logging_steps": 3, "save_total_limit": 3}
    with refused(said, start=f"training_arguments.{name}: "):
        training_arguments(tiny_recipe(tiny, training_arguments=others | {name: value}), Path())


def test_every_argument_of_another_type_is_named_at_once(tiny: World) -> None:
    with refused("training_arguments.max_steps: ", "; training_arguments.adam_bta1: ", "nearest is 'adam_beta1'"):
        training_arguments(tiny_recipe(tiny, training_arguments={"max_steps": "two", "adam_bta1": 0.9}), Path())


WORKING: dict[str, Any] = {
    "max_steps": 1e3, "num_train_epochs": 2, "bf16": None, "use_cache": 1, "disable_tqdm": None, "fsdp": False,
    "debug": None, "report_to": ["none"], "lr_scheduler_kwargs": "{}", "save_total_limit": None, "optim": "adamw_torch",
    "include_num_input_tokens_seen": True, "run_name": 7, "trackio_static_space_id": False, "warmup_steps": 0.5,
    "tf32": False, "activation_checkpointing_kwargs": {"use_reentrant": False}, "neftune_noise_alpha": 5,
}  # fmt: skip


def test_values_that_work_stay_as_they_are(tiny: World) -> None:
    """A recipe keeps what it says, and with it its fingerprint."""
    recipe = tiny_recipe(tiny, training_arguments=WORKING)
    args = training_arguments(recipe, Path())
    assert (args.max_steps, type(args.max_steps), type(args.num_train_epochs)) == (1000, int, int)
    assert recipe.training_arguments.items() >= WORKING.items()
    assert type(recipe.training_arguments["max_steps"]) is float


def short(tiny: World, **arguments: Any) -> Recipe:
    return tiny_recipe(tiny, training_arguments={"max_steps": 2} | arguments)


@pytest.mark.slow
def test_a_run_of_an_earlier_version_is_found(tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier versions counted more arguments, some of which had no effect and are refused now."""
    monkeypatch.chdir(tmp_path)
    arguments = {"ddp_timeout": 7200}
    with monkeypatch.context() as earlier:
        earlier.setattr("trainer.training.run_folder.changes_weights", lambda name, _: not name.startswith("save_"))
        earlier.setitem(REFUSED, "do_predict", (True, ""))
        more = {"do_predict": True, "metric_for_best_model": "tacs"}
        begun = train(short(tiny, **arguments, **more), tmp_path / "named").out
        unnamed = train(short(tiny, **arguments)).out
    assert json.loads((begun / "run.json").read_text())["fields"]["recipe"]["training_arguments"]["do_predict"]
    assert train(short(tiny, ddp_timeout=3600), begun).out == begun
    heard = Heard()
    assert train(short(tiny, **arguments), reporter=heard).out == unnamed
    assert any("this run is finished" in line for line in heard.lines)
    with pytest.raises(UserError, match=r"holds another run: training_arguments\.weight_decay"):
        train(short(tiny, weight_decay=0.5), begun)


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        {"eval_delay": 1, "ddp_timeout": 7200},  # the former counted once
        {"lr_scheduler_type": "constant", "warmup_steps": 1},
        {"max_steps": 1, "warmup_steps": 1},
    ],
)
def test_a_run_of_a_default_name_goes_on_with_what_is_refused_now(
    given: dict[str, Any], tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as earlier:
        earlier.setattr("trainer.training.run_folder.changes_weights", lambda name, _: changes_weights(name, "greedy"))
        earlier.setattr("trainer.training.argument_checks._refuse_warmup", lambda *_: None)
        earlier.setattr("trainer.training.arguments.check_schedule", lambda *_: None)
        earlier.setattr("trainer.training.align_trainer.check_schedule", lambda *_: None)
        earlier.setattr("trainer.training.run.refuse_untrained", lambda *_: None)
        out = train(short(tiny, **given)).out
    heard = Heard()
    assert train(short(tiny, **given), reporter=heard, resume=True).out == out
    assert heard.lines == [f"{out}: this run is finished"]
    if "warmup_steps" in given:
        with refused(start="training_arguments.warmup_steps: "):
            train(tiny_recipe(tiny, seed=4, training_arguments={"max_steps": 2} | given))
        assert [*out.parent.iterdir()] == [out]


@pytest.mark.slow
def test_an_evaluation_without_memory_goes_on_with_smaller_batches(
    tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = Evaluator.__call__
    sizes = []

    def full(self: Evaluator, *given: Any) -> Any:
        sizes.append(self.batch_size)
        if self.batch_size > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return called(self, *given)

    monkeypatch.setattr(Evaluator, "__call__", full)

    def recipe(**arguments: Any) -> Recipe:
        return tiny_recipe(tiny, data={"evaluate": str(tiny.held_out)}, training_arguments={"max_steps": 2} | arguments)

    said = "free some memory or set a smaller training_arguments.per_device_eval_batch_size, and run the same command"
    with refused(said):
        train(recipe(), tmp_path / "out")
    assert train(recipe(per_device_eval_batch_size=1), tmp_path / "out").summary["steps"] == 2
    assert sizes == [8, 1, 1]


@pytest.mark.slow
def test_a_run_that_would_drop_every_row_is_refused(tiny: World, tmp_path: Path) -> None:
    """It would end as a finished run of an untrained model."""
    arguments = {"dataloader_drop_last": True, "per_device_train_batch_size": ROWS + 1}
    said = f"drops all {ROWS} rows to train on, because they do not fill a micro-batch of {ROWS + 1}"
    with refused(said, start="training_arguments.dataloader_drop_last: "):
        train(short(tiny, **arguments), tmp_path / "out")
    with refused(said, start="stage second: "):
        train_run.train_stages({"first": short(tiny), "second": short(tiny, **arguments)}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    arguments["per_device_train_batch_size"] = ROWS
    assert train(short(tiny, **arguments), tmp_path / "out").summary["steps"] == 2


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_is_one_that_all_libraries_take(seed: int, tiny: World) -> None:
    with pytest.raises(ValueError, match=r"seed\n.*(greater than or equal to 0|less than 4294967296)"):
        tiny_recipe(tiny, seed=seed)
    tiny_recipe(tiny, seed=2**32 - 1)


@pytest.mark.parametrize("prefix", ["", "eval_"])
@pytest.mark.parametrize("name", HIGHER_IS_BETTER)
def test_the_best_is_by_the_direction_of_its_metric(name: str, prefix: str, tiny: World) -> None:
    """transformers takes the lower one only of names that end with loss."""
    given = {"metric_for_best_model": prefix + name, "greater_is_better": None}
    args = training_arguments(tiny_recipe(tiny, training_arguments=given), Path())
    assert args.greater_is_better is not any(part in name for part in ("loss", "gap"))
    other = given | {"greater_is_better": not args.greater_is_better}
    asked = training_arguments(tiny_recipe(tiny, training_arguments=other), Path())
    assert asked.greater_is_better is not args.greater_is_better


FOLLOWING: dict[str, Any] = {"lr_scheduler_type": "greedy"}
PLATEAU: dict[str, Any] = {"lr_scheduler_type": "reduce_lr_on_plateau"}
BY_TACS: dict[str, Any] = {"metric_for_best_model": "tacs"}
MAX: dict[str, Any] = {"lr_scheduler_kwargs": {"mode": "max"}}
BETA: dict[str, Any] = {"adam_beta1": 0.5}
RELATIVE = "scale_parameter=True, relative_step=False"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lr_scheduler_type": "constant", "warmup_steps": 4}, "or set lr_scheduler_type: constant_with_warmup"),
        (FOLLOWING | {"warmup_steps": 0.1}, "warmup_steps: greedy has no warm-up; leave it out"),
        ({"optim_args": "lr=0.5"}, "lr does nothing; set learning_rates in its place"),
        ({"optim": "sgd", "optim_args": "momentum=0.9, weight_decay=1"}, "set training_arguments.weight_decay in its"),
        ({"optim_args": "betas=0.5"}, "adamw_torch_fused does not read betas=0.5"),
        ({"optim": "adafactor", "optim_args": RELATIVE}, "adafactor does not read scale_parameter=True; leave it out"),
        ({"optim": "adafactor", "optim_args": "warmup_init=True"}, "adafactor does not read warmup_init=True"),
        (BETA | {"optim": "sgd"}, "adam_beta1: sgd does not read it; leave it out"),
        ({"optim": "schedule_free_sgd"}, "optim: the weights that schedule_free_sgd trains are means"),
        (PLATEAU | BY_TACS, "mode: expected max, because a higher tacs is better; found min; set it to max"),
        (FOLLOWING | BY_TACS | {"lr_scheduler_kwargs": {"patience": 0}}, "mode: expected max, because a higher tacs"),
        (PLATEAU | MAX, "mode: expected min, because a lower lm_loss is better; found max; set it to min"),
        (PLATEAU | MAX | {"metric_for_best_model": "eval_gap"}, "because a lower eval_gap is better"),
        ({"metric_for_best_model": "distinct_tokens"}, "found 'distinct_tokens'; expected one of lm_loss, tacs, "),
    ],
)
def test_what_would_do_nothing_is_refused(
    given: dict[str, Any], said: str, tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that has saved something goes on with it."""
    recipe = tiny_recipe(tiny, training_arguments=given, evaluate_every=1)
    with refused(said, start="training_arguments."):
        train(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.chdir(tmp_path)
    begun = tmp_path / "runs" / "train" / f"{recipe.name}-01234567"
    begun.mkdir(parents=True)
    (begun / "run.json").touch()
    for out in (begun, None):
        with refused(said, start="training_arguments."):
            effective_arguments(recipe, out)
    (begun / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    for out in (begun, None):  # without a name, it may be this run
        try:
            effective_arguments(recipe, out)
        except UserError as error:  # the package is not there
            assert "schedulefree" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    "given",
    [
        {"lr_scheduler_type": "constant"},
        {"lr_scheduler_type": "constant", "warmup_steps": 0},
        FOLLOWING,
        {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=True"},
        {"optim": "rmsprop", "optim_args": "centered=false"},
        {"optim": "adafactor", "optim_args": "scale_parameter=False, relative_step=False, warmup_init=False"},
        BETA,
        {"optim": "sgd", "adam_beta1": 0.9},
        PLATEAU,
        PLATEAU | BY_TACS | MAX,
        PLATEAU | BY_TACS | {"lr_scheduler_kwargs": '{"mode": "max"}'},
        PLATEAU | BY_TACS | {"greater_is_better": False},
        BY_TACS,
        {"metric_for_best_model": "distinct_tokens", "greater_is_better": True},
    ],
)
def test_what_does_what_it_says_is_not(given: dict[str, Any], tiny: World) -> None:
    effective_arguments(tiny_recipe(tiny, training_arguments=given, evaluate_every=1), None)


@pytest.mark.parametrize("name", ["ddp_static_graph", "ddp_find_unused_parameters"])
def test_what_hides_gradients_from_their_measurement_is_refused(
    name: str, tiny: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"training_arguments": {name: True}}
    effective_arguments(tiny_recipe(tiny, **arguments), None)
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    with refused("DDP would hide the gradient of each term", start=f"training_arguments.{name}: "):
        effective_arguments(tiny_recipe(tiny, **arguments), None)
    for loss in ({"sea": {"weight": 0}}, {"lm": 0}):  # nothing is measured
        effective_arguments(tiny_recipe(tiny, **arguments, loss=loss), None)
