"""Locate visual tokens in their images by each family's grids, crops and order of tiles.

Shapes: I images of a call, T visual tokens of all of them in the order in which they enter the LLM. Boxes are as in
`geometry`; beyond 0..1 they cover bars that the family adds.
"""

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers.image_processing_utils import select_best_resolution
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.llama4.image_processing_llama4 import (
    find_supported_resolutions,
    get_best_fit,
    get_max_res_without_distortion,
)
from transformers.models.llava_next.modeling_llava_next import unpad_image

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.crops import WHOLE, CropBox, Reach, reached
from trainer.data.geometry import Middles, image_setting, processor_box
from trainer.towers import sides, tower_reach

Size = tuple[int, int]
"""(width, height) of an upright image in pixels."""


class UnknownSizeError(UserError):
    """Say that an image's size is needed to locate its visual tokens."""


class Tile(NamedTuple):
    """A part of an image that has its own grid of visual tokens, which is the image, a view of it, or a tile."""

    grid: tuple[int, int]
    """(rows, columns)."""
    box: CropBox
    cells: npt.NDArray[np.int64]
    """(rows * columns,): index of each cell, row by row, among the image's visual tokens."""
    middles: Middles | None = None
    """Where the middles of the cells lie; None: evenly in the box."""


class ImageTokens(NamedTuple):
    """The visual tokens of an image."""

    tokens: int
    """Number of all tokens. Some families have tokens that belong to no place, such as the ends of rows."""
    tiles: list[Tile]


class Call(NamedTuple):
    """The arguments of one call of a model's `get_image_features`, and how many tokens it made."""

    family: str
    inner: Any
    processor: Any
    given: dict[str, Any]
    """The arguments of the call by name."""
    counts: list[int]
    """Number of visual tokens of each entry of the result: an image, a tile, or all images of a sample."""

    @property
    def total(self) -> int:
        """Sum the visual tokens to T."""
        return sum(self.counts)

    def check_total(self, laid: Sequence[ImageTokens], ids: Sequence[str]) -> None:
        """Refuse images that have other tokens than were made.

        Raises:
            UserError: the visual tokens do not fit the named images.
        """
        if (tokens := sum(one.tokens for one in laid)) == self.total:
            return
        # Where `pixel_values_videos` is missing, a video's frames enter as images.
        video = "; if some are a video's, leave its rows out" if hasattr(self.processor, "video_processor") else ""
        if not ids:
            raise UserError(
                "attached.loss: expected ids of all images of the batch, in their order; found none, and "
                f"{self.total} visual tokens; give the ids{video}"
            )
        shown = ", ".join(repr(name) for name in ids[:4])
        raise self.unlike(f"{tokens} visual tokens of {len(ids)} images ({shown}, …)", f"{self.total}{video}")

    def unlike(self, expected: str, found: object) -> UserError:
        """Make the error to raise if the tokens do not fit the images."""
        return UserError(
            f"{self.family}: expected {expected}; found {found}; give the model the images as they were labelled, "
            "upright and whole, through its own processor without image settings per call or a collator that resizes "
            "them, and their ids in the order of the images in the batch"
        )


def cells(grid: tuple[int, int], start: int = 0, row: int | None = None) -> npt.NDArray[np.int64]:
    """Count a grid's cells row by row, from `start`.

    A row is `row` tokens long, or as long as the grid is wide.
    """
    rows, columns = grid
    places: npt.NDArray[np.int64] = start + np.arange(rows)[:, None] * (row or columns) + np.arange(columns)[None]
    return places.ravel()


def fixed(call: Call, sizes: Sequence[Size | None]) -> list[ImageTokens]:
    """Lay out one grid per image, as LLaVA-1.5 and PaliGemma have it.

    The image is squeezed, cropped or padded to a square.
    """
    pixels = call.given["pixel_values"]
    grid = _patches(call)
    tokens = call.total // len(pixels)
    leading = tokens - grid[0] * grid[1]
    tower = call.inner.config.vision_config
    registers = getattr(tower, "num_register_tokens", 0)
    if leading - registers not in (0, 1) or tokens * len(pixels) != call.total:
        raise UserError(
            f"{call.family}: expected {registers + grid[0] * grid[1]} visual tokens of an image, {grid[0]} x {grid[1]} "
            f"behind {registers} registers, or one more in front; found {tokens}; the tower {tower.model_type!r} has "
            "another grid; choose a model with such a tower as 'clip_vision_model' or 'siglip_vision_model'"
        )
    boxes = [processor_box(call.processor.image_processor, *size) if size else WHOLE for size in sizes]
    reach = reach_of(call)
    return [ImageTokens(tokens, [Tile(grid, reached(box, reach), cells(grid, leading))]) for box in boxes]


