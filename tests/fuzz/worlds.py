"""What is whole before a trial, and what is true of it: photos in many formats, their labels, a training world."""

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from sea_pipeline import LabelStore, open_labels
from sea_pipeline.cli.app import FAILED_SHARDS
from sea_pipeline.core.errors import UserError
from sea_pipeline.labels import run as label_run
from sea_pipeline.storage import retry
from tests.fuzz.verdicts import REFUSED, Ended, command, lost
from tests.support.contents import rows
from tests.support.photo_forms import Photos, write_folder
from tests.support.world import COLOURS, ColourEncoder, word_file

if TYPE_CHECKING:
    from tests.support import tiny_runs

FORMATS: dict[str, list[dict[str, Any]]] = {
    "png": [{}, {"compress_level": 0}],
    "jpg": [{"quality": 95}, {"progressive": True}, {"restart_marker_blocks": 4}],
    "webp": [{"lossless": True}, {"quality": 80}],
    "tif": [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}],
    "gif": [{}],
    "bmp": [{}],
}
"""By suffix, how Pillow writes it."""
_Truth = tuple[list[Any], list[Any]]


class Case(NamedTuple):
    """An input of `label` that has been damaged."""

    images: str | Path
    done: str
    """How, for people."""
    untouched: Photos
    """By id, the photos whose bytes are as they were: each must be labelled, or named."""
    containers: frozenset[str] = frozenset()
    """Ids of what tells of damage to more than one image: files that hold several."""
    options: tuple[object, ...] = ()
    named_by_checksum: bool = True
    """Whether damage to an id shows; else a photo may be labelled under another one."""


class World:
    """Photos with their labels below a folder; see `made`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run: Callable[..., Ended] = command
        """How commands are run: in this process, or as programs."""
        self.words = word_file(root / "colours.txt")
        self.photos: Photos = {f"{('', 'a/', 'b/')[n % 3]}{n:03d}.{suffix}": data for n, (suffix, data) in _drawn()}
        self.folder = write_folder(root / "photos", self.photos)
        ended = self.label(self.folder, root / "labels")
        assert ended.code == 0, ended
        self.labels = root / "labels"
        store = open_labels(self.labels)
        assert len(store) == len(self.photos)
        self.truth = {_sha256(self.photos[name]): found[:2] for name, found in rows(store).items()}
        """By the hash of a photo's bytes, its words and scores."""

    def label(self, images: object, out: Path, *more: object) -> Ended:
        """Labels an input, whatever share of it is bad."""
        return self.run("label", "--images", images, "--out", out, *self.options(), *more)

    def options(self, **changes: object) -> tuple[object, ...]:
        """How the labels of this world are made."""
        base = {"wordlist": self.words, "top-n": 3, "shard-size": 4, "max-bad": 1, "device": "cpu"}
        pairs = ((f"--{name}", value) for name, value in (base | changes).items())
        return ("--no-probe", *(part for pair in pairs for part in pair))

    def judge(self, case: Case, out: Path) -> str:
        """Labels a damaged input and judges what came out; says which of the two good ends it had."""
        ended = self.label(case.images, out, *case.options)
        if ended.code == FAILED_SHARDS:
            return "a shard failed, and was named"
        if ended.code:
            return REFUSED
        store = open_labels(out)
        found = rows(store)
        held = _hashes(store)
        bad = {str(row["image_id"]): row["message"] for row in store.quarantine()}
        strangers = len(bad.keys() - self.photos.keys() - case.containers)
        for name, data in case.untouched.items():
            if name in found:
                if held[name] != _sha256(data):
                    raise lost(f"{case.done}: {name} is labelled by the bytes of another image")
                if found[name][:2] != self.truth[_sha256(data)]:
                    raise lost(f"{case.done}: {name} has other labels than it should")
            elif name in bad or case.containers & bad.keys():
                continue
            elif case.named_by_checksum or not (_sha256(data) in held.values() or strangers):
                raise lost(f"{case.done}: {name} is neither labelled nor named; {ended.err[-600:]}")
            elif _sha256(data) not in held.values():
                strangers -= 1  # bad by another name, because the name is what was damaged
        return "labelled" if found else "all named"

    @cached_property
    def training(self) -> "tiny_runs.World":
        """Conversations, labels and a tiny model; transformers is imported for it."""
        from tests.support import tiny_runs

        return tiny_runs.make_world(self.root / "training")


@contextmanager
def made(root: Path) -> Iterator[World]:
    """A world below a folder, while the colour encoder stands in for every other, with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    root.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_run, "load_encoder", lambda spec, device, options: ColourEncoder())
        patch.setenv("SEA_PIPELINE_CACHE", str(root / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(retry, "WAITS", (0.01, 0.01))
        patch.setenv("HF_DATASETS_CACHE", str(root / "datasets"))
        yield World(root)
    torch.set_num_threads(threads)


def same_labels(store: LabelStore, truth: dict[str, tuple[Any, ...]], done: str) -> None:
    """Refuses a folder of labels that opens and says something else than it said when it was whole."""
    try:
        found = rows(store)
    except UserError:
        return  # a page is damaged, and it says so
    if found != truth:
        raise lost(f"{done}: the labels open, with other values than were written")


def _hashes(store: LabelStore) -> dict[str, bytes]:
    tables = list(store.tables())
    return {
        name: sha256
        for table in tables
        for name, sha256 in zip(table["image_id"].to_pylist(), table["image_sha256"].to_pylist(), strict=True)
    }


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _drawn() -> Iterator[tuple[int, tuple[str, bytes]]]:
    """One photo for each way to write a format."""
    random = np.random.default_rng(0)
    ways = [(suffix, options) for suffix, several in FORMATS.items() for options in several]
    for number, (suffix, options) in enumerate(ways):
        values = np.array([[COLOURS[str(random.choice(list(COLOURS)))] for _ in range(4)] for _ in range(3)], np.uint8)
        picture = Image.fromarray(values).resize((48, 48), Image.Resampling.NEAREST)
        buffer = io.BytesIO()
        picture.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()), **options)
        yield number, (suffix, buffer.getvalue())
