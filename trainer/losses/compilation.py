"""Keep functions out of what `torch.compile` compiles, because hooks on a compiled function's results never fire."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])


def uncompiled(function: _Function) -> _Function:
    """Exclude a function, and all that it calls, from compilation."""
    return cast("_Function", torch.compiler.disable(function))


def uncompiled_itself(function: _Function) -> _Function:
    """Exclude a function, but not what it calls, from compilation."""
    return cast("_Function", torch.compiler.disable(function, recursive=False))
