"""A photo with its words on it."""

import hashlib
import re
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sea_pipeline.analysis import image_words
from sea_pipeline.errors import UserError
from sea_pipeline.pixels import BadImageError, read_image
from sea_pipeline.storage import make_folder
from sea_pipeline.store import Labels, LabelStore

_CELL = 92
"""Pixels: the longest common words stay legible."""
_TITLE = 64
_INK = "#14171a"
_PAPER = "#ffffff"


def save_pictures(store: LabelStore, image_root: Path, folder: Path) -> list[Path]:
    """Draws every image of a run with its words into `folder`; returns the files in the order of the ids.

    Raises:
        UserError: an image is not at `image_root` any more.
    """
    make_folder(folder)
    files = []
    for image_id in store.ids:
        path = image_root / store.uri(image_id)
        try:
            image = read_image(path).image
        except BadImageError as error:
            raise UserError(f"{path}: cannot be drawn: {error.message}") from error
        files.append(folder / (re.sub(r"[^\w.-]+", "_", image_id) + ".words.jpg"))
        draw_words(image, store[image_id], store.words).save(files[-1], quality=88)
    return files


def draw_words(image: Image.Image, labels: Labels, words: tuple[str, ...]) -> Image.Image:
    """The labelled part of a photo, each patch tinted by its best word and bearing it; above, the image's ten words.

    A patch whose best word is the same as its left neighbour's bears none, so that objects read as runs of one colour.
    """
    rows, columns = labels.grid
    width, height = columns * _CELL, rows * _CELL
    left, top, right, bottom = labels.crop_box
    part = (left * image.width, top * image.height, right * image.width, bottom * image.height)
    photo = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS, part)
    tint = Image.new("RGBA", (width, height))
    pen = ImageDraw.Draw(tint)
    best = labels.word_ids[:, 0].reshape(rows, columns)
    for row in range(rows):
        for column in range(columns):
            word = int(best[row, column])
            if word < 0:
                continue
            x, y = column * _CELL, row * _CELL
            colour = _colour(words[word])
            pen.rectangle((x, y, x + _CELL - 1, y + _CELL - 1), fill=(*colour, 60), outline=(255, 255, 255, 70))
            if column == 0 or best[row, column - 1] != word:
                _write(pen, words[word], x, y, colour)
    sheet = Image.new("RGB", (width, height + _TITLE), _PAPER)
    sheet.paste(Image.alpha_composite(photo.convert("RGBA"), tint).convert("RGB"), (0, _TITLE))
    title = "  ".join(words[word] for word, _ in image_words(labels))
    ImageDraw.Draw(sheet).text((12, _TITLE // 2), title, _INK, _fitting(title, width - 24, 26), anchor="lm")
    return sheet


def _write(pen: ImageDraw.ImageDraw, word: str, x: int, y: int, colour: tuple[int, int, int]) -> None:
    font = _fitting(word, _CELL - 8, 17)
    centre = (x + _CELL // 2, y + _CELL // 2)
    left, top, right, bottom = pen.textbbox(centre, word, font, anchor="mm")
    pen.rounded_rectangle((left - 3, top - 3, right + 3, bottom + 3), 3, fill=(255, 255, 255, 205))
    pen.text(centre, word, tuple(channel // 3 for channel in colour), font, anchor="mm")


def _fitting(text: str, width: int, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The built-in font in the largest size, 9 to `size`, at which the text is no wider than `width`."""
    while size > 9 and ImageFont.load_default(size).getlength(text) > width:
        size -= 1
    return ImageFont.load_default(size)


def _colour(word: str) -> tuple[int, int, int]:
    """The same colour for the same word in every picture."""
    hue = hashlib.sha256(word.encode()).digest()[0] * 360 // 256
    tile = Image.new("HSV", (1, 1), (hue * 255 // 360, 200, 230)).convert("RGB")
    colour: tuple[int, int, int] = tile.getpixel((0, 0))  # type: ignore[assignment]  # an RGB pixel is three numbers
    return colour
