"""Collect what a run's `summary.json` says of its rows and its metrics, and refuse the end of an untrained run."""

import math
from pathlib import Path
from typing import Any

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import Reporter
from sea_pipeline.output.run_files import comparable
from sea_pipeline.storage.hashing import file_sha256, fingerprint_of
from trainer.data.bad_rows import image_names
from trainer.data.conversations import summary
from trainer.data.inputs import Inputs
from trainer.training.callbacks import evaluated, is_evaluation
from trainer.training.run_folder import METRICS, SUMMARY


def measured_on(inputs: Inputs[Any]) -> str:
    """Hash what evaluations are measured on: the held-out rows, and the labels of their images."""
    rows, store = inputs.conversations, inputs.store
    if rows.held_out is None:
        return ""
    file, bad = rows.evaluate_file or rows.file, rows.evaluate_bad if rows.evaluate_file else rows.bad
    labels = None
    if store is not None:  # which may grow under one fingerprint
        labels = [store.fingerprint, sum(image in store for image in image_names(rows.held_out))]
    return fingerprint_of({"data": file_sha256(file), **bad.fields(), "labels": labels})[:16]


def counted_rows(inputs: Inputs[Any]) -> dict[str, int]:
    """Count the rows to train on by sort, and those left out by kind."""
    conversations = inputs.conversations
    counts = summary(conversations.train)
    rows = {"rows": counts.rows, "text alone": counts.text_only, "images": counts.images}
    cut = counts.truncated + conversations.cut
    rows |= {"cut at max_length": cut} if cut else {}
    data = inputs.recipe.data
    measured = "measured, though trained on" if data.evaluate == data.train else "held out"
    rows |= {measured: len(conversations.held_out)} if conversations.held_out is not None else {}
    rows |= {f"left out: {kind}": count for kind, count in conversations.bad.kinds().items()}
    return rows | {f"held out, left out: {kind}": n for kind, n in conversations.evaluate_bad.kinds().items()}


def start_and_end(
    lines: list[dict[str, Any]], steps: int, out: Path, reporter: Reporter
) -> tuple[dict[str, float], dict[str, float]]:
    """Find the metrics at the start and at the last step.

    The start is empty if step 0 has no evaluation, or one of other held-out rows or labels than the last evaluation.
    The end is empty if the last step has no evaluation.

    Args:
        lines: of the run's `metrics.jsonl`.
        steps: of the run.
        out: the run's folder.
        reporter: is told of metrics at the start that are left out.
    """
    every = [line for line in lines if is_evaluation(line)]
    if not every:
        return {}, {}
    start, end = every[0], every[-1]
    if start["step"] > 0:
        reporter.warning(f"{out / METRICS}: has no metrics at the start; {SUMMARY} leaves them out")
        start = {}
    elif start not in comparable(every):
        reporter.warning(
            f"{out}: the metrics at the start are of other held-out rows or labels than those at the end; "
            f"{SUMMARY} leaves them out"
        )
        start = {}
    return _metrics(start), _metrics(end) if end["step"] == steps else {}


def _metrics(line: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in evaluated(line).items() if value is not None and math.isfinite(value)}


def refuse_untrained(lines: list[dict[str, Any]], out: Path) -> None:
    """Refuse to end a run whose logged steps all trained nothing.

    Args:
        lines: of the run's `metrics.jsonl`.
        out: the run's folder.

    Raises:
        UserError: L_a alone is on and never had two pairs, or fp16 skipped all steps, or all had a learning rate of 0.
    """
    steps = [line for line in lines if "loss" in line]
    if steps and all(line["loss"] == 0 for line in steps):
        raise UserError(
            f"{out}: trained nothing: the loss is 0 in all {len(steps):,} logged steps, because L_a never had two "
            "pairs of patch and word; look at the labels with sea-pipeline inspect, and begin anew with others"
        )
    every = [line["step"] for line in steps] == [*range(1, len(steps) + 1)]  # a line has the norm of its last step
    if steps and every and all(line.get("learning_rate") == 0 for line in steps):
        raise UserError(
            f"{out}: trained nothing: the learning rate is 0 in all {len(steps):,} logged steps; begin anew with more "
            "steps, fewer training_arguments.warmup_steps, or another optim"
        )
    if steps and every and all("grad_norm" in line and line["grad_norm"] is None for line in steps):
        raise UserError(
            f"{out}: trained nothing: fp16 skipped all {len(steps):,} logged steps, whose gradients are not finite; "
            "begin anew with training_arguments.bf16, lower weights in loss, or more steps"
        )
