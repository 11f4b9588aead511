"""Arrays as base64 of little-endian numbers, which a browser reads as typed arrays."""

import base64
from typing import Any

import numpy as np
import numpy.typing as npt


def packed(values: npt.ArrayLike, kind: str) -> dict[str, str]:
    """An array, row-major, as `{"type": kind, "data": base64}`; `core.js: unpack` is the inverse.

    Args:
        values: numbers that fit.
        kind: u8, u16, u32 or f32.
    """
    dtype = {"u8": "<u1", "u16": "<u2", "u32": "<u4", "f32": "<f4"}[kind]
    array: npt.NDArray[Any] = np.ascontiguousarray(np.asarray(values).astype(dtype))
    return {"type": kind, "data": base64.b64encode(array.tobytes()).decode()}


def narrow(count: int) -> str:
    """The kind for numbers below `count`."""
    return "u16" if count <= 1 << 16 else "u32"
