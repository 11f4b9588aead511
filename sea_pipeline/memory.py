"""How much memory a process has had."""

import sys


def process_peak_bytes() -> int:
    """The most resident memory that this process has had."""
    import resource  # here: Windows lacks it, and reads labels all the same

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