def merged(call: Call, sizes: Sequence[Size | None]) -> list[ImageTokens]:
    """Lay out a grid of the whole image, merged 2 x 2, for each image of the Qwen-VL families."""
    merge = call.inner.visual.spatial_merge_size
    laid = []
    for (frames, height, width), size in zip(call.given["image_grid_thw"].tolist(), sizes, strict=True):
        if frames != 1:
            raise UserError(
                f"{call.family}: expected images; found a video, of which nothing is labelled; leave its rows out"
            )
        grid = (height // merge, width // merge)
        if size is not None:
            _check_shape(call, grid, size)
        laid.append(ImageTokens(grid[0] * grid[1], [Tile(grid, WHOLE, cells(grid))]))
    return laid


def anyres(call: Call, sizes: Sequence[Size | None]) -> list[ImageTokens]:
    """Lay out a view of the whole image, then its tiles as one grid, for LLaVA-NeXT and OneVision.

    The grid of tiles has no bars, and a token after each row. OneVision thins out the grid of large images. If a sample
    has several images, they are padded to squares, without tiles.
    """
    laid = []
    counts = call.given.get("batch_num_images")
    alone = [count == 1 for count in _listed(counts) for _ in range(count)] if counts is not None else None
    for number, (height, width) in enumerate(_listed(call.given["image_sizes"])):
        size = sizes[number]
        if size is not None and (_mirrored((height, width), size) or not _same_shape((height, width), size)):
            raise call.unlike(f"an image of the shape of {size[0]} x {size[1]} pixels", f"{width} x {height}")
        tower, reach = call.inner.config.vision_config, reach_of(call)
        base = (tower.image_size // tower.patch_size,) * 2
        whole = Tile(base, reached(WHOLE, reach), cells(base))
        if alone is not None and not alone[number]:
            box = _square_box(width, height)
            laid.append(ImageTokens(base[0] * base[1] + 1, [whole._replace(box=reached(box, reach))]))
            continue
        joined = _unpadded(call, base, (height, width))
        rows, columns = joined.grid
        parts = [joined] if rows and columns else []  # of a thin image none is left
        laid.append(ImageTokens(base[0] * base[1] + rows * (columns + 1), [whole, *parts]))
    return laid


def _unpadded(call: Call, base: tuple[int, int], size: tuple[int, int]) -> Tile:
    """Lay out the grid of all tiles without the bars' cells.

    If patches leave out the last pixels of each tile, there are gaps between the cells of two tiles.
    """
    config, (height, width) = call.inner.config, size
    tower = config.vision_config
    canvas = select_best_resolution(size, config.image_grid_pinpoints)
    rows, columns = (base[0] * side // tower.image_size for side in canvas)
    kept = unpad_image(torch.arange(rows * columns).view(1, rows, columns), (height, width))[0]
    grid = (kept.shape[0], kept.shape[1])
    if not kept.numel():
        return Tile(grid, WHOLE, cells(grid))
    top, left = divmod(int(kept[0, 0]), columns)
    scale_y, scale_x = canvas[0] / height, canvas[1] / width
    if scale_x < scale_y:
        inner = (min(math.ceil(height * scale_x), canvas[0]), canvas[1])
    else:
        inner = (canvas[0], min(math.ceil(width * scale_y), canvas[1]))
    y0, y1, middles_y = _along(tower, top, grid[0], (canvas[0] - inner[0]) // 2, inner[0])
    x0, x1, middles_x = _along(tower, left, grid[1], (canvas[1] - inner[1]) // 2, inner[1])
    # OneVision interpolates a grid of more than `most` tiles down to about that many, anyres_max_9 for example.
    if (kind := getattr(config, "vision_aspect_ratio", None)) is not None:
        most = int((call.given.get("vision_aspect_ratio") or kind).removeprefix("anyres_max_"))
        ratio = math.sqrt(grid[0] * grid[1] / (most * base[0] ** 2))
        if ratio > 1.1:
            grid = (int(grid[0] // ratio), int(grid[1] // ratio))
    even = tower.image_size % tower.patch_size == 0
    middles = None if even else (_thinned(middles_y, grid[0]), _thinned(middles_x, grid[1]))
    return Tile(grid, (x0, y0, x1, y1), cells(grid, base[0] * base[1], grid[1] + 1), middles)


def _along(tower: Any, first: int, count: int, bar: int, inner: int) -> tuple[float, float, npt.NDArray[np.float64]]:  # noqa: ANN401
    """Compute along one side where `count` cells from `first` on begin, end and have their middles, in shares of it."""
    tile, place = np.divmod(np.arange(first, first + count), tower.image_size // tower.patch_size)
    starts = tile * tower.image_size + place * tower.patch_size - bar
    return int(starts[0]) / inner, (int(starts[-1]) + tower.patch_size) / inner, (starts + tower.patch_size / 2) / inner


def _thinned(middles: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    """Compute the middles of `count` cells that are interpolated from others."""
    places = (np.arange(count) + 0.5) * len(middles) / count - 0.5
    return np.interp(places, np.arange(len(middles)), middles)


def split(call: Call, sizes: Sequence[Size | None]) -> list[ImageTokens]:
    """Lay out square tiles row by row, then a view of the whole image, for Idefics3 and SmolVLM.

    The image is squeezed to whole tiles.
    """
    (rows, columns), scale = _patches(call), call.inner.config.scale_factor
    return _tiled(call, (rows // scale, columns // scale), sizes, split_tiles)


def split_tiles(given: Any, size: Size) -> tuple[int, int]:  # noqa: ANN401 - transformers' processor
    """Compute the rows and columns of tiles that Idefics3's and SmolVLM's processors cut an image into."""
    processor = given.image_processor
    side = processor.max_image_size["longest_edge"]
    if not image_setting(given, "do_image_splitting"):
        return 1, 1
    width, height = size
    if processor.do_resize:
        width, height = _longest(width, height, processor.size["longest_edge"])
    ratio = width / height
    if width >= height:
        width = math.ceil(width / side) * side
        height = math.ceil(int(width / ratio) / side) * side
    else:
        height = math.ceil(height / side) * side
        width = math.ceil(int(height * ratio) / side) * side
    return height // side, width // side


def _longest(width: int, height: int, longest: int) -> Size:
    """Resize as Idefics3 does.

    The longer side becomes `longest`, the other one an even number, and neither exceeds 4096 pixels.
    """
    ratio = width / height
    if width >= height:
        width, height = longest, int(longest / ratio)
        height += height % 2
    else:
        width, height = int(longest * ratio), longest
        width += width % 2
    if max(width, height) > 4096:
        width, height = (4096, int(4096 / ratio)) if width >= height else (int(4096 * ratio), 4096)
    return max(width, 1), max(height, 1)


def canvas(call: Call, sizes: Sequence[Size | None]) -> list[ImageTokens]:
    """Lay out square tiles row by row, then a view of the whole image, for InternVL.

    The image is squeezed to a canvas of tiles.
    """
    (rows, columns), ratio = _patches(call), call.inner.config.downsample_ratio
    return _tiled(call, (int(rows * ratio), int(columns * ratio)), sizes, canvas_tiles)


def canvas_tiles(given: Any, size: Size) -> tuple[int, int]:  # noqa: ANN401 - transformers' processor
    """Compute the rows and columns of tiles that InternVL's processor cuts an image into."""
    processor, (width, height) = given.image_processor, size
    if not image_setting(given, "crop_to_patches"):
        return 1, 1
    tile = (processor.size["height"], processor.size["width"])
    columns, rows = get_optimal_tiled_canvas((height, width), tile, processor.min_patches, processor.max_patches)
    return rows, columns


CUTS: dict[str, Callable[[Any, Size], tuple[int, int]]] = {
    "Idefics3Processor": split_tiles,
    "SmolVLMProcessor": split_tiles,
    "InternVLProcessor": canvas_tiles,
}
"""By the class of a processor, how it cuts an image, if that alone decides what it writes for the image."""


def _tiled(call: Call, grid: tuple[int, int], sizes: Sequence[Size | None], tiles_of: Any) -> list[ImageTokens]:  # noqa: ANN401
    """Lay out images as whole numbers of tiles that cover them, and a view of the whole behind more than one tile."""
    uncut = None in sizes and call.total == len(sizes) * grid[0] * grid[1]
    wanted = [(1, 1) if uncut else tiles_of(call.processor, known_size(call, size)) for size in sizes]
    laid, reach = [], reach_of(call)
    for rows, columns in wanted:
        boxes = [
            (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
            for row, column in product(range(rows), range(columns))
        ]
        laid.append(views(grid, boxes if len(boxes) == 1 else [*boxes, WHOLE], reach))
    return laid


def views(grid: tuple[int, int], boxes: Sequence[CropBox], reach: Reach) -> ImageTokens:
    """Lay out an image's views one after the other, all with the same grid."""
    tokens = grid[0] * grid[1]
    tiles = [Tile(grid, reached(box, reach), cells(grid, number * tokens)) for number, box in enumerate(boxes)]
    return ImageTokens(tokens * len(boxes), tiles)


def padded(call: Call, sizes: Sequence[Size | None]) -> list[ImageTokens]:
    """Lay out square tiles row by row, then a view of the whole image, for Llama 4.

    The image has bars on the right and at the bottom.
    """
    config, processor = call.inner.config.vision_config, call.processor.image_processor
    side = int(config.image_size // config.patch_size * config.pixel_shuffle_ratio)
    resolutions = torch.tensor(find_supported_resolutions(processor.max_patches, processor.size))
    laid = []
    for size in sizes:
        width, height = known_size(call, size)
        fit: Any = get_best_fit((height, width), resolutions, processor.resize_to_max_canvas)
        whole = fit.tolist()
        tile = processor.size["height"]
        most = whole
        if not processor.resize_to_max_canvas:
            most = [min(max(one, tile), most) for one, most in zip((height, width), whole, strict=True)]
        inner = get_max_res_without_distortion((height, width), tuple(most))
        rows, columns = (one // tile for one in whole)
        x, y = tile / max(inner[1], 1), tile / max(inner[0], 1)
        boxes = [
            (column * x, row * y, (column + 1) * x, (row + 1) * y)
            for row, column in product(range(rows), range(columns))
        ]
        laid.append(views((side, side), boxes if len(boxes) == 1 else [*boxes, WHOLE], reach_of(call)))
    return laid


def known_size(call: Call, size: Size | None) -> Size:
    """Return an image's size.

    Raises:
        UnknownSizeError: neither the labels nor `Attached.sizes` know it.
    """
    if size is None:
        raise UnknownSizeError(
            f"{call.family}: cuts images into tiles by their size, which the labels know; expected labels of every "
            "image of the batch; label the missing images, put their (width, height) in attached.sizes by their names, "
            "or leave their rows out"
        )
    return size


def reach_of(call: Call) -> Reach:
    """Compute how far the tower's patches reach in an image, a view or a tile."""
    height, width = call.given["pixel_values"].shape[-2:]
    return tower_reach(call.inner.config.vision_config, (height, width))


def _patches(call: Call) -> tuple[int, int]:
    (height, width), pixels = sides(call.inner.config.vision_config.patch_size), call.given["pixel_values"]
    return pixels.shape[-2] // height, pixels.shape[-1] // width


def _listed(values: Any) -> list[Any]:  # noqa: ANN401 - a tensor, or lists
    listed: list[Any] = values.tolist() if isinstance(values, torch.Tensor | np.ndarray) else list(values)
    return listed


def _square_box(width: int, height: int) -> CropBox:
    """Compute the box of a square around an image that has bars on both sides."""
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    return (-left / width, -top / height, (side - left) / width, (side - top) / height)


def _mirrored(shape: tuple[int, int], size: Size) -> bool:
    """Tell whether (height, width) is that of the image on its side, which was not turned upright."""
    return shape[0] != shape[1] and shape == size


def _check_shape(call: Call, grid: tuple[int, int], size: Size) -> None:
    if not _same_shape(grid, size):
        raise call.unlike(f"a grid of the shape of {size[0]} x {size[1]} pixels", f"{grid[1]} x {grid[0]} tokens")


def _same_shape(grid: tuple[int, int], size: Size) -> bool:
    """Tell whether (rows, columns) have an image's shape, if each side of both may be rounded by a cell or a pixel."""
    (least, most), (lowest, highest) = _ratios(*grid), _ratios(size[1], size[0])
    return least <= highest and lowest <= most


def _ratios(rows: int, columns: int) -> tuple[float, float]:
    """Compute the least and the largest ratio of sides that are one more or less; a thin image is one cell wide."""
    return (rows - 1) / (columns + 1), (rows + 1) / (columns - 1) if columns > 1 else math.inf
