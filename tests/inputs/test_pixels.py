"""From the bytes of a file to pixels: what is read, and what a file is that is no image."""

import gzip
import hashlib
import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import AvifImagePlugin, Image, ImageFile, WebPImagePlugin, features

from sea_pipeline.inputs.image_bytes import PNG
from sea_pipeline.inputs.pixels import _FORMATS, MAX_FILE_BYTES, PASSING, BadImageError, decode_image, read_image
from sea_pipeline.inputs.sources.base import IMAGE_SUFFIXES
from tests.support.photo_forms import bomb, chunk, encoded, jpeg

RED = (255, 0, 0)
SMALL = Image.fromarray(np.arange(3072, dtype=np.uint8).reshape(32, 32, 3))


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


def test_a_picture_stays_upright_if_memory_lacks_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its metadata it would be read, but not turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "x.jpg", Image.new("RGB", (40, 20)), exif=exif)
    plain, faults = ImageFile.ImageFile.load, [MemoryError()]

    def load(image: ImageFile.ImageFile) -> Any:
        if faults:
            raise faults.pop()
        return plain(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(OSError, match="Cannot allocate memory") as raised:
        read_image(path)
    assert raised.value.errno in PASSING
    assert read_image(path).image.size == (20, 40)


def test_alpha_lies_over_white_and_palettes_become_colours(tmp_path: Path) -> None:
    assert pixel(save(tmp_path / "a.png", Image.new("RGBA", (1, 1), (9, 9, 9, 0)))) == (255, 255, 255)
    assert pixel(save(tmp_path / "la.png", Image.new("LA", (1, 1), (0, 255)))) == (0, 0, 0)
    assert pixel(save(tmp_path / "p.png", Image.new("RGB", (1, 1), RED).quantize())) == RED
    transparent = Image.new("RGB", (1, 1), RED).quantize()
    assert pixel(save(tmp_path / "pt.png", transparent, transparency=0)) == (255, 255, 255)
    assert pixel(save(tmp_path / "1.png", Image.new("1", (1, 1), 1))) == (255, 255, 255)
    picture = save(tmp_path / "128.png", Image.new("RGB", (128, 128), RED).quantize()).read_bytes()
    (tmp_path / "p.icns").write_bytes(
        b"icns" + struct.pack(">I", len(picture) + 16) + b"ic07" + struct.pack(">I", len(picture) + 8) + picture
    )
    assert pixel(tmp_path / "p.icns") == RED


def png_row(depth: int, colours: int, row: bytes, hidden: bytes) -> bytes:
    """A PNG of two pixels, of which the colour of the first is hidden."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, depth, colours, 0, 0, 0))
    return PNG + header + chunk(b"tRNS", hidden) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND")


@pytest.mark.parametrize(
    ("depth", "colours", "row", "hidden", "second"),
    [
        (8, 2, bytes([0, 0, 0, 200, 10, 10]), bytes(6), (200, 10, 10)),
        (16, 2, bytes.fromhex("1234 0000 0000 1234 0100 0000"), bytes.fromhex("1234 0000 0000"), (18, 1, 0)),
        (1, 0, b"\x80", b"\0\1", (0, 0, 0)),
        (2, 0, b"\x60", b"\0\1", (170, 170, 170)),
        (4, 0, b"\x5e", b"\0\5", (238, 238, 238)),
        (8, 0, b"\x07\xc8", b"\0\7", (200, 200, 200)),
        (16, 0, bytes.fromhex("0000 8080"), b"\0\0", (128, 128, 128)),
        (16, 0, bytes.fromhex("ffff 00c8"), b"\xff\xff", (200, 200, 200)),
        (16, 0, bytes.fromhex("ffff ffff"), b"\xff\xff", (255, 255, 255)),
    ],
)
def test_a_pngs_hidden_colour_is_white(
    depth: int, colours: int, row: bytes, hidden: bytes, second: tuple[int, ...]
) -> None:
    decoded = decode_image(png_row(depth, colours, row, hidden)).image
    assert [decoded.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), second]


def test_grey_premultiplied_by_its_alpha_lies_over_white(tmp_path: Path) -> None:
    path = save(tmp_path / "x.tif", Image.new("LA", (1, 1), (40, 128)))
    unassociated, associated = (struct.pack("<HHIH", 338, 3, 1, kind) for kind in (2, 1))
    path.write_bytes(path.read_bytes().replace(unassociated, associated))
    assert pixel(path) == (167, 167, 167)  # 40 + (255 - 128)


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
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "decode", "no format that is read here"),
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


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 100, 200, 255]], np.int32), [0, 100, 200, 255]),
        (np.array([[0, 100, 200, 255]], np.uint16), [0, 100, 200, 255]),
        (np.array([[0, 100, 200, 255]], np.float32), [0, 100, 200, 255]),
        (np.array([[0, 4, 512, 1023]], np.uint16), [0, 1, 128, 255]),
        (np.array([[0, 16, 2048, 4095]], np.uint16), [0, 1, 128, 255]),
        (np.array([[0, 64, 8192, 16_000]], np.uint16), [0, 1, 128, 249]),
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


@pytest.mark.parametrize("white", [1.0, 255.0, 65_535.0])
def test_a_few_floats_above_white_darken_no_picture(tmp_path: Path, white: float) -> None:
    """A filter that sharpens leaves some."""
    values = np.full((20, 20), 0.2 * white, np.float32)
    values[0, :2] = [1.3 * white, 3 * white]
    path = save(tmp_path / "x.tiff", Image.fromarray(values))
    assert [pixel(path, (x, 0))[0] for x in range(3)] == [255, 255, 51]


def test_a_tiff_whose_zero_is_white_is_no_negative(tmp_path: Path) -> None:
    path = save(tmp_path / "x.tiff", Image.fromarray(np.array([[0, 100 * 257, 65_535]], np.uint16)))
    black_is_zero, white_is_zero = (struct.pack("<HHII", 262, 3, 1, kind) for kind in (1, 0))
    assert path.read_bytes().count(black_is_zero) == 1
    path.write_bytes(path.read_bytes().replace(black_is_zero, white_is_zero))
    assert [pixel(path, (x, 0))[0] for x in range(3)] == [255, 155, 0]


@pytest.mark.parametrize("tag", [None, 1, 2])
def test_thirty_two_bits_are_signed_if_the_tiff_says_so(tmp_path: Path, tag: int | None) -> None:
    """Pillow reads all of them as signed."""
    values = np.array([[0, 1 << 30, 0xFFFF_FFFF]], np.uint32)
    path = save(tmp_path / "x.tiff", Image.fromarray(values.view(np.int32)))
    signed = struct.pack("<HHII", 339, 3, 1, 2)
    assert path.read_bytes().count(signed) == 1
    other = struct.pack("<HHII", *((339, 3, 1, tag) if tag else (340, 3, 1, 0)))
    path.write_bytes(path.read_bytes().replace(signed, other))
    if tag == 2:
        with pytest.raises(BadImageError, match="found -1"):
            read_image(path)
    else:
        assert [pixel(path, (x, 0))[0] for x in range(3)] == [0, 64, 255]


@pytest.mark.parametrize("kind", ["DDS", "ICO", "PCX", "QOI", "SGI"])
def test_formats_that_only_pictures_for_screens_have(tmp_path: Path, kind: str) -> None:
    image = Image.new("RGB", (64, 64), "blue")
    image.paste("red", (0, 0, 32, 64))
    data = io.BytesIO()
    if kind == "QOI" and kind not in Image.SAVE:  # Pillow 11 only reads it; 0xDE repeats a pixel 31 times
        rows = b"".join(b"\xfe" + colour + b"\xde" for _ in range(64) for colour in (b"\xff\0\0", b"\0\0\xff"))
        data.write(b"qoif" + struct.pack(">IIBB", 64, 64, 3, 0) + rows + bytes(7) + b"\1")
    else:
        image.save(data, kind)
    decoded = decode_image(data.getvalue()).image
    assert decoded.size == (64, 64)
    assert [decoded.getpixel((x, 9)) for x in (0, 63)] == [RED, (0, 0, 255)]


def test_every_suffix_of_a_format_that_is_read_is_an_images() -> None:
    Image.init()
    of_sgi = {".bw", ".rgb", ".rgba"}  # which more files have that are plain numbers
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in _FORMATS}
    assert known - of_sgi <= IMAGE_SUFFIXES


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


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a.txt"), "x" * 99)
    return buffer.getvalue()


def box(brand: bytes, *compatible: bytes) -> bytes:
    body = b"ftyp" + brand + bytes(4) + b"".join(compatible)
    return (len(body) + 4).to_bytes(4) + body + b"\0\0\0\x08free" + bytes(64)


@pytest.mark.parametrize(
    ("data", "what", "advice"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git-lfs pointer", "`git lfs pull`"),
        (box(b"heic", b"mif1", b"heic"), "HEIC", "convert it"),
        (box(b"mif1", b"mif1", b"heic"), "HEIC", "convert it"),
        (b"\xff\x0a" + bytes(range(40)), "JPEG XL", "convert it"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "JPEG XL", "convert it"),
        (box(b"isom", b"mp42"), "MP4", "leave it out"),
        (box(b"qt  "), "MP4 or QuickTime", "leave it out"),
        (b"\x1a\x45\xdf\xa3" + bytes(40), "WebM", "leave it out"),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", "HTML", "download the image again"),
        (b"\xef\xbb\xbf\r\n<HTML><head>", "HTML", "download the image again"),
        (b"<html>\n<svg/></html>", "HTML", "download the image again"),
        ("<!DOCTYPE html><html>".encode("utf-16"), "HTML", "download the image again"),
        (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>', "XML", "download the image again"),
        (b'{"error": "not found"}', "JSON", "download the image again"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG", "PNG"),
        (b'<?xml version="1.0"?>\n<!-- a -->\n<svg xmlns="x"/>', "SVG", "PNG"),
        (b"<!-- a -->\n" * 300, "XML", "download the image again"),
        (b"<!-- a -->\n" * 300 + b"<svg>", "SVG", "PNG"),
        (b"%PDF-1.7\n%", "PDF", "export"),
        (gzip.compress(b"x" * 99, mtime=0), "gzip", "`gunzip < FILE > NEW && mv NEW FILE`"),
        (zipped(), "zip", "unzip"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(40), "7z", "7z x"),
        (b"8BPS\0\1" + bytes(40), "Photoshop", "convert it"),
        (b"\x89PNG\n\x1a\n" + bytes(40), "line ends", "binary mode"),
        (bytes(1), "all 1 bytes are zeros", "copy it again"),
        (bytes(5000), "all 5,000 bytes are zeros", "copy it again"),
        (b"", "0 bytes", "copy it again"),
        (encoded("TIFF", SMALL)[:9], "begins as TIFF does", "copy it again"),
        (encoded("AVIF", SMALL)[:90], "begins as AVIF does", "copy it again"),
    ],
)
def test_a_known_kind_is_named(data: bytes, what: str, advice: str) -> None:
    with pytest.raises(BadImageError) as error:
        decode_image(data)
    assert what in error.value.message
    assert advice in error.value.message
    assert "\n" not in error.value.message


@pytest.mark.parametrize(
    ("form", "codec", "plugin"), [("AVIF", "avif", AvifImagePlugin), ("WEBP", "webp", WebPImagePlugin)]
)
def test_a_codec_that_pillow_lacks_is_named(
    monkeypatch: pytest.MonkeyPatch, form: str, codec: str, plugin: object
) -> None:
    data = encoded(form, SMALL)
    decode_image(data)
    has = features.check
    monkeypatch.setattr(plugin, "SUPPORTED", False)
    monkeypatch.setattr(features, "check", lambda name: name != codec and has(name))
    with pytest.raises(BadImageError, match="built without its codec; install Pillow from PyPI, or convert it"):
        decode_image(data)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "TGA"])
def test_images_are_no_other_kind(form: str) -> None:
    assert decode_image(encoded(form, SMALL)).image.size == (32, 32)
