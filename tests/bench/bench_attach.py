"""A training step with SEA attached beside one without, in transformers' Trainer and TRL's SFTTrainer.

The model is a Qwen2.5-VL with SmolLM2-135M as its LLM, all of which trains, on the sample photos. Both trainers take
twenty steps, in turn with and without; a step's seconds are those of one CPU, without reading data.
"""

import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

import trainer
from sea_pipeline.inputs.pixels import read_image
from sea_pipeline.inputs.sources import list_samples
from sea_pipeline.labels.run import LabelSettings, label_images
from sea_pipeline.labels.store import LabelStore, open_labels
from tests.bench.measure import Figure, peak_bytes
from tests.bench.packaged_qwen import PackagedQwen, Text, packaged_qwen
from trainer.attach import AttachMixin

STEPS, BATCH, SIDE = 20, 2, 224
SEA: dict[str, Any] = {"sea": {"weight": 1.0}}
EVERY: dict[str, Any] = SEA | {"basic": {}}
TALK = "What is in the picture?"
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}\n{% endfor %}"
)
ARGUMENTS: dict[str, Any] = {
    "max_steps": STEPS,
    "per_device_train_batch_size": BATCH,
    "learning_rate": 1e-4,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "save_strategy": "no",
    "disable_tqdm": True,
    "seed": 1,
}


class OwnTrainer(AttachMixin, Trainer):
    """transformers' own."""


class OwnSFTTrainer(AttachMixin, SFTTrainer):
    """TRL's."""


class Run(NamedTuple):
    """A run's losses, and the CPU seconds of its steps; L_lm alone, whatever is attached."""

    losses: list[float]
    seconds: list[float]


