import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sea_pipeline.inputs.pixels import MAX_FILE_BYTES, BadImageError, read_image
from tests.support.photo_forms import bomb, jpeg

RED = (255, 0, 0)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def pixel(path: Path, place: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    decoded = read_image(path).image
    assert decoded.mode == "RGB"
    return tuple(int(channel) for channel in np.asarray(decoded)[place[1], place[0]])


def test_the_hash_is_of_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", Image.new("RGB", (3, 2), RED))
    assert read_image(path).sha256 == hashlib.sha256(path.read_bytes()).digest()


def test_exif_turns_the_picture(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2), "blue")
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    path = save(tmp_path / "x.png", image, exif=exif)
    assert read_image(path).image.size == (2, 4)
    assert pixel(path, (1, 0)) == RED


def test_damaged_exif_is_not_a_damaged_picture(tmp_path: Path) -> None:
    path = save(tmp_path / "x.jpg", Image.new("RGB", (8, 8), RED), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert read_image(path).image.size == (8, 8)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 256, 32_896, 65_535]], np.uint16)
    path = save(tmp_path / "x.png", Image.fromarray(values))
    assert [pixel(path, (x, 0))[0] for x in range(4)] == [0, 0, 128, 255]


def test_alpha_lies_over_white_and_palettes_become_colours(tmp_path: Path) -> None:
    assert pixel(save(tmp_path / "a.png", Image.new("RGBA", (1, 1), (9, 9, 9, 0)))) == (255, 255, 255)
    assert pixel(save(tmp_path / "la.png", Image.new("LA", (1, 1), (0, 255)))) == (0, 0, 0)
    assert pixel(save(tmp_path / "p.png", Image.new("RGB", (1, 1), RED).quantize())) == RED
    transparent = Image.new("RGB", (1, 1), RED).quantize()
    assert pixel(save(tmp_path / "pt.png", transparent, transparency=0)) == (255, 255, 255)
    assert pixel(save(tmp_path / "1.png", Image.new("1", (1, 1), 1))) == (255, 255, 255)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    red, green, blue = pixel(save(tmp_path / "x.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=100))
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_the_first_frame_of_an_animation(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = save(tmp_path / f"x.{suffix}", frames[0], save_all=True, append_images=frames[1:])
    red, _, blue = pixel(path)
    assert red > 200
    assert blue < 60


@pytest.mark.parametrize(
    ("data", "stage", "message"),
    [
        (b"", "read", "0 bytes"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "decode", "no format that Pillow knows"),
        (b"hello", "decode", "no format that Pillow knows"),
        (jpeg()[:-800], "decode", "truncated"),
        (bomb(), "decode", "decompression bomb"),
    ],
)
def test_a_bad_file_says_where_and_why(tmp_path: Path, data: bytes, stage: str, message: str) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(data)
    with pytest.raises(BadImageError) as error:
        read_image(path)
    assert error.value.stage == stage
    assert message in error.value.message
    assert error.value.sha256 == hashlib.sha256(data).digest()


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match="found a folder"):
        read_image(tmp_path)
    with pytest.raises(BadImageError, match="No such file"):
        read_image(tmp_path / "absent.jpg")


def test_one_pixel_is_a_picture(tmp_path: Path) -> None:
    assert pixel(save(tmp_path / "x.png", Image.new("RGB", (1, 1), RED))) == RED


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 100, 200, 255]], np.int32), [0, 100, 200, 255]),
        (np.array([[0, 100, 200, 255]], np.uint16), [0, 100, 200, 255]),
        (np.array([[0, 100, 200, 255]], np.float32), [0, 100, 200, 255]),
        (np.array([[0, 256, 32_896, 65_535]], np.int32), [0, 0, 128, 255]),
        (np.array([[0, 257, 32_896, 65_535]], np.float32), [0, 1, 128, 255]),
        (np.array([[0, 0.2, 0.5, 1]], np.float32), [0, 51, 128, 255]),
        (np.array([[0, 200_000, 500_000, 1_000_000]], np.int32), [0, 51, 128, 255]),
        (np.array([[0, 2e8, 5e8, 1e9]], np.float32), [0, 51, 128, 255]),
    ],
)
def test_deep_grey_is_scaled_by_what_it_holds(tmp_path: Path, values: np.ndarray, expected: list[int]) -> None:
    path = save(tmp_path / "x.tiff", Image.fromarray(values))
    found = [pixel(path, (x, 0)) for x in range(4)]
    assert found == [(grey,) * 3 for grey in expected]


@pytest.mark.parametrize(("scale", "expected"), [(1, [0, 100, 255]), (257, [0, 100, 255])])
@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_in_either_order(tmp_path: Path, order: str, scale: int, expected: list[int]) -> None:
    values = np.array([[0, 100 * scale, 255 * scale]], order + "u2")
    image = Image.frombytes("I;16" if order == "<" else "I;16B", (3, 1), values.tobytes())
    path = save(tmp_path / "x.tiff", image)
    assert [pixel(path, (x, 0))[0] for x in range(3)] == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[0, np.nan]], "NaN or infinity"),
        ([[0, np.inf]], "NaN or infinity"),
        ([[-np.inf, 0]], "NaN or infinity"),
        ([[-0.5, 1]], "found -0.5"),
    ],
)
def test_grey_without_a_scale_is_refused(tmp_path: Path, values: list[list[float]], message: str) -> None:
    path = save(tmp_path / "x.tiff", Image.fromarray(np.array(values, np.float32)))
    with pytest.raises(BadImageError, match=message):
        read_image(path)


def test_a_file_larger_than_any_image_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x.tiff").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(BadImageError, match="expected at most 536,870,912 bytes"):
        read_image(tmp_path / "x.tiff")
