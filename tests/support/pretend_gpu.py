"""A GPU that is none: tensors that say they are on cuda:0, and refuse what CUDA refuses, while the CPU computes.

It finds, without a GPU, what fails on every first run on one: operands on two devices, arrays made of CUDA tensors,
factories without a device; and it counts what has Python wait for the GPU. It does not know CUDA's own kernels.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

aten: Any = torch.ops.aten
GPU = torch.device("cuda", 0)
_MARK = torch.device("meta", 0)
"""What C++ takes the GPU for: its autograd needs no driver there. "meta" itself, without a number, stays what it is."""
_COPIES = {aten.copy_.default, aten._to_copy.default, aten.lift_fresh.default, aten._local_scalar_dense.default}
"""What may take tensors of both devices, or has only one."""
_INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._unsafe_index.Tensor}
"""What takes places, which may be on the CPU."""
_AUTOCAST = {F.linear, F.conv2d, F.scaled_dot_product_attention, torch.matmul, torch.Tensor.matmul,
             torch.Tensor.__matmul__, torch.bmm, torch.mm, torch.baddbmm, torch.addmm}  # fmt: skip
"""What autocast computes in less precision; what it keeps in float32 is not looked at."""
_WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default,
          aten._unique2.default, aten.repeat_interleave.Tensor}  # fmt: skip
_ON_CUDA_ALONE = {aten.mm.dtype: lambda left, right, dtype: left.to(dtype) @ right.to(dtype)}


class OnGpu(torch.Tensor):
    """A tensor of the GPU that is none; `held` is the CPU's tensor with its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "OnGpu":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made: OnGpu = torch.Tensor._make_wrapper_subclass(cls, held.size(), **layout, device=_MARK)  # type: ignore
        made.held = held
        return made

    device = property(lambda self: GPU)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @property  # type: ignore[override]
    def data(self) -> torch.Tensor:
        """Its setter puts other numbers into the same tensor."""
        return torch.Tensor.data.__get__(self)  # type: ignore[attr-defined, no-any-return]

    @data.setter
    def data(self, other: "OnGpu") -> None:
        torch.Tensor.data.__set__(self, other)  # type: ignore[attr-defined]
        self.held = other.held

    def tolist(self) -> Any:
        """By way of the CPU, as on any device."""
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """What CUDA says."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def __repr__(self, *_: object, **__: object) -> str:
        return f"OnGpu({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Devices(TorchFunctionMode):
    """The mark for each device that is asked for and is CUDA's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.cuda:
            func, args = torch.Tensor.to, (args[0], GPU)
        if func in (torch.device, torch.get_device_module):
            return func(*args, **kwargs or {})
        args, kwargs = tree_map(_marked, (args, kwargs or {}))
        if (generator := kwargs.get("generator")) is not None:
            wanted = "cuda" if kwargs.get("device") == _MARK or isinstance(args[0], OnGpu) else "cpu"
            if wanted != (given := "cuda" if getattr(generator, "of_gpu", False) else "cpu"):
                raise RuntimeError(f"Expected a '{wanted}' device type for generator but found '{given}'")
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == _MARK:  # these go past the modes
            return func(*args, **{**kwargs, "device": "cpu"}).to(_MARK)
        if func in _AUTOCAST and torch.is_autocast_enabled("cuda"):
            args, kwargs = tree_map(_autocast, (args, kwargs))
        return func(*args, **kwargs)


def _autocast(leaf: Any) -> Any:
    cast = isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float32
    return leaf.to(torch.get_autocast_dtype("cuda")) if cast else leaf


def _marked(leaf: Any) -> Any:
    is_cuda = leaf.type == "cuda" if isinstance(leaf, torch.device) else type(leaf) is str and leaf.startswith("cuda")
    return _MARK if is_cuda else leaf


class _Mode(TorchDispatchMode):
    def __init__(self, waited: Counter[str]) -> None:
        super().__init__()
        self.waited = waited

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _waits(func, args, kwargs or {}):
            self.waited[str(func)] += 1
        return _run(func, args, kwargs or {})


