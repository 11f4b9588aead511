"""What a run writes while it trains: metrics.jsonl for machines, a progress bar for people."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sea_pipeline.core.progress import Advance, Reporter
from sea_pipeline.output.run_files import read_log
from sea_pipeline.storage.publish import publish_bytes, writing

_FEW = 64
"""Pairs that L_a contrasts; the papers' micro-batches have thousands."""


class MetricsLog(TrainerCallback):
    """Appends one JSON object a logged step to a file: `step`, `epoch`, `seconds` of training so far, and the values.

    Args:
        path: `metrics.jsonl`.
        shown: hears of evaluations, by title.
    """

    def __init__(self, path: Path, shown: Callable[[str, dict[str, float]], None]) -> None:
        self._path = path
        self._shown = shown
        self._begun = time.monotonic()
        self.before = 0.0
        """Seconds of training before this process."""

    def cut(self, step: int) -> None:
        """Forgets what a stopped run logged after `step`, which will be done again."""
        kept = self._keep(lambda line: line["step"] <= step)
        self.before = kept[-1]["seconds"] if kept else 0.0
        self._begun = time.monotonic()

    def forget_evaluation(self, step: int) -> None:
        """Forgets the metrics of a step, whose model has changed since."""
        self._keep(lambda line: line["step"] != step or not is_evaluation(line))

    def _keep(self, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        kept = [line for line in self.lines() if wanted(line)]
        publish_bytes(self._path, "".join(json.dumps(line) + "\n" for line in kept).encode(), self._path.parent)
        return kept

    def lines(self) -> list[dict[str, Any]]:
        """All logged objects; see `read_log`."""
        return read_log(self._path)

    def seconds(self) -> float:
        """Of training, over all processes that had a part in the run."""
        return self.before + time.monotonic() - self._begun

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ANN401
        """Called by the Trainer."""
        summary = "train_runtime" in logs and "loss" not in logs and not is_evaluation(logs)
        if not state.is_world_process_zero or summary:
            return
        line = {"step": state.global_step, "seconds": round(self.seconds(), 3), **logs}
        with writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        evaluated = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
        if evaluated:
            self._shown(f"step {state.global_step}", evaluated)


def is_evaluation(line: dict[str, Any]) -> bool:
    """Whether a line of `metrics.jsonl` holds metrics of held-out samples."""
    return any(name.startswith("eval_") for name in line)


class FewPairs(TrainerCallback):
    """Says once when L_a contrasts so few pairs that it teaches little."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._said = False

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ANN401
        """Called by the Trainer."""
        pairs = logs.get("sea_pairs", _FEW)
        if pairs < _FEW and not self._said:
            self._said = True
            self._reporter.message(
                f"loss.sea: {pairs:.0f} pairs of patch and word in a micro-batch, fewer than {_FEW}; raise "
                "training_arguments.per_device_train_batch_size, lower loss.sea.window, or set loss.sea.gather"
            )


class Screen(TrainerCallback):
    """A progress bar of optimizer steps."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._open: Any = None
        self._advance: Advance = lambda _: None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
        """Called by the Trainer."""
        if state.is_world_process_zero:
            self._open = self._reporter.progress("training", state.max_steps, state.global_step)
            self._advance = self._open.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
        """Called by the Trainer."""
        self._advance(1)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
        """Called by the Trainer."""
        if self._open is not None:
            self._open.__exit__(None, None, None)
