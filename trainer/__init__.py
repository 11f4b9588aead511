"""The training package of sea-pipeline: from label shards to a trained model, with SEA's and BASIC's losses.

`trainer.attach(model, processor, …)` puts the losses on a model that exists already. docs/reference.md lists what else
a script of yours imports.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # at run time it is a package that can be called
    from trainer.attach.attached import attach as attach
else:

    def __getattr__(name: str) -> ModuleType:
        """Import `attach` only when it is asked for, because it brings in transformers."""
        if name == "attach":
            return import_module("trainer.attach")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
