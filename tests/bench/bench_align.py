"""Alignment without the LLM beside a step through it: packaged models, float32.

Also a program, whose memory is measured: `python -m tests.bench.bench_align SCRATCH lm|align` takes one step.
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

from tests.bench.measure import Figure, in_turn
from tests.bench.steps import BATCH, SEA, one_step, prepare
from tests.support.memory import READY, measured

LOSSES = {"lm": {}, "align": SEA | {"lm": 0}}
KEPT = {"keep_features": True}


def figures() -> Iterator[Figure]:
    """align.step_speedup, align.tower_share, align.kept_step_speedup and align.memory_ratio."""
    with tempfile.TemporaryDirectory() as scratch, redirect_stderr(StringIO()):
        place = Path(scratch)
        prepare(place)
        yield from _speed(place)
        yield _memory(place)


def _speed(scratch: Path) -> Iterator[Figure]:
    through_tower = one_step(scratch, LOSSES["align"])
    model, pixels = through_tower.trainer.model, through_tower.batch["pixel_values"]
    lm, align, kept, tower = in_turn(
        one_step(scratch, LOSSES["lm"]).take,
        through_tower.take,
        one_step(scratch, LOSSES["align"], data=KEPT).take,
        lambda: model.tower_output(pixels),
    )
    beside = f"a step of L_lm, {lm:.2f} s for {BATCH} samples; of SEA without the LLM's layers"
    yield Figure("align.step_speedup", lm / align, "x", f"{beside} {align:.3f} s")
    yield Figure("align.tower_share", tower / align, "of the time", f"that step; its tower alone {tower:.3f} s")
    yield Figure("align.kept_step_speedup", lm / kept, "x", f"{beside} and with kept features {1000 * kept:.0f} ms")


def _memory(scratch: Path) -> Figure:
    lm, align = (measured("-m", "tests.bench.bench_align", str(scratch), name) for name in ("lm", "align"))
    return Figure(
        "align.memory_ratio",
        lm.peak / align.peak,
        "x",
        f"a process that loads the model and takes a step of L_lm, {lm.peak / 1e9:.2f} GB of anonymous memory at most; "
        f"of SEA without the LLM, with kept features {align.peak / 1e9:.2f} GB, the imports' {align.before / 1e9:.2f} "
        "GB included",
    )


if __name__ == "__main__":
    exec(READY)
    one_step(Path(sys.argv[1]), LOSSES[sys.argv[2]], data=KEPT if sys.argv[2] == "align" else {}).take()