def _waits(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether Python waits until the GPU has come to it."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    if not any(isinstance(tensor, OnGpu) for tensor in tensors):
        return False
    if func is aten._to_copy.default:
        return kwargs.get("device", _MARK) != _MARK and not kwargs.get("non_blocking")
    masks = func in _INDEXED and any(tensor.dtype == torch.bool for tensor in tensors[1:])
    return func in _WAITS or masks


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    ours = any(isinstance(tensor, OnGpu) for tensor in tensors)
    asked = kwargs.get("device")
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": False}
    if not ours and asked != _MARK:
        return func(*args, **kwargs)
    _refuse(func, args, tensors)
    inner_args, inner_kwargs = tree_map(_held, (args, kwargs))
    if asked is not None:
        inner_kwargs["device"] = torch.device("cpu")
    found = _ON_CUDA_ALONE.get(func, func)(*inner_args, **inner_kwargs)
    to_cpu = asked is not None and asked != _MARK
    if to_cpu or (func is aten.copy_.default and not isinstance(args[0], OnGpu)):
        return args[0] if func is aten.copy_.default else found
    wrapped = tree_map(lambda one: OnGpu(one) if isinstance(one, torch.Tensor) else one, found)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, OnGpu) else leaf


def _refuse(func: Any, args: Any, tensors: list[torch.Tensor]) -> None:
    """Raises what CUDA would: operands on two devices, but for single numbers and places."""
    if func in _COPIES:
        return
    if func in _INDEXED and isinstance(args[0], OnGpu):
        tensors = [args[0], *(leaf for leaf in args[2:] if isinstance(leaf, torch.Tensor))]
    others = [tensor for tensor in tensors if not isinstance(tensor, OnGpu) and tensor.dim()]
    if others and len(others) < len(tensors):
        found = f"cuda:0 and {others[0].device}"
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, found {found}")
    if func is aten._int_mm.default:
        rows, width, columns = *args[0].shape, args[1].shape[1]
        if rows <= 16 or width % 8 or columns % 8:
            raise RuntimeError(f"_int_mm: expected over 16 rows and multiples of 8, got {rows}, {width}, {columns}")


class _Generator(torch.Generator):
    """One that knows whose it is; the CPU's draws for the GPU."""

    of_gpu: bool

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        made = super().__new__(cls)
        made.of_gpu = torch.device(device).type == "cuda"
        return made


class _Event:
    """A point in time: the CPU has computed what came before."""

    def __init__(self, **_: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, later: "_Event") -> float:
        """Milliseconds."""
        return 1e3 * (later.at - self.at)


_CUDA = {
    "_lazy_init": None, "current_device": 0, "device_count": 1, "empty_cache": None,
    "get_device_name": "a GPU that is none", "is_available": True, "is_bf16_supported": True,
    "is_current_stream_capturing": False, "max_memory_allocated": 1 << 20, "reset_peak_memory_stats": None,
    "set_device": None, "synchronize": None,
}  # fmt: skip
_RANDOM = {"get_rng_state": torch.zeros(16, dtype=torch.uint8), "set_rng_state": None}


def _in_modes(submit: Callable[..., Any], waited: Counter[str]) -> Callable[..., Any]:
    """Modes are a thread's own."""

    def submitted(pool: ThreadPoolExecutor, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def within(*args: Any, **kwargs: Any) -> Any:
            with _Devices(), _Mode(waited):
                return work(*args, **kwargs)

        return submit(pool, within, *args, **kwargs)

    return submitted


@contextmanager
def pretend_gpu() -> Iterator[Counter[str]]:
    """Within it device="cuda" works; gives what had Python wait for the GPU, and how often."""
    waited: Counter[str] = Counter()
    with ExitStack() as stack:
        for name, answer in _CUDA.items():
            stack.enter_context(patch.object(torch.cuda, name, lambda *_, answer=answer, **__: answer))
        for name, answer in _RANDOM.items():
            stack.enter_context(patch.object(torch.cuda.random, name, lambda *_, answer=answer, **__: answer))
        stack.enter_context(patch.object(torch.cuda, "Event", _Event))
        stack.enter_context(patch.object(torch, "Generator", _Generator))
        stack.enter_context(patch.object(torch.accelerator, "is_available", lambda: False))  # asked by optimizers
        stack.enter_context(patch.object(ThreadPoolExecutor, "submit", _in_modes(ThreadPoolExecutor.submit, waited)))
        # What is made in inference mode has no place for what a view of it needs here.
        for name in ("__enter__", "__exit__"):
            stack.enter_context(patch.object(torch.inference_mode, name, getattr(torch.no_grad, name)))
        stack.enter_context(_Devices())
        stack.enter_context(_Mode(waited))
        yield waited
