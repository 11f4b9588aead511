"""Choose the device, count the cores and set how exactly float32 is computed."""

import os
import platform
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sea_pipeline.core.device_names import check_device_name
from sea_pipeline.core.errors import UserError


def resolve_device(spec: str) -> str:
    """Return the device to compute on, and check that it exists.

    `auto` means CUDA if this machine has it, else the CPU. Nothing falls back to the CPU in silence.

    Raises:
        UserError: the device does not exist on this machine.
    """
    if spec == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device_name(spec)
    try:
        torch.zeros(1, device=spec)
    except (RuntimeError, AssertionError) as error:  # a torch built without CUDA raises AssertionError
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"--device {spec}: expected a device of this machine; torch says: {reason}") from error
    return spec


def processor() -> str:
    """Return the maker and the model of this machine's processor, as far as the system names them."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").split("\n\n")[0].split("\n")
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith(("vendor_id", "model name"))]
    return " ".join(named) or platform.processor() or platform.machine()


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_onednn() -> bool:
    """Tell whether torch offers oneDNN's float32 product of a matrix with a layer's weights by name."""
    built = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return built and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def onednn_is_faster() -> bool:
    """Tell whether oneDNN is expected to multiply float32 faster than torch's BLAS.

    The answer follows a rule and no measurement, so that runs on one machine always choose alike. On processors of
    other makers than Intel, MKL reaches about half of the possible speed.
    """
    by_mkl = bool(torch.backends.mkl.is_available())  # type: ignore[no-untyped-call]
    return has_onednn() and by_mkl and "Intel" not in processor()


@contextmanager
def exact_float32() -> Iterator[None]:
    """Keep float32 products and the sums of float16 products in full float32, without TF32 and without autocast.

    TF32's settings belong to the whole process. If several threads are inside the block, the last one that leaves
    restores them. Autocast is this thread's own.
    """
    global _within
    with _LOCK:
        if not _within:
            _SETTINGS.enter_context(_exact())
        _within += 1
    try:
        with without_autocast():
            yield
    finally:
        with _LOCK:
            _within -= 1
            if not _within:
                _SETTINGS.close()


@contextmanager
def without_autocast() -> Iterator[None]:
    """Switch off the autocast of every device that the caller has switched on, in this thread and this block."""
    with ExitStack() as stack:
        for kind in _AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


_AUTOCAST = ("cpu", "cuda", "mps", "xpu")
"""Kinds of devices that torch has an autocast for."""
_LOCK, _SETTINGS, _within = threading.Lock(), ExitStack(), 0
_ROUGH = ("allow_fp16_reduced_precision_reduction", "allow_fp16_accumulation")
"""Switches that let CUDA add parts of a float16 product in float16; older versions of torch have only the first."""


@contextmanager
def _exact() -> Iterator[None]:
    """Switch TF32 and float16 sums off inside the block, then restore torch's settings."""
    backends: Any = torch.backends
    matmul, cudnn = backends.cuda.matmul, backends.cudnn
    with ExitStack() as stack:
        for name in (name for name in _ROUGH if hasattr(matmul, name)):
            _set(stack, matmul, name, False)
        if _older_names_work():
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
            stack.enter_context(cudnn.flags(enabled=True, allow_tf32=False))
        else:
            for part in (matmul, backends.mkldnn.matmul, cudnn.conv, cudnn.rnn):
                _set(stack, part, "fp32_precision", "ieee")
        yield


def _older_names_work() -> bool:
    """Tell whether torch takes the older names of its switches.

    It refuses them once a newer name is set, as `tf32` of transformers does.
    """
    if any(getattr(part, "fp32_precision", "none") != "none" for part in (torch.backends, torch.backends.cudnn)):
        return False
    try:
        _ = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return False
    return True


def _set(stack: ExitStack, part: Any, name: str, value: object) -> None:  # noqa: ANN401 - a module of torch
    """Set a switch of torch until the stack is closed."""
    stack.callback(setattr, part, name, getattr(part, name))
    setattr(part, name, value)
