"""Every kind of a trial, by its name: a function of the world, a folder of its own, and what is random."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.fuzz import folders, inputs, runs, texts, web
from tests.fuzz.worlds import World

Kind = Callable[[World, Path, random.Random], str]
"""Gives the good end that the trial had; raises a `FaultError` if it had none."""
KINDS: dict[str, Kind] = {**inputs.KINDS, **texts.KINDS, **folders.KINDS, **runs.KINDS, **web.KINDS}


def trial(world: World, kind: str, seed: int) -> str:
    """One trial: the same kind and seed do the same to the same world."""
    folder = world.root / "trials" / f"{kind} {seed}".replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        return KINDS[kind](world, folder, random.Random(f"{kind} {seed}"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
