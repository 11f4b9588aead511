"""Cut square crops of images and name them; labelling and training cut the same pixels.

Boxes are (x0, y0, x1, y1) in the upright image, 0..1. If an image is padded to a square, they reach beyond it.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

CropBox = tuple[float, float, float, float]
"""x0, y0, x1, y1 as shares (0..1) of the upright image's width and height."""

WHOLE: CropBox = (0.0, 0.0, 1.0, 1.0)
Reach = tuple[float, float]
"""How far whole patches reach down and across an input, as shares of its height and width.

Pixels at the bottom and at the right that make no whole patch are seen by none.
"""
FULL: Reach = (1.0, 1.0)
LEAST_AREA = 0.25
"""The smallest area of a labelled crop, as a share of the image's largest square."""
MARK = "#crop"


def crop_id(image_id: str, number: int) -> str:
    """Return the id of the n-th labelled crop of an image.

    Number 0 is the image itself.
    """
    return f"{image_id}{MARK}{number}" if number else image_id


def image_and_crop(name: str) -> tuple[str, int]:
    """Split the id of a crop into the image's id and the number, as the inverse of `crop_id`."""
    image_id, mark, number = name.rpartition(MARK)
    return (image_id, int(number)) if mark and number.isdigit() else (name, 0)


def labelled_crop(image: Image.Image, image_id: str, number: int) -> tuple[Image.Image, CropBox]:
    """Cut the n-th labelled crop of an image.

    The box depends only on the id, the number and the image's size, so every run cuts the same pixels.
    """
    seed = int.from_bytes(hashlib.sha256(crop_id(image_id, number).encode()).digest()[:8])
    return random_square(image, LEAST_AREA, np.random.default_rng(seed))


def random_square(image: Image.Image, least: float, random: np.random.Generator) -> tuple[Image.Image, CropBox]:
    """Cut a random square, anywhere in the image.

    Its area is a uniformly drawn share, from `least` to 1, of the area of the image's largest square.
    """
    # The share is of the area, so the side grows with its square root.
    side = max(1, round(min(image.size) * random.uniform(least, 1) ** 0.5))
    left = int(random.integers(image.width - side + 1))
    top = int(random.integers(image.height - side + 1))
    width, height = image.size
    box = (left / width, top / height, (left + side) / width, (top + side) / height)
    return image.crop((left, top, left + side, top + side)), box


def inside(box: CropBox, crop: CropBox) -> CropBox:
    """Convert a box of a crop to a box of the whole image, given the crop's own box."""
    x0, y0, x1, y1 = crop
    width, height = x1 - x0, y1 - y0
    return (x0 + box[0] * width, y0 + box[1] * height, x0 + box[2] * width, y0 + box[3] * height)


def patch_reach(grid: tuple[int, int], patch: tuple[int, int], size: tuple[int, int]) -> Reach:
    """Compute how far a grid of patches reaches in an input.

    All are (rows, columns) or (height, width), the latter two in pixels.
    """
    return grid[0] * patch[0] / size[0], grid[1] * patch[1] / size[1]


def scales_reach(reach: Reach, scales: Sequence[int]) -> Reach:
    """Compute how far the cells of S2 reach, given the reach in one tile.

    At scale s only the last of s tiles ends the cells, with 1 / s of a tile's loss. The mean over the scales is taken.
    """
    loss = sum(1 / scale for scale in scales) / len(scales)
    return 1 - (1 - reach[0]) * loss, 1 - (1 - reach[1]) * loss


def reached(box: CropBox, reach: Reach) -> CropBox:
    """Cut off the bottom and the right of an input's box, which patches do not reach."""
    x0, y0, x1, y1 = box
    return (x0, y0, x1 - (1 - reach[1]) * (x1 - x0), y1 - (1 - reach[0]) * (y1 - y0))
