"""Everything bad at once: each picture costs itself only, with a reason; what stops a run is one clear line."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sea_pipeline import open_labels
from sea_pipeline.inputs.pixels import BadImageError, read_image
from sea_pipeline.storage.publish import publish_bytes
from tests.support.photo_forms import bomb, jpeg
from tests.support.world import Label, draw_folder

BAD = {
    "truncated.jpg": ("decode", "truncated"),
    "empty.png": ("read", "0 bytes"),
    "text.jpg": ("decode", "no format that Pillow knows"),
    "bomb.png": ("decode", "decompression bomb"),
    "\\xe9.png": ("list", "not UTF-8"),
    "dangling.png": ("read", "No such file"),
    "nan.tiff": ("decode", "NaN"),
    "rotten.png": ("decode", "checksum"),
    "pointer.png": ("decode", "git lfs pull"),
}
ODD = [
    "animated.gif",
    "animated.webp",
    "cmyk.jpg",
    "16bit.png",
    "palette.png",
    "alpha.png",
    "rotated.jpg",
    "pixel.png",
    "float.tiff",
    "comment.png",
]


def fill(folder: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for name in ("animated.gif", "animated.webp"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:])
    Image.new("CMYK", (8, 8)).save(folder / "cmyk.jpg")
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(folder / "16bit.png")
    frames[0].quantize().save(folder / "palette.png")
    Image.new("RGBA", (8, 8), (0, 0, 255, 128)).save(folder / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    frames[0].save(folder / "rotated.jpg", exif=exif)
    Image.new("RGB", (1, 1), "red").save(folder / "pixel.png")
    (folder / "truncated.jpg").write_bytes(jpeg()[:-800])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_bytes(b"I am no picture")
    (folder / "bomb.png").write_bytes(bomb())
    (folder / "dangling.png").symlink_to("nowhere.png")
    Image.new("F", (2, 2)).save(folder / "float.tiff")
    Image.new("F", (2, 2), float("nan")).save(folder / "nan.tiff")
    picture = (folder / "pixel.png").read_bytes()
    (folder / "comment.png").write_bytes(picture[:33] + b"\0\0\0\3tEXta\0bXXXX" + picture[33:])
    (folder / "rotten.png").write_bytes(picture[:-16] + b"XXXX" + picture[-12:])
    (folder / "pointer.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xe9.png")).write_bytes(b"")


@pytest.mark.slow
def test_bad_pictures_are_quarantined_with_reasons_and_the_rest_is_labelled(label: Label, tmp_path: Path) -> None:
    photos = draw_folder(tmp_path / "photos", 9)
    label(images=str(photos), out=tmp_path / "clean")
    fill(photos)
    label(images=str(photos), max_bad=1)
    store, clean = open_labels(tmp_path / "labels"), open_labels(tmp_path / "clean")
    assert set(store.ids) == {*clean.ids, *ODD}
    found = {bad["image_id"]: (bad["stage"], bad["message"]) for bad in store.quarantine()}
    assert found.keys() == BAD.keys()
    for image_id, (stage, message) in BAD.items():
        assert found[image_id][0] == stage
        assert message in found[image_id][1]
    for image_id in clean.ids:
        np.testing.assert_array_equal(store[image_id].word_ids, clean[image_id].word_ids)
        np.testing.assert_array_equal(store[image_id].scores, clean[image_id].scores)


def without_rights(action: Callable[[], object]) -> str:
    """What `action` says when it runs as a user who owns nothing; root may read and write everything."""
    read_end, write_end = os.pipe()
    if (child := os.fork()) == 0:
        try:
            if os.geteuid() == 0:
                os.setuid(65_534)
            action()
            said = "no error"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write_end, said.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        return pipe.read()


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    """A folder that another user can reach: pytest's own are private."""
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    return tmp_path


def test_a_picture_without_the_right_to_read_it(open_folder: Path) -> None:
    path = open_folder / "x.png"
    Image.new("RGB", (2, 2)).save(path)
    path.chmod(0)
    assert without_rights(lambda: read_image(path)).startswith(BadImageError.__name__)
    assert "Permission denied" in without_rights(lambda: read_image(path))


def test_an_output_folder_without_the_right_to_write(open_folder: Path) -> None:
    out = open_folder / "out"
    out.mkdir(0o555)
    said = without_rights(lambda: publish_bytes(out / "file", b"x", out))
    assert said.startswith("UserError")
    assert "cannot be written: Permission denied; choose a folder that can be written" in said
