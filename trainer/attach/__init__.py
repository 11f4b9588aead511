"""SEA and BASIC on a model that exists already: `trainer.attach(model, processor, …)`; docs/attach.md shows it.

It may import `measures` and what is below.
"""

import sys
from types import ModuleType
from typing import Any

from trainer.attach.attached import Attached, attach
from trainer.attach.families import FAMILIES
from trainer.attach.mixin import AttachMixin

__all__ = ["FAMILIES", "AttachMixin", "Attached", "attach"]


class _Callable(ModuleType):
    """This package, called as the function that has its name."""

    def __call__(self, *given: Any, **named: Any) -> Attached:  # noqa: ANN401 - as the function
        return attach(*given, **named)


sys.modules[__name__].__class__ = _Callable
