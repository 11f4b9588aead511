"""Which device computes, and how exactly."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sea_pipeline.errors import UserError


def resolve_device(spec: str) -> str:
    """`auto` becomes CUDA where there is one, else the CPU; anything else must exist.

    Raises:
        UserError: the device is not there; nothing falls back to the CPU in silence.
    """
    if spec == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", spec):
        raise UserError(f"--device {spec}: expected auto, cpu, cuda or cuda:N")
    try:
        torch.zeros(1, device=spec)
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"--device {spec}: expected a device of this machine; torch says: {reason}") from error
    return spec


@contextmanager
def exact_float32() -> Iterator[None]:
    """Products of float32 that are float32, on CUDA, too: no TF32. The setting is the whole process's."""
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(kept)
