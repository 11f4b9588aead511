"""Sort transformers' `TrainingArguments` by what they do here: change the weights, or not, or nothing at all.

`tests/trainer/training/test_argument_table.py` sorts every argument of the installed transformers, and fails when a
new one comes.
"""

from trainer.training.schedule import BY_EVALUATION

_OWN_METRICS = "metrics are computed by code of ours, which does not read it"
_HUB = "a run's checkpoints are no model that others can load; upload the finished run's model folder"

REFUSED: dict[str, tuple[object, str]] = {
    "save_only_model": (False, "a stopped run could not go on as if it had not been stopped"),
    "save_on_each_node": (False, "all processes read and write one folder"),
    "optim_target_modules": (None, "its optimizers form groups of their own, which know nothing of learning_rates"),
    "load_best_model_at_end": (False, "a run keeps its last weights"),
    "label_smoothing_factor": (0, "L_lm has no smoothing"),
    "remove_unused_columns": (False, "the columns are the losses'"),
    "label_names": ([], "the losses know their own targets"),
    "train_sampling_strategy": ("random", "it does nothing here; set `data.sampling`"),
    "length_column_name": ("length", "it does nothing here; set `data.sampling`"),
    "average_tokens_across_devices": (True, "it does nothing here; set `loss.norm`"),
    "auto_find_batch_size": (
        False,
        "a step would have other rows than run.json says; set a smaller `per_device_train_batch_size` and "
        "raise `gradient_accumulation_steps`",
    ),
    "enable_jit_checkpoint": (
        False,
        "it saves in the middle of a step, and each process at another one; set `save_steps`, as the same command goes "
        "on from the newest whole checkpoint",
    ),
    "ignore_data_skip": (False, "a resumed run would repeat rows of its epoch, and draw other dropout"),
    "dataloader_in_order": (
        True,
        "a step would have the rows that are read first, so a resumed run would repeat some and leave out others",
    ),
    "resume_from_checkpoint": (None, "the same command goes on from the newest whole checkpoint"),
    "eval_strategy": (None, "set `evaluate_every`"),
    "eval_steps": (None, "set `evaluate_every`"),
    "do_eval": (False, "the start and the end are always evaluated; for more set `evaluate_every`"),
    "eval_on_start": (False, "the start is always evaluated"),
    "do_predict": (False, "nothing is predicted; `sea-pipeline evaluate` measures the trained model"),
    "bf16_full_eval": (False, "metrics are computed as training computes; set `bf16`"),
    "fp16_full_eval": (False, "metrics are computed as training computes; set `fp16`"),
    "prediction_loss_only": (False, _OWN_METRICS),
    "eval_accumulation_steps": (None, _OWN_METRICS),
    "eval_do_concat_batches": (True, _OWN_METRICS),
    "eval_use_gather_object": (False, _OWN_METRICS),
    "include_for_metrics": ([], _OWN_METRICS),
    "batch_eval_metrics": (False, _OWN_METRICS),
    "push_to_hub": (False, _HUB),
    "hub_model_id": (None, _HUB),
    "hub_strategy": ("every_save", _HUB),
    "hub_always_push": (False, _HUB),
    "hub_revision": (None, _HUB),
    "hub_token": (None, "run.json would show it to everybody who reads the run; set the environment's HF_TOKEN"),
}
"""Arguments that would do harm or have no effect, with the only value that is accepted and the reason."""

SECRET = frozenset({"hub_token"})
"""Arguments whose value no message shows."""

EARLIER = frozenset(
    {
        "save_strategy", "save_steps", "save_total_limit", "save_only_model", "save_on_each_node", "logging_strategy",
        "logging_steps", "logging_first_step", "logging_nan_inf_filter", "report_to", "disable_tqdm",
        "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
        "dataloader_prefetch_factor",
    }
)  # fmt: skip
"""Arguments that have never been part of a run's identity."""
_LATER = frozenset(
    {
        "ddp_timeout", "per_device_eval_batch_size", "run_name", "project", "trackio_space_id",
        "trackio_bucket_id", "trackio_static_space_id", "hub_private_repo", "log_level", "log_level_replica",
        "log_on_each_node", "include_num_input_tokens_seen", "skip_memory_metrics", "torch_empty_cache_steps",
        "dataloader_multiprocessing_context", "restore_callback_states_from_checkpoint",
        "debug", "do_train", "local_rank",
    }
)  # fmt: skip
_OF_METRICS = frozenset({"metric_for_best_model", "greater_is_better", "eval_delay"})
"""Arguments that change the weights only by a schedule that follows a metric."""


def changes_weights(name: str, schedule: object) -> bool:
    """Tell whether an argument is part of a run's identity, because it may change the weights.

    `schedule` is the run's `lr_scheduler_type`, or None for the default one.

    The others change what a run writes, how fast it is, what memory it takes or how it is watched. What is refused
    has no effect, so a run that was begun with it goes on without it; but batches that were halved are other steps.
    """
    if name == "auto_find_batch_size":
        return True
    if name in _OF_METRICS:
        return schedule in BY_EVALUATION
    return name not in EARLIER | _LATER | REFUSED.keys()
