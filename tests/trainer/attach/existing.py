"""Folders of existing models, conversations about the drawn pictures, and recipes that name both."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.tiny_runs import exchange
from tests.trainer.attach.families import tiny
from tests.trainer.attach.worlds import Pictures
from trainer.attach.attached import Attached
from trainer.attach.batches import ChatData
from trainer.attach.folder import ExistingFolder, open_existing_folder
from trainer.attach.rows import read_texts
from trainer.attach.run_model import AttachedModel
from trainer.model.parts import quiet
from trainer.recipes.recipe import Loss, Recipe

KINDS = ("llava", "qwen2_5_vl", "llava_next", "idefics3")
"""A grid that is fixed, one of free size, tiles with rows' ends, tiles with shuffled pixels."""


class ExistingWorld(NamedTuple):
    """Where everything is."""

    root: Path
    data: Path
    held_out: Path
    pictures: Pictures

    def model(self, name: str) -> Path:
        """The folder of a family's tiny model, in the form of the hub."""
        path = self.root / name
        if not path.exists():
            made = tiny(name)
            with quiet():
                made.model.save_pretrained(path)
                made.processor.save_pretrained(path)
        return path

    def recipe(self, name: str, **changes: Any) -> Recipe:
        """Two samples a step, three steps, L_a and BASIC's terms; `changes` go into the groups."""
        base: dict[str, Any] = {
            "model": {"attach": str(self.model(name))},
            "data": {"train": str(self.data), "image_root": str(self.pictures.folder), "evaluate": str(self.held_out)},
            "labels": {"path": str(self.pictures.labels)},
            "loss": {"sea": {"weight": 1.0}, "das": {"weight": 1.0}, "sds": {"weight": 0.01}},
            "seed": 3,
            "training_arguments": {"per_device_train_batch_size": 2, "max_steps": 3, "save_steps": 1},
        }
        for group, values in changes.items():
            base[group] = base[group] | values if isinstance(base.get(group), dict) else values
        if base["training_arguments"]["max_steps"] == 1:  # a warm-up would be all of it
            base["training_arguments"].setdefault("warmup_steps", 0)
        return Recipe.model_validate(base)

    def open(self, name: str) -> ExistingFolder:
        """The same folder as a run opens it."""
        return open_existing_folder(self.model(name))

    def locate(self, image: str) -> Path:
        return self.pictures.folder / image

    def read(self, folder: ExistingFolder, max_length: int | None = 2048, file: Path | None = None) -> ChatData:
        """The good rows of a file, else of `data`."""
        rows = read_texts(file or self.data, folder.chat).rows
        return ChatData(rows, self.locate, folder.chat, max_length=max_length)


def make_existing(root: Path, pictures: Pictures) -> ExistingWorld:
    """Writes a caption, two turns, a text alone, two images; three captions are held out."""
    records: list[dict[str, Any]] = [
        {"id": "one", "image": "wide.png", "conversations": exchange("<image>\nWhat is this?", "a red patch")},
        {
            "id": "turns",
            "image": "tall.png",
            "conversations": exchange("<image>\nWhat?", "green and blue", "Which colour is the corner?", "white"),
        },
        {"id": "text", "conversations": exchange("Which colour is the left half?", "red or blue")},
        {
            "id": "two",
            "image": ["square.png", "odd.png"],
            "conversations": exchange("<image>\n<image>\nWhat is the difference?", "one is green"),
        },
        {"id": "last", "image": "other.png", "conversations": exchange("What?\n<image>", "The left half is magenta.")},
        {"id": "again", "image": "square.png", "conversations": exchange("What?\n<image>", "a blue one")},
    ]
    said = {"wide.png": "a red patch", "other.png": "The left half is magenta.", "tall.png": "green and blue"}
    held = [
        {"id": f"held-{name}", "image": name, "conversations": exchange("<image>\nWhat do you see?", answer)}
        for name, answer in said.items()
    ]
    world = ExistingWorld(root, root / "data.json", root / "held.json", pictures)
    world.data.write_text(json.dumps(records))
    world.held_out.write_text(json.dumps(held))
    return world


def attached_model(model: Any, folder: ExistingFolder, **settings: Any) -> AttachedModel:
    """A model with its terms, as a run has it."""
    return AttachedModel(model, Attached(model, folder.processor, settings.get("labels"), Loss(), 0))