class CpuClock(TrainerCallback):
    """How long each step took of this process's CPU time."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begun = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._begun = time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.process_time() - self._begun)


class Bench:
    """The model, its labels and its rows; every run begins with the same weights."""

    def __init__(self, scratch: Path, layers: int | None = None) -> None:
        self.scratch = scratch
        label_images(LabelSettings(out=scratch / "labels", device="cpu"))
        self.labels: LabelStore = open_labels(scratch / "labels")
        self.made: PackagedQwen = packaged_qwen(SIDE, layers=layers)
        self.made.processor.chat_template = self.made.processor.tokenizer.chat_template = TEMPLATE
        self.start = {name: each.clone() for name, each in self.made.model.state_dict().items()}
        self.rows = _rows()

    def run(self, kind: str, terms: dict[str, Any] | None, steps: int = STEPS) -> Run:
        """Trains from the start, with the terms or with nothing attached."""
        self.made.model.load_state_dict(self.start)
        attached = terms and trainer.attach(self.made.model, self.made.processor, labels=self.labels, **terms)
        clock, given = CpuClock(), {"attached": attached} if attached else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = (self._own if kind == "trainer" else self._sft)(bool(attached), steps, given, clock)
            made.train()
        if attached:
            attached.detach()
        lines = [line for line in made.state.log_history if "loss" in line]
        weights = attached.weights if attached else {}
        losses = [
            line["loss"] - sum(weight * line.get(f"loss_{name}", 0) for name, weight in weights.items())
            for line in lines
        ]
        return Run(losses, clock.seconds)

    def work(self, terms: dict[str, Any], repeats: int = 12) -> float:
        """CPU seconds of `Attached.loss` and its gradient by the visual tokens, which is all that a step has more."""
        rows = [self.rows[number] for number in range(BATCH)]
        batch, ids = self._collate(rows), [row["image_ids"] for row in rows]
        attached = trainer.attach(self.made.model.train(), self.made.processor, labels=self.labels, **terms)
        seconds = []
        for _ in range(repeats):
            self.made.model(**batch)
            visual, begun = attached.kept().visual, time.process_time()
            assert visual is not None
            torch.autograd.grad(attached.loss(ids), visual)
            seconds.append(time.process_time() - begun)
        attached.detach()
        return statistics.median(seconds[2:])

    def _own(self, attached: bool, steps: int, given: dict[str, Any], clock: CpuClock) -> Any:
        arguments = TrainingArguments(
            str(self.scratch / "own"), **(ARGUMENTS | {"max_steps": steps, "remove_unused_columns": False})
        )
        kind: Any = OwnTrainer if attached else Trainer
        rows = self.rows if attached else self.rows.remove_columns("image_ids")
        return kind(
            model=self.made.model, args=arguments, train_dataset=rows, data_collator=self._collate, callbacks=[clock],
            **given,
        )  # fmt: skip

    def _collate(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return self.made.batch([row["images"][0] for row in rows], [Text(TALK, row["answer"]) for row in rows])

    def _sft(self, attached: bool, steps: int, given: dict[str, Any], clock: CpuClock) -> Any:
        arguments = SFTConfig(str(self.scratch / "sft"), **(ARGUMENTS | {"max_steps": steps, "max_length": None}))
        kind: Any = OwnSFTTrainer if attached else SFTTrainer
        columns = ["messages", "images"] + (["image_ids"] if attached else [])
        return kind(
            self.made.model, args=arguments, train_dataset=self.rows.select_columns(columns),
            processing_class=self.made.processor, callbacks=[clock], **given,
        )  # fmt: skip


def _rows() -> Dataset:
    """The sample photos, several times, with an answer of some words."""
    listing = list_samples(None)
    photos = {one.image_id: read_image(Path(listing.root) / one.uri).image for one in listing.samples}
    rows = []
    for number in range(STEPS * BATCH):
        name = list(photos)[number % len(photos)]
        answer = f"A photo that is called {Path(name).stem.replace('_', ' ')}."
        asked = [{"type": "image", "text": None}, {"type": "text", "text": TALK}]
        said = [{"type": "text", "text": answer}]
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        rows.append({"messages": messages, "images": [photos[name]], "image_ids": [name], "answer": answer})
    return Dataset.from_list(rows)


def figures() -> Iterator[Figure]:
    """attach.step_ratio.trainer, .sft and .basic, attach.work, attach.memory_ratio."""
    with tempfile.TemporaryDirectory() as scratch, redirect_stderr(StringIO()):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield from _figures(Bench(Path(scratch)))
        torch.set_num_threads(threads)


def _figures(bench: Bench, steps: int = STEPS) -> Iterator[Figure]:
    sizes = f"a step of {BATCH} photos, a Qwen2.5-VL with SmolLM2-135M, all of it trained"
    with redirect_stdout(StringIO()):
        bench.run("trainer", EVERY, 2)  # the first steps of a process are slower
        ran = {kind: [bench.run(kind, terms, steps) for terms in (None, SEA)] for kind in ("trainer", "sft")}
        basic, work = bench.run("trainer", EVERY, steps), bench.work(SEA)
        peaks = [peak_bytes(lambda terms=terms: bench.run("trainer", terms, 2)) for terms in (None, SEA)]
    for kind, (without, with_sea) in ran.items():
        yield Figure(
            f"attach.step_ratio.{kind}",
            _ratio(with_sea, without),
            "x",
            f"nothing attached, {statistics.median(without.seconds):.2f} CPU s {sizes}; L_lm of {_curve(without)} "
            f"without, {_curve(with_sea)} with SEA",
        )
    yield Figure("attach.work", 1000 * work, "CPU ms", f"Attached.loss and its gradient by V, of {sizes}")
    yield Figure(
        "attach.step_ratio.basic",
        _ratio(basic, ran["trainer"][0]),
        "x",
        f"nothing attached; with SEA, L_das and L_sds over {len(bench.made.processor.tokenizer):,} tokens; {sizes}",
    )
    yield Figure(
        "attach.memory_ratio",
        peaks[1] / peaks[0],
        "x",
        f"nothing attached, {peaks[0] / 2**20:.0f} MiB above the model's own; two steps of transformers' Trainer",
    )


def _ratio(ours: Run, theirs: Run) -> float:
    """The median over steps of how much longer the same step takes; the first one warms up."""
    return statistics.median(a / b for a, b in zip(ours.seconds[1:], theirs.seconds[1:], strict=True))


def _curve(run: Run) -> str:
    return ", ".join(f"{run.losses[at]:.2f}" for at in sorted({0, len(run.losses) // 2, len(run.losses) - 1}))
