"""Compute which part of an image the vision tower sees, and carry labels from one grid to another.

Boxes are (x0, y0, x1, y1) as shares of the upright image's width and height. If an image is padded to a square, its box
reaches beyond 0..1.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.crops import CropBox
from sea_pipeline.labels.store import Labels
from trainer.model.aspect_ratio import pads

Middles = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Where the middles of a grid's rows and columns lie in an image, as shares of its height and width."""
_TOLERANCE = 0.25
"""In grid cells: two boxes whose edges differ by at most this are one crop, rounded in two ways."""


def processor_box(image_processor: Any, width: int, height: int) -> CropBox:  # noqa: ANN401 - any image processor
    """Compute the part of a `width` x `height` image that an image processor's output shows.

    Reads the settings that CLIP's, SigLIP's, DINOv2's and LLaVA's processors share: pad to a square, resize, centre
    crop.
    """
    sides = (max(width, height),) * 2 if pads(image_processor) else (width, height)
    share_x = share_y = 1.0
    if getattr(image_processor, "do_center_crop", False):
        resized_width, resized_height = _resized(image_processor, *sides)
        share_x = image_processor.crop_size["width"] / resized_width
        share_y = image_processor.crop_size["height"] / resized_height
    x0, x1 = _shown(width, sides[0], share_x)
    y0, y1 = _shown(height, sides[1], share_y)
    return (x0, y0, x1, y1)


def image_setting(processor: Any, name: str) -> Any:  # noqa: ANN401 - a setting of any processor
    """Return an image setting of a whole processor, whose own takes precedence over its image processor's."""
    own = (getattr(processor, "images_kwargs", None) or {}).get(name)
    return getattr(processor.image_processor, name, None) if own is None else own


def _shown(side: int, padded: int, share: float) -> tuple[float, float]:
    """Compute along one side which part of the image the middle `share` of the padded side shows.

    `padded` is the side after padding, in pixels; the result is in shares of the image. If the bars have an odd number
    of pixels in all, the second one is wider.
    """
    bar = (padded - side) // 2  # the first bar; the middle share of the padded side begins at padded * (1 - share) / 2
    return (padded * (1 - share) / 2 - bar) / side, (padded * (1 + share) / 2 - bar) / side


def _resized(image_processor: Any, width: int, height: int) -> tuple[float, float]:  # noqa: ANN401
    size = image_processor.size if getattr(image_processor, "do_resize", False) else None
    if not size:
        return width, height
    shortest = size.get("shortest_edge")
    if shortest:
        scale = shortest / min(width, height)
        return width * scale, height * scale
    return size["width"], size["height"]


def same_place(labels: Labels, grid: tuple[int, int], box: CropBox) -> bool:
    """Tell whether labels have the same grid and cover the same part of the image."""
    if tuple(labels.grid) != tuple(grid):
        return False
    cells = (grid[1], grid[0], grid[1], grid[0])
    sides = (box[2] - box[0], box[3] - box[1]) * 2
    pairs = zip(labels.crop_box, box, sides, cells, strict=True)
    return all(abs(ours - theirs) <= _TOLERANCE * side / cell for ours, theirs, side, cell in pairs)


def carried(labels: Labels, grid: tuple[int, int], box: CropBox, middles: Middles | None = None) -> Labels:
    """Transfer labels to another grid over another part of the same image.

    A target cell takes the labels of the source cell that contains its middle. A cell whose middle lies outside the
    labelled part has no labels.

    Args:
        labels: labels as read from shards.
        grid: (rows, columns) of the target.
        box: the part of the image that the target's grid covers.
        middles: of the target's cells; None: even in the box.
    """
    middles = middles or even_middles(grid, box)
    y, inside_y = _cells(labels.crop_box[1], labels.crop_box[3], labels.grid[0], middles[0])
    x, inside_x = _cells(labels.crop_box[0], labels.crop_box[2], labels.grid[1], middles[1])
    source = (y[:, None] * labels.grid[1] + x[None]).ravel()
    there = (inside_y[:, None] & inside_x[None]).ravel()[:, None]
    word_ids = np.where(there, labels.word_ids[source], np.int32(-1))
    scores = np.where(there, labels.scores[source], np.float32(0))
    return Labels(word_ids, scores, grid, box)


def even_middles(grid: tuple[int, int], box: CropBox) -> Middles:
    """Compute where the middles of a box's cells lie."""
    (x0, y0, x1, y1), (rows, columns) = box, grid
    return y0 + (np.arange(rows) + 0.5) / rows * (y1 - y0), x0 + (np.arange(columns) + 0.5) / columns * (x1 - x0)


def _cells(
    start: float, end: float, count: int, middles: npt.NDArray[np.float64]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Find the source cell of each middle along one side, and whether it exists."""
    position = (middles - start) / (end - start) * count
    return np.clip(np.floor(position), 0, count - 1).astype(np.int64), (position >= 0) & (position < count)


def placed(
    labels: Labels,
    grid: tuple[int, int],
    box: CropBox,
    *,
    transfer: bool,
    image_id: str,
    middles: Middles | None = None,
) -> Labels:
    """Return labels for the tower's grid and crop, transferred if they differ and `transfer` allows it.

    For `middles` see `carried`. Labels are always transferred to them.

    Raises:
        UserError: grid or crop differ and `transfer` is False.
    """
    if middles is None and same_place(labels, grid, box):
        return without_bars(labels)
    if not transfer:
        raise UserError(
            f"labels of {image_id!r}: expected the tower's grid {tuple(grid)} and crop "
            f"{_rounded(box)}, found {tuple(labels.grid)} and {_rounded(labels.crop_box)}; label with the tower's "
            "own crop, or carry them over: labels.transfer: true in a recipe, --transfer of evaluate"
        )
    return without_bars(carried(labels, grid, box, middles), middles)


def without_bars(labels: Labels, middles: Middles | None = None) -> Labels:
    """Remove the labels of cells whose middle lies outside the image.

    Those cells show the bars of a padded image, to which an encoder may have given words.
    """
    y, x = middles or even_middles(labels.grid, labels.crop_box)
    # Middles outside 0..1 lie in bars.
    there = (((y >= 0) & (y < 1))[:, None] & ((x >= 0) & (x < 1))[None]).ravel()[:, None]
    if there.all():
        return labels
    word_ids = np.where(there, labels.word_ids, np.int32(-1))
    return Labels(word_ids, np.where(there, labels.scores, np.float32(0)), labels.grid, labels.crop_box)


def _rounded(box: CropBox) -> tuple[float, ...]:
    return tuple(round(edge, 3) for edge in box)
