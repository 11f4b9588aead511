"""Fits the lens of an LLM once on plain text, and keeps it in the cache.

The text is this project's own and the same for every recipe. So a lens depends on the LLM alone, is fitted once for all
runs, and tells the projector nothing of the captions that it is trained and measured on.
"""

import hashlib
from collections.abc import Iterable
from functools import cache, partial
from typing import Any

import torch

from sea_pipeline.core.devices import exact_float32
from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT, Reporter
from sea_pipeline.storage.cache import remembered
from sea_pipeline.storage.hashing import fingerprint_of
from trainer.losses.lens import PENALTIES, Lens, LensKind, fit, load_lens, save_lens
from trainer.model.plain_text import plain_text
from trainer.model.reader import Reader

LENS_VERSION = 2
"""A part of a run's identity. Raise it when the same LLM would get another lens."""
SENTENCES = 1_200
TOKENS, HELD_OUT = 12_288, 1_536
"""The number of tokens read, and how many of them, at the end, choose the penalty."""


def lens_fields() -> dict[str, Any]:
    """Return by name what a lens is made from besides the LLM."""
    text = hashlib.sha256(plain_text(SENTENCES).encode()).hexdigest()
    return {"version": LENS_VERSION, "text": text, "tokens": TOKENS, "held_out": HELD_OUT, "penalties": list(PENALTIES)}


@exact_float32()  # lenses are kept under a key that knows nothing of a caller's autocast
def text_lenses(
    reader: Reader, kinds: Iterable[LensKind], layers: int, reporter: Reporter = SILENT
) -> dict[LensKind, Lens]:
    """Return lenses for the first layers of an LLM.

    They come from the cache if they have been fitted before.

    Args:
        reader: the LLM, as it is before any training.
        kinds: which of them; "none" is left out.
        layers: k.
        reporter: is told of the rows that are read.

    Raises:
        UserError: the cache cannot be written, or the LLM gives numbers that are not finite.
    """
    rows = reader.rows(plain_text(SENTENCES), TOKENS)
    ids = hashlib.sha256(rows.numpy().tobytes()).hexdigest()
    key = fingerprint_of(lens_fields() | {"llm": reader.digest(), "ids": ids, "layers": layers})
    width = int(reader.llm.config.hidden_size)
    pairs = cache(partial(_pairs, reader, rows, layers, reporter))  # read once for all kinds, if any is not kept

    def fitted(kind: LensKind) -> Lens:
        own, states = pairs()
        held_out = min(HELD_OUT, len(own) // 8)
        plain, found = torch.zeros(()), []  # float32, on the CPU
        for one in states:
            there = one.to(reader.device), own.to(reader.device)
            found.append(fit(*there, kind, held_out=held_out, penalties=PENALTIES).to(plain))
        return Lens(tuple(found))

    def kept(kind: LensKind) -> Lens:
        read = partial(load_lens, layers=layers, width=width)
        return remembered(f"lenses/{key}-{kind}.npz", read, partial(fitted, kind), save_lens)

    return {kind: kept(kind) for kind in kinds if kind != "none"}


def _pairs(
    reader: Reader, rows: torch.Tensor, layers: int, reporter: Reporter
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Read E, float32 (T, d), and H of each layer.

    They stay on the CPU, because for a large LLM they are gigabytes.
    """
    seen: list[list[torch.Tensor]] = [[] for _ in range(layers + 1)]
    with reporter.progress("fitting a lens on text", len(rows)) as advance:
        reader.read(rows, lambda layer, states: seen[layer].append(states.cpu()), layers, advance)
    own, *states = (torch.cat(parts) for parts in seen)
    for number, one in enumerate(states, 1):
        if not one.isfinite().all():
            raise UserError(
                f"loss.basic.lens: layer {number} gives numbers that are not finite on plain text; the LLM is damaged, "
                "or its precision is too low for it"
            )
    return own, states
