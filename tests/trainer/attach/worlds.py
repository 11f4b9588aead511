"""Pictures of known colours, labels of the whole of them, and batches of both for each family."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sea_pipeline.encoders import Preprocess
from sea_pipeline.labels import run as label_run
from sea_pipeline.labels.store import LabelStore, open_labels
from tests.support.tiny_runs import label_settings
from tests.support.world import COLOURS, ColourEncoder, draw, word_file

SIZES = {"wide.png": (96, 48), "tall.png": (40, 80), "square.png": (64, 64), "odd.png": (70, 50), "other.png": (96, 48)}
"""(width, height)."""


class WholeEncoder(ColourEncoder):
    """The colour encoder on a fine grid over the whole image, squeezed."""

    grid = (24, 24)
    preprocess = Preprocess(size=48, mode="squash")


class Pictures(NamedTuple):
    """Where they are."""

    folder: Path
    labels: Path

    def image(self, name: str) -> Image.Image:
        return Image.open(self.folder / name).convert("RGB")

    def open(self) -> LabelStore:
        return open_labels(self.labels)

    def batch(self, names: Sequence[Sequence[str]]) -> list[tuple[list[Image.Image], str]]:
        """Samples of a caption each."""
        texts = ("a red patch and a green one", "What do you see in the image?", "blue", "The left half is magenta.")
        return [([self.image(each) for each in some], texts[number % 4]) for number, some in enumerate(names)]


def draw_pictures(root: Path, sizes: dict[str, tuple[int, int]] = SIZES) -> Pictures:
    """Draws 6 x 6 random colours on each, and labels them."""
    random = np.random.default_rng(0)
    for name, size in sizes.items():
        cells = [[str(random.choice(list(COLOURS))) for _ in range(6)] for _ in range(6)]
        draw(root / "images" / name, cells, size=size)
    return labelled(root)


def labelled(root: Path) -> Pictures:
    """Labels the images below `root`, three words a patch."""
    with whole_labels():
        label_run.label_images(label_settings(root / "images", word_file(root / "colours.txt"), root / "labels"))
    return Pictures(root / "images", root / "labels")


@contextmanager
def whole_labels() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_run, "load_encoder", lambda spec, device, options=None: WholeEncoder())
        yield


NAMES = [["wide.png"], ["tall.png"]]
"""Two images of other grids, where a family has those."""


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None and each.grad.any()}


def close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float = 2e-4) -> None:
    """The same parameters, each gradient to a share of its length."""
    largest = max(float(each.norm()) for each in wanted.values())
    wanted = {name: each for name, each in wanted.items() if float(each.norm()) > 1e-6 * largest}
    assert wanted.keys() <= found.keys()
    for name, each in found.items():
        other = wanted.get(name, torch.zeros_like(each)).double()
        assert float((each.double() - other).norm()) <= tolerance * max(float(other.norm()), 0.05 * largest), name
