"""Keep functions out of what `torch.compile` compiles, because hooks on a compiled function's results never fire."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])


def uncompiled(function: _Function) -> _Function:
    """Run a function and all that it calls as written."""
    return cast("_Function", torch.compiler.disable(function))


def uncompiled_itself(function: _Function) -> _Function:
    """Run a function as written, but compile each that it calls on its own."""
    return cast("_Function", torch.compiler.disable(function, recursive=False))
