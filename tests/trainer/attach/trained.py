"""Rows and trainers of attached models: transformers' own and TRL's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import Trainer, TrainingArguments

from tests.trainer.attach.families import MAKERS, Tiny
from tests.trainer.attach.worlds import Pictures
from trainer.attach import Attached, AttachMixin, attach

NAMES = ("wide.png", "tall.png", "other.png", "odd.png")


def rows(pictures: Pictures, count: int = 8, **more: Any) -> Dataset:
    """Conversations about a picture each, with its name."""
    return Dataset.from_list([
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": f"a {('red', 'blue')[number % 2]} patch"}]},
            ],
            "images": [pictures.image(NAMES[number % 4])],
            "image_ids": [NAMES[number % 4]],
        }
        | more
        for number in range(count)
    ])  # fmt: skip


def attached_to(name: str, pictures: Pictures, **settings: Any) -> tuple[Tiny, Attached]:
    """A model of a family, made anew, and what is attached to it."""
    made = MAKERS[name]()
    return made, attach(made.model, made.processor, labels=pictures.open(), **settings)


class OwnTrainer(AttachMixin, Trainer):
    """transformers' own."""


class Collate:
    """What a user of transformers' Trainer writes: rows to what the model takes; whether it saw images' names."""

    def __init__(self, made: Tiny) -> None:
        self.made, self.named = made, False

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        self.named = any("image_ids" in row for row in rows)
        return self.made.batch([(row["images"], "a red patch") for row in rows])


ARGUMENTS: dict[str, Any] = {
    "max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "logging_steps": 1, "report_to": "none",
    "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "seed": 3, "max_grad_norm": 0,
}  # fmt: skip


def own_trainer(made: Tiny, pictures: Pictures, out: Path, attached: Attached | None, **changes: Any) -> Any:
    kind: Any = Trainer if attached is None else OwnTrainer
    given = {"eval_dataset": changes.pop("eval_dataset", None), "callbacks": changes.pop("callbacks", None)}
    given |= {"attached": attached} if attached is not None else {}
    arguments = TrainingArguments(str(out), **(ARGUMENTS | changes | {"remove_unused_columns": False}))
    return kind(model=made.model, args=arguments, train_dataset=rows(pictures), data_collator=Collate(made), **given)


def sft_trainer(made: Tiny, pictures: Pictures, out: Path, attached: Attached | None, **changes: Any) -> Any:
    from trl import SFTConfig, SFTTrainer

    class Attaching(AttachMixin, SFTTrainer):
        """TRL's."""

    kind: Any = SFTTrainer if attached is None else Attaching
    names = ("eval_dataset", "peft_config", "train_dataset", "compute_loss_func")
    given = {name: changes.pop(name) for name in names if name in changes}
    given = {"train_dataset": rows(pictures)} | given | ({"attached": attached} if attached is not None else {})
    arguments = SFTConfig(str(out), **(ARGUMENTS | {"max_length": None, "bf16": False} | changes))
    return kind(model=made.model, processing_class=made.processor, args=arguments, **given)


def logged(trainer: Any, name: str) -> list[float]:
    """Of each step that has it."""
    return [line[name] for line in trainer.state.log_history if name in line]
