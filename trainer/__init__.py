"""The training package of sea-pipeline: from label shards to a trained model, with SEA's and BASIC's losses.

`stages.train_stages` runs a recipe, `train.train` one stage of it; `evaluate_run.evaluate_model` measures a model,
`init.init_model` makes one of parts. The losses are in `losses`, what BASIC's learn from in `supervision`;
`trainer.attach(model, processor, …)` puts them on a model that exists already.
"""

from importlib import import_module
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    """Gives `attach` without an import of its own, and only where somebody asks for it: it brings in transformers."""
    if name == "attach":
        return import_module("trainer.attach")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
