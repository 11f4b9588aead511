"""Where the time of one call goes on a GPU, by torch's profiler; without one, by torch's operators on the CPU."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, supported_activities

from tests.bench.measure import Figure

KERNELS = 8


class Profile:
    """One call.

    Attributes:
        whole: the seconds of all kernels together.
    """

    def __init__(self, action: Callable[[], object]) -> None:
        self._on_gpu = ProfilerActivity.CUDA in supported_activities()
        with torch.profiler.profile() as profile:
            action()
            if self._on_gpu:
                torch.cuda.synchronize()
        self._events = [event for event in profile.events() if str(event.device_type).endswith("CPU")]
        self._rows = sorted(self._kernels(profile.key_averages()), key=lambda row: -self._own(row))
        self.whole = sum(self._own(row) for row in self._rows) / 1e6

    def _kernels(self, rows: Any) -> list[Any]:
        """The rows of the device, without named ranges: an operator's row counts the time of its kernels again."""
        kind = "CUDA" if self._on_gpu else "CPU"
        return [row for row in rows if str(row.device_type).endswith(kind) and not row.is_user_annotation]

    def _own(self, row: Any) -> float:
        """Microseconds."""
        spent: float = row.self_device_time_total if self._on_gpu else row.self_cpu_time_total
        return spent

    def share(self, name: str) -> float:
        """The share of kernels that ranges of this name began (`torch.profiler.record_function`)."""
        spent = sum(self._under(event) for event in self._events if event.name == name)
        return spent / 1e6 / (self.whole or 1)

    def _under(self, event: Any) -> float:
        """Microseconds of an event's kernels and those of the events within; not of the range on the GPU's own track,
        which has the event's name."""
        if not self._on_gpu:
            return float(event.cpu_time_total)
        own = sum(kernel.duration for kernel in event.kernels if kernel.name != event.name)
        return float(own + sum(self._under(child) for child in event.cpu_children))

    def largest(self, name: str, beside: str) -> Iterator[Figure]:
        """`name.1` and on: the kernels that take the most time."""
        for number, row in enumerate(self._rows[:KERNELS], 1):
            said = f"{row.key[:110]}, {row.count} calls; {beside}"
            yield Figure(f"{name}.{number}", self._own(row) / 1e6 / (self.whole or 1), "share", said)
