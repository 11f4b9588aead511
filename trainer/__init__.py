"""The training package of sea-pipeline: from label shards to a trained model, with SEA's and BASIC's losses.

`training.run.train_stages` runs a recipe and `training.run.train` one stage of it; `evaluation.run.evaluate_model`
measures a model, `model.assemble.init_model` makes one of parts. What a user imports is `losses`, `sampling`, `words`
and `towers`; `trainer.attach(model, processor, …)` puts the losses on a model that exists
already.
"""

from importlib import import_module
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    """Import `attach` only when it is asked for, because it brings in transformers."""
    if name == "attach":
        return import_module("trainer.attach")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
