"""Report a run while it trains, in metrics.jsonl for machines and by a progress bar for people."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sea_pipeline.core.progress import Advance, Reporter
from sea_pipeline.output.run_files import MEASURED_ON, read_log
from sea_pipeline.storage.json_files import strict_json
from sea_pipeline.storage.publish import publish_bytes, writing

_FEW = 64
"""Fewer pairs than this in L_a are warned about; the papers' micro-batches have thousands."""


class MetricsLog(TrainerCallback):
    """Append a JSON object for each logged step to a file.

    Its keys are `step`, `epoch`, `seconds` of training so far, and the logged values.

    Args:
        path: `metrics.jsonl`.
        shown: called with a title and the metrics of each evaluation.
        measured_on: hash of the held-out rows and their labels, logged with each evaluation; empty if there are none.
    """

    def __init__(self, path: Path, shown: Callable[[str, dict[str, float]], None], measured_on: str = "") -> None:
        self._path = path
        self._measured_on = measured_on
        self._shown = shown
        self._begun = time.monotonic()
        self.before = 0.0
        """Seconds of training in earlier processes of the run."""

    def cut(self, step: int) -> None:
        """Remove the lines that a stopped run logged after `step`, because those steps will be run again."""
        kept = self._keep(lambda line: line["step"] <= step)
        self.before = kept[-1]["seconds"] if kept else 0.0
        self._begun = time.monotonic()

    def keep_evaluation(self, step: int) -> bool:
        """Remove a step's metrics if they are of other held-out rows or labels, and return whether any stay."""
        found = [line for line in self.lines() if line["step"] == step and is_evaluation(line)]
        same = any(line.get(MEASURED_ON, self._measured_on) == self._measured_on for line in found)
        if found and not same:
            self.forget_evaluation(step)
        return same

    def forget_evaluation(self, step: int) -> None:
        """Remove the metrics of a step whose model has changed since."""
        self._keep(lambda line: line["step"] != step or not is_evaluation(line))

    def _keep(self, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        kept = [line for line in self.lines() if wanted(line)]
        publish_bytes(self._path, "".join(map(_log_line, kept)).encode(), self._path.parent)
        return kept

    def lines(self) -> list[dict[str, Any]]:
        """Read all logged objects.

        See `read_log`.
        """
        return read_log(self._path)

    def seconds(self) -> float:
        """Sum the seconds of training of this process and of the run's earlier ones."""
        return self.before + time.monotonic() - self._begun

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ANN401
        """Write a logged step to the file, and show evaluations."""
        summary = "train_runtime" in logs and "loss" not in logs and not is_evaluation(logs)
        if not state.is_world_process_zero or summary:
            return
        line = {"step": state.global_step, "seconds": round(self.seconds(), 3), **logs}
        line |= {MEASURED_ON: self._measured_on} if self._measured_on and is_evaluation(logs) else {}
        with writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(_log_line(line))
        if metrics := evaluated(logs):
            self._shown(f"step {state.global_step}", metrics)


def _log_line(line: dict[str, Any]) -> str:
    return strict_json(line) + "\n"


def is_evaluation(line: dict[str, Any]) -> bool:
    """Tell whether a line of `metrics.jsonl` holds metrics of held-out samples."""
    return any(name.startswith("eval_") for name in line)


def evaluated(line: dict[str, Any]) -> dict[str, float]:
    """Select a line's metrics of held-out samples, without `eval_` in their names."""
    return {name.removeprefix("eval_"): value for name, value in line.items() if name.startswith("eval_")}


class FewPairs(TrainerCallback):
    """Announce once that L_a contrasts too few pairs to teach much, and once that it has none.

    Args:
        reporter: receives the lines.
        labels: the folder of the labels.
        words: the number of words of their list.
    """

    def __init__(self, reporter: Reporter, labels: object, words: int) -> None:
        self._reporter = reporter
        self._labels = labels
        self._words = words
        self._said: set[bool] = set()
        """Whether there were pairs, for each of the two lines that is out."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ANN401
        """Check the number of pairs of a logged step, which a step without images and a run without L_a lack."""
        if "sea_pairs" not in logs or (pairs := logs["sea_pairs"]) >= _FEW or (pairs > 0) in self._said:
            return
        self._said.add(pairs > 0)
        if pairs:
            more = (
                f"each word enters once, and the list has {self._words}; label with a list of more words"
                if self._words < _FEW
                else "raise training_arguments.per_device_train_batch_size, lower loss.sea.window, or set "
                "loss.sea.gather"
            )
            self._reporter.message(
                f"loss.sea: {pairs:.0f} pairs of patch and word in a micro-batch, fewer than {_FEW}; {more}"
            )
        else:
            self._reporter.warning(
                "loss.sea: a logged step has images, and no pair of patch and word, so SEA trains nothing in it; see "
                f"how many patches have a label with sea-pipeline inspect {self._labels}"
            )


class Screen(TrainerCallback):
    """Show a progress bar of optimizer steps."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._open: Any = None
        self._advance: Advance = lambda _: None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
        """Open the progress bar in the first process, and tell of a run that ends in its warm-up."""
        if state.is_world_process_zero:
            if (warmup := args.get_warmup_steps(state.max_steps)) > state.max_steps:
                self._reporter.warning(
                    f"training_arguments.warmup_steps: the run has {state.max_steps} steps and its warm-up {warmup}, "
                    f"so no step has more than {state.max_steps / warmup:.2g} of the learning rate"
                )
            self._open = self._reporter.progress("training", state.max_steps, state.global_step)
            self._advance = self._open.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
        """Advance the progress bar."""
        self._advance(1)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
        """Close the progress bar."""
        if self._open is not None:
            self._open.__exit__(None, None, None)
