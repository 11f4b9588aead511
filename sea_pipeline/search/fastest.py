"""Find the fastest search on this machine for these vectors, by a trial on the first patches, and remember it.

Which one is the fastest depends on the processor, on the libraries that multiply, and for int8 on the vectors, because
its bound may not be able to tell the words apart. All give the same answers, so the choice changes only the time.
"""

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from sea_pipeline.core.devices import processor
from sea_pipeline.core.errors import UserError
from sea_pipeline.core.extras import installed_version
from sea_pipeline.search.candidates import Candidates, ranking
from sea_pipeline.search.float32 import FaissCandidates, TorchCandidates, faiss_is_there
from sea_pipeline.search.int8 import Int8Candidates, is_fast
from sea_pipeline.storage.hashing import fingerprint_of
from sea_pipeline.storage.paths import cache_folder
from sea_pipeline.storage.publish import publish_bytes

_LOG = logging.getLogger(__name__)
_TRIED = 128
"""Patches of a trial, enough to multiply matrices as in a run, and no more than a few images have."""
_WORDS_HASHED = 64
_PACKAGES = ("torch", "faiss-cpu", "faiss-gpu", "sea-pipeline")


class FastestCandidates:
    """Asks the fastest of int8, torch and FAISS that are available, on a CPU.

    Args:
        words: float32 (W, D), unit length.
        made_by: how to make each available one, by name; None for those of this machine.
    """

    patches_per_call = 512

    def __init__(self, words: torch.Tensor, made_by: Mapping[str, Callable[[], Candidates]] | None = None) -> None:
        self._words = words
        self._made_by = dict(made_by or _there(words))
        self._made: dict[str, Candidates] = {}
        self._lock = threading.RLock()
        self.names: list[str] = list(self._made_by) if len(self._made_by) == 1 else []
        """The fastest first. Empty until the first call, unless an earlier run has kept the ranking."""
        self._kept = cache_folder() / "search" / f"{self._key()}.json"
        if not self.names and sorted(kept := _read(self._kept)) == sorted(self._made_by):
            self.names = kept
            _LOG.debug("the fastest search is %s by %s", kept[0], self._kept)

    def __call__(self, patches: torch.Tensor, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Candidates`."""
        with self._lock:
            if not self.names:
                self._try(patches[:_TRIED], n, k)
            fastest = self._one(self.names[0])
        return fastest(patches, n, k)

    def _one(self, name: str) -> Candidates:
        """Return a search by its name, made at its first use."""
        if name not in self._made:
            self._made[name] = self._made_by[name]()
            # For patches that int8 cannot decide, it asks the next fastest instead of torch's search.
            if isinstance(made := self._made[name], Int8Candidates):
                made.otherwise = self._next
        return self._made[name]

    def _next(self) -> Candidates:
        """Return the fastest search that scores all words in float32."""
        with self._lock:
            return self._one(next(name for name in [*self.names, "torch"] if name != "int8"))

    def _try(self, patches: torch.Tensor, n: int, k: int) -> None:
        """Time all searches on some patches, keep the ranking in the cache, and drop all but the fastest."""
        self.names = ranking({name: partial(self._one(name), patches, n, k) for name in self._made_by})
        self._made = {name: one for name, one in self._made.items() if name == self.names[0]}
        _LOG.debug("the fastest search is %s, then %s", self.names[0], self.names[1:])
        try:
            publish_bytes(self._kept, json.dumps(self.names).encode(), cache_folder())
        except UserError as error:
            _LOG.debug("the fastest search is not kept: %s", error)

    def _key(self) -> str:
        """Name the ranking after what it depends on."""
        some = self._words[:: 1 + len(self._words) // _WORDS_HASHED].contiguous()
        return fingerprint_of(
            {
                "processor": f"{processor()}, {os.cpu_count()}",
                "threads": torch.get_num_threads(),
                "versions": [installed_version(package) or "" for package in _PACKAGES],
                "backends": sorted(self._made_by),
                "words": [*self._words.shape, hashlib.sha256(some.numpy().tobytes()).hexdigest()],
            }
        )


def _there(words: torch.Tensor) -> dict[str, Callable[[], Candidates]]:
    found: dict[str, Callable[[], Candidates]] = {"torch": lambda: TorchCandidates(words)}
    if faiss_is_there():
        found["faiss"] = lambda: FaissCandidates(words)
    if is_fast(words.device):
        found["int8"] = lambda: Int8Candidates(words)
    return found


def _read(path: Path) -> list[str]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):  # absent or damaged, so the searches are timed again
        return []
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []
