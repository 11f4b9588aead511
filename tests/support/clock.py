"""A clock of a test's own, which no load of the machine moves."""


class Clock:
    """Stands in for the module `time` where seconds are counted: they pass as the test says, a thousandth at a look."""

    def __init__(self) -> None:
        self._now = 0.0

    def perf_counter(self) -> float:
        self.passes(0.001)
        return self._now

    thread_time = perf_counter

    def passes(self, seconds: float) -> None:
        self._now += seconds
