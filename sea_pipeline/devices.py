"""Which device computes."""

import re

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
