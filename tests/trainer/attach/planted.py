"""Planted colours: pictures of one colour with a cell of another, through a family's own processor and code."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from sea_pipeline.inputs.crops import CropBox, inside
from tests.support.world import COLOURS
from tests.trainer.attach.families import Tiny
from tests.trainer.attach.worlds import Pictures, labelled
from trainer.attach import attach
from trainer.attach.attached import Attached
from trainer.attach.tiles import ImageTokens, Size
from trainer.data.geometry import even_middles

GROUND, COLOUR = "grey", "red"
SHAPES = ((384, 192), (160, 320), (280, 200))
"""(width, height): wide, tall, and one that gets bars where there are any; cells end near whole pixels."""


class Planted:
    """An attached model that is shown pictures of one colour with a cell of another one."""

    def __init__(self, made: Tiny, pictures: Pictures | None = None) -> None:
        self.made = made
        terms: dict[str, Any] = {"sea": {}} if pictures else {"basic": {"degree": "equal"}}
        labels = pictures.open() if pictures else None
        self.attached: Attached = attach(made.model, made.processor, labels=labels, **terms)

    def tokens(self, images: Sequence[Image.Image]) -> tuple[torch.Tensor, list[ImageTokens]]:
        """V of pictures of one size, which must be what enters the LLM, and where it lies."""
        kept, fed = forward(self.attached, self.made.batch([([image], "a red patch") for image in images]))
        assert torch.equal(fed, kept.visual)
        laid = self.attached._parts.family.lay(kept.call, [images[0].size] * len(images))
        assert sum(one.tokens for one in laid) == len(kept.visual)
        return kept.visual, laid


def forward(attached: Attached, batch: dict[str, Any]) -> tuple[Any, torch.Tensor]:
    """What is kept of a forward, and what its LLM is given at the images' places."""
    given: dict[str, Any] = {}
    hook = attached._parts.llm.register_forward_pre_hook(lambda _, __, named: given.update(named), with_kwargs=True)
    with torch.no_grad():
        attached.model(**batch)
    hook.remove()
    kept = attached.kept()
    return kept, given["inputs_embeds"][kept.columns]


def painted(size: Size, box: Sequence[float] = (0, 0, 0, 0)) -> Image.Image:
    width, height = size
    values = np.full((height, width, 3), COLOURS[GROUND], np.uint8)
    x0, y0, x1, y1 = (max(0, round(edge * side)) for edge, side in zip(box, size * 2, strict=True))
    values[y0:y1, x0:x1] = COLOURS[COLOUR]
    return Image.fromarray(values)


def cell_boxes(laid: ImageTokens) -> Iterator[tuple[int, int, CropBox]]:
    """The tile, the cell and the box of every cell that lies in the image for its larger part."""
    for number, tile in enumerate(laid.tiles):
        x0, y0, x1, y1 = tile.box
        width, height = (x1 - x0) / tile.grid[1], (y1 - y0) / tile.grid[0]
        down, across = tile.middles or even_middles(tile.grid, tile.box)
        for cell in range(tile.grid[0] * tile.grid[1]):
            row, column = divmod(cell, tile.grid[1])
            x, y = across[column] - width / 2, down[row] - height / 2
            if min(x + width, 1) - max(x, 0) > 0.6 * width and min(y + height, 1) - max(y, 0) > 0.6 * height:
                yield number, cell, (x, y, x + width, y + height)


class Cell(NamedTuple):
    """What a failed test shows of a cell."""

    size: Size
    tile: int
    cell: int


def missed_cells(made: Tiny, shapes: Sequence[Size], root: Path, every: int = 1) -> tuple[list[Cell], int]:
    """Paints cells, and gives those that were missed, and how many there were.

    A cell is hit if painting it changes its token more than all others of its tile, and if its label, and that of half
    the others at most, is the colour.
    """
    places = {}
    bare = Planted(made)
    for size in shapes:
        places[size] = list(cell_boxes(bare.tokens([painted(size)])[1][0]))[::every]
        for number, (_, _, box) in enumerate(places[size]):
            file = root / "images" / f"{size[0]}-{number:03d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            painted(size, box).save(file)
    bare.attached.detach()
    planted = Planted(made, labelled(root))
    red, missed = list(COLOURS).index(COLOUR), []
    for size, cells in places.items():
        blank, _ = planted.tokens([painted(size)])
        visual, laid = planted.tokens([painted(size, box) for *_, box in cells])
        for number, ((tile, cell, _), one) in enumerate(zip(cells, laid, strict=True)):
            change = (visual[number * one.tokens :][: one.tokens] - blank).norm(dim=-1)
            most = int(change[torch.from_numpy(one.tiles[tile].cells)].argmax())
            is_red = planted.attached.labels_on(f"{size[0]}-{number:03d}.png", one.tiles[tile]).word_ids[:, 0] == red
            if most != cell or not is_red[cell] or is_red.mean() > 0.5:
                missed.append(Cell(size, tile, cell))
    planted.attached.detach()
    return missed, sum(len(cells) for cells in places.values())


def missed_corners(made: Tiny, size: Size, least: float = 0.7) -> tuple[list[Cell], int]:
    """Paints each cell from `least` to its lower right corner, which too large a box puts into the next cell."""
    planted = Planted(made)
    blank, (laid,) = planted.tokens([painted(size)])
    cells = list(cell_boxes(laid))
    corners = [inside((least, least, 0.95, 0.95), box) for *_, box in cells]
    visual, _ = planted.tokens([painted(size, corner) for corner in corners])
    planted.attached.detach()
    missed = []
    for number, (tile, cell, _) in enumerate(cells):
        change = (visual[number * laid.tokens :][: laid.tokens] - blank).norm(dim=-1)
        if int(change[torch.from_numpy(laid.tiles[tile].cells)].argmax()) != cell:
            missed.append(Cell(size, tile, cell))
    return missed, len(cells)
