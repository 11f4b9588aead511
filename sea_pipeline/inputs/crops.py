"""Square crops of images: where they are, what they are called. Labelling and training cut the same pixels.

Boxes are (x0, y0, x1, y1) in the upright image, 0..1; where an image is padded to a square they reach beyond it.
"""

import hashlib

import numpy as np
from PIL import Image

CropBox = tuple[float, float, float, float]
"""x0, y0, x1, y1 as shares (0..1) of the upright image's width and height."""

WHOLE: CropBox = (0.0, 0.0, 1.0, 1.0)
LEAST_AREA = 0.25
"""A labelled crop's least share of the image's largest square."""
MARK = "#crop"


def crop_id(image_id: str, number: int) -> str:
    """The id of the n-th labelled crop of an image; 0 is the image itself."""
    return f"{image_id}{MARK}{number}" if number else image_id


def image_and_crop(name: str) -> tuple[str, int]:
    """The inverse of `crop_id`."""
    image_id, mark, number = name.rpartition(MARK)
    return (image_id, int(number)) if mark and number.isdigit() else (name, 0)


def labelled_crop(image: Image.Image, image_id: str, number: int) -> tuple[Image.Image, CropBox]:
    """The n-th labelled crop of an image; which part it is depends on the id, the number and the image's size alone."""
    seed = int.from_bytes(hashlib.sha256(crop_id(image_id, number).encode()).digest()[:8])
    return random_square(image, LEAST_AREA, np.random.default_rng(seed))


def random_square(image: Image.Image, least: float, random: np.random.Generator) -> tuple[Image.Image, CropBox]:
    """A square of a uniformly drawn share, from `least` to 1, of the largest square's area, anywhere in the image."""
    side = max(1, round(min(image.size) * random.uniform(least, 1) ** 0.5))
    left = int(random.integers(image.width - side + 1))
    top = int(random.integers(image.height - side + 1))
    width, height = image.size
    box = (left / width, top / height, (left + side) / width, (top + side) / height)
    return image.crop((left, top, left + side, top + side)), box


def inside(box: CropBox, crop: CropBox) -> CropBox:
    """A box of a crop as a box of the whole image, where `crop` is the crop's box."""
    x0, y0, x1, y1 = crop
    width, height = x1 - x0, y1 - y0
    return (x0 + box[0] * width, y0 + box[1] * height, x0 + box[2] * width, y0 + box[3] * height)
