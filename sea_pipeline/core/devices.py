"""Which device computes, on how many cores, and how exactly."""

import os
import platform
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import torch

from sea_pipeline.core.device_names import check_device_name
from sea_pipeline.core.errors import UserError


def resolve_device(spec: str) -> str:
    """`auto` becomes CUDA where there is one, else the CPU; anything else must exist.

    Raises:
        UserError: the device is not there; nothing falls back to the CPU in silence.
    """
    if spec == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device_name(spec)
    try:
        torch.zeros(1, device=spec)
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"--device {spec}: expected a device of this machine; torch says: {reason}") from error
    return spec


def processor() -> str:
    """The maker and the model of this machine's processor, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").split("\n\n")[0].split("\n")
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith(("vendor_id", "model name"))]
    return " ".join(named) or platform.processor() or platform.machine()


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_onednn() -> bool:
    """Whether oneDNN's float32 products of a matrix with a layer's weights can be asked for by name."""
    built = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return built and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies float32 faster than torch's BLAS does; by a rule, so that runs stay alike.

    MKL takes half of what the cores of other makers than Intel can do.
    """
    by_mkl = bool(torch.backends.mkl.is_available())  # type: ignore[no-untyped-call]
    return has_onednn() and by_mkl and "Intel" not in processor()


@contextmanager
def exact_float32() -> Iterator[None]:
    """Products of float32 that are float32, and sums of float16's that are, on CUDA, too: no TF32.

    The settings are the whole process's: of several threads that are within, the last one out puts them back.
    """
    global _within
    with _LOCK:
        if not _within:
            _SETTINGS.enter_context(_exact())
        _within += 1
    try:
        yield
    finally:
        with _LOCK:
            _within -= 1
            if not _within:
                _SETTINGS.close()


_LOCK, _SETTINGS, _within = threading.Lock(), ExitStack(), 0
_ROUGH = ("allow_fp16_reduced_precision_reduction", "allow_fp16_accumulation")
"""What has CUDA add parts of a float16 product in float16; older versions of torch know the first alone."""


@contextmanager
def _exact() -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    kept = torch.get_float32_matmul_precision()
    rough = {name: getattr(matmul, name) for name in _ROUGH if hasattr(matmul, name)}
    torch.set_float32_matmul_precision("highest")
    for name in rough:
        setattr(matmul, name, False)
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(kept)
        for name, value in rough.items():
            setattr(matmul, name, value)
