"""Damaged metadata costs nothing; damaged pixels never pass where it can be told."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageOps, TiffImagePlugin

from sea_pipeline.inputs.pixels import BadImageError, decode_image
from tests.support import photo_forms
from tests.support.photo_forms import chunk

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))
BIG = bytes(3 << 20)


def encoded(form: str, image: Image.Image = NOISE, **options: object) -> bytes:
    return photo_forms.encoded(form, image, **options)


def png(before: bytes = b"", after: bytes = b"", image: Image.Image = NOISE) -> bytes:
    """A PNG with chunks before its pixels and after them."""
    data = encoded("PNG", image)
    return data[:33] + before + data[33:-12] + after + data[-12:]


def flipped(data: bytes, place: int, bit: int = 1) -> bytes:
    return data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]


def same(data: bytes, expected: bytes) -> bool:
    return np.array_equal(np.asarray(decode_image(data).image), np.asarray(decode_image(expected).image))


def turned(value: int = 6) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


SIDE_CHUNKS = {
    "a colour profile that unpacks to 3 MB": chunk(b"iCCP", b"big\0\0" + zlib.compress(BIG)),
    "a compressed text of 3 MB": chunk(b"zTXt", b"big\0\0" + zlib.compress(BIG)),
    "a compressed international text of 3 MB": chunk(b"iTXt", b"big\0\1\0\0\0" + zlib.compress(BIG)),
    "a plain text of 3 MB": chunk(b"tEXt", b"big\0" + BIG),
    "XMP that unpacks to 3 MB": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(BIG)),
    "a profile of ImageMagick of 3 MB": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(BIG)),
    "a text's checksum": chunk(b"tEXt", b"a\0b", wrong=1),
    "a compressed text's checksum": chunk(b"zTXt", b"a\0\0" + zlib.compress(b"b"), wrong=1),
    "an international text's checksum": chunk(b"iTXt", b"a\0\0\0\0\0b", wrong=1),
    "the time's checksum": chunk(b"tIME", bytes(7), wrong=1),
    "the density's checksum": chunk(b"pHYs", bytes(9), wrong=1),
    "gamma's checksum": chunk(b"gAMA", bytes(4), wrong=1),
    "EXIF's checksum": chunk(b"eXIf", turned()[6:], wrong=1),
    "a private chunk's checksum": chunk(b"prVt", b"x", wrong=1),
    "an unknown compression": chunk(b"iCCP", b"a\0\7" + zlib.compress(b"x")),
    "EXIF that is none": chunk(b"eXIf", b"\xff" * 40),
    "a short density": chunk(b"pHYs", b"\0"),
    "a broken animation": chunk(b"acTL", b"\0"),
    "a text's length": b"\0\0\0\xff" + chunk(b"tEXt", b"a\0b")[4:],
    "a text's length beyond the file": b"\x70\0\0\0" + chunk(b"tEXt", b"a\0b")[4:],
    "a text's name": flipped(chunk(b"tEXt", b"a\0b"), 5, 0x80),
}


@pytest.mark.parametrize("side", SIDE_CHUNKS.values(), ids=SIDE_CHUNKS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_png_is_read_whatever_its_metadata(side: bytes, after: bool) -> None:
    assert same(png(after=side) if after else png(before=side), png())


@pytest.mark.parametrize(
    "side",
    [
        chunk(b"eXIf", turned()[6:]),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n1\n" + turned().hex().encode())),
        chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b'<x tiff:Orientation="6"/>')),
    ],
    ids=["eXIf", "ImageMagick", "XMP", "compressed XMP"],
)
def test_a_png_turns_beside_broken_metadata(side: bytes) -> None:
    broken = SIDE_CHUNKS["a text's checksum"] + SIDE_CHUNKS["a colour profile that unpacks to 3 MB"]
    assert decode_image(png(before=side + broken)).image.size == (48, 64)


def test_orientation_is_read_beside_tags_that_cannot_be_written_again() -> None:
    data = (
        b"Exif\0\0"
        + b"MM\0*\0\0\0\x08"
        + b"\0\2"
        + b"\x01\x12\0\3\0\0\0\1\0\6\0\0"
        + b"\x87\x69\0\4\0\0\0\1\xff\xff\xff\xff"
    )
    assert decode_image(encoded("JPEG", exif=data + bytes(4))).image.size == (48, 64)


XMP = b'<x tiff:Orientation="6"/>'


@pytest.mark.parametrize(
    "data",
    [
        *(encoded(form, exif=turned()) for form in ("JPEG", "PNG", "WEBP", "TIFF")),
        encoded("JPEG", xmp=XMP),
        encoded("WEBP", xmp=XMP),
        png(before=chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)),
        encoded("PNG", NOISE.convert("RGBA"), exif=turned()),
    ],
)
def test_what_is_upright_is_not_turned_again(data: bytes) -> None:
    image = decode_image(data).image
    assert image.size == ImageOps.exif_transpose(image).size == (48, 64)


SIDE_OF_OTHERS = {
    "AVIF's EXIF": lambda: encoded("AVIF", exif=turned(1)).replace(turned(1)[6:], b"\xff" * len(turned(1)[6:])),
    "AVIF's XMP": lambda: encoded("AVIF", xmp=b"\xff\xfe"),
    "AVIF's colour profile": lambda: encoded("AVIF", icc_profile=b"\xff" * 200),
    "a GIF's comment": lambda: encoded("GIF", comment=b"\xff\xfe\0" * 100),
    "a GIF's application": lambda: gif_with(b"\x21\xff\x0bNETSCAPE2.0\x01\x01\0"),
    "a GIF's profile": lambda: gif_with(b"\x21\xff\x0bICCRGBG1012\x02\xff\xff\0"),
    "a GIF's text": lambda: gif_with(b"\x21\x01\x02\xff\xff\0"),
    "a JPEG's colour profile": lambda: encoded("JPEG", icc_profile=b"\xff" * 200),
    "a TIFF's colour profile": lambda: encoded("TIFF", icc_profile=b"\xff" * 200),
}


def gif_with(extension: bytes) -> bytes:
    data = encoded("GIF")
    at = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    return data[:at] + extension + data[at:]


@pytest.mark.parametrize("made", SIDE_OF_OTHERS.values(), ids=SIDE_OF_OTHERS)
def test_other_formats_are_read_whatever_their_metadata(made: Callable[[], bytes]) -> None:
    assert decode_image(made()).image.size == (64, 48)


def places(data: bytes) -> dict[bytes, tuple[int, int]]:
    """Where each chunk's payload begins and ends."""
    found, at = {}, 8
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        found[name] = (at + 8, at + 8 + length)
        at += 12 + length
    return found


PALETTE = encoded("PNG", NOISE.quantize(7), transparency=0)


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE", b"tRNS", b"IDAT"])
@pytest.mark.parametrize("where", ["first", "last", "checksum"])
def test_a_flipped_bit_in_a_png_is_told(name: bytes, where: str) -> None:
    start, end = places(PALETTE)[name]
    with pytest.raises(BadImageError) as error:
        decode_image(flipped(PALETTE, {"first": start, "last": end - 1, "checksum": end}[where]))
    assert f"the PNG's {name.decode()} chunk" in error.value.message
    assert "checksum" in error.value.message


def test_every_flipped_bit_of_what_a_png_shows_is_told() -> None:
    data = encoded("PNG", NOISE.crop((0, 0, 5, 5)).quantize(3), transparency=0)
    for place in range(8, len(data)):
        for bit in range(8):
            with pytest.raises(BadImageError):
                decode_image(flipped(data, place, 1 << bit))


@pytest.mark.parametrize("cut", [1, 4, 12, 13, 40, 2000])
def test_a_png_that_breaks_off_is_told(cut: int) -> None:
    with pytest.raises(BadImageError, match=r"breaks off|before its IEND"):
        decode_image(png()[:-cut])


@pytest.mark.parametrize("parts", [1, 2, 40])
@pytest.mark.parametrize("place", [-1, -4, 200])
def test_a_wrong_sum_within_the_pixels_is_told(parts: int, place: int) -> None:
    start, end = places(png())[b"IDAT"]
    stream = flipped(png()[start:end], place)
    size = -(-len(stream) // parts)
    cut = [stream[at : at + size] for at in range(0, len(stream) - 4, size)]
    pieces = [*cut[:-1], stream[size * (len(cut) - 1) : -4], stream[-4:]]
    data = png()[: start - 8] + b"".join(chunk(b"IDAT", piece) for piece in pieces) + chunk(b"IEND")
    with pytest.raises(BadImageError):
        decode_image(data)


def segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload


SIDE_SEGMENTS = {
    "a short JFIF": segment(0xE0, b"JFIF\0"),
    "EXIF cut off": segment(0xE1, b"Exif\0\0MM\0*"),
    "EXIF that is none": segment(0xE1, b"Exif\0\0" + b"\xff" * 30),
    "XMP that is none": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff\xfe"),
    "a colour profile cut off": segment(0xE2, b"ICC_PROFILE\0"),
    "a colour profile without its number": segment(0xE2, b"ICC_PROFILE\0\1"),
    "the list of an MPO": segment(0xE2, b"MPF\0MM\0*\0\0\0\x08\0\1\xb0\1\0\4\0\0\0\1\0\0\0\2\0\0\0\0"),
    "an MPO without a list": segment(0xE2, b"MPF\0"),
    "IPTC cut off": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4"),
    "IPTC without a name": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\3\xed\0\0\0\0\0\2\0\0"),
    "Adobe cut off": segment(0xEE, b"Adobe"),
    "a comment": segment(0xFE, b"\xff\xd8\xff\xd9"),
}


@pytest.mark.parametrize("side", SIDE_SEGMENTS.values(), ids=SIDE_SEGMENTS)
def test_a_jpeg_is_read_whatever_its_metadata(side: bytes) -> None:
    data = encoded("JPEG")
    assert same(data[:2] + side + data[2:], data)
    exif = encoded("JPEG", exif=turned())
    at = exif.index(b"\xff\xdb")  # behind the sound EXIF data
    assert decode_image(exif[:at] + side + exif[at:]).image.size == (48, 64)


def webp_with(name: bytes, payload: bytes, length: int | None = None) -> bytes:
    data = encoded("WEBP", lossless=True, exif=turned(1))
    at = data.index(b"EXIF")
    body = data[8:at] + name + struct.pack("<I", len(payload) if length is None else length) + payload
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    "data",
    [
        webp_with(b"EXIF", b"\xff" * 30),
        webp_with(b"EXIF", b"Exif\0\0MM\0*"),
        webp_with(b"EXIF", b"MM\0*", length=5000),
        webp_with(b"XMP ", b"\xff\xfe", length=1 << 31),
        webp_with(b"EXIF", b""),
        encoded("WEBP", lossless=True, exif=turned(1))[:-6],
        encoded("WEBP", lossless=True, icc_profile=b"\xff" * 128),
    ],
)
def test_a_webp_is_read_whatever_its_metadata(data: bytes) -> None:
    assert same(data, encoded("WEBP", lossless=True))


@pytest.mark.parametrize("length", [0x10000000, 0x7F, 0x01])
def test_a_webp_turns_beside_a_broken_profile(length: int) -> None:
    data = encoded("WEBP", lossless=True, exif=turned(), icc_profile=bytes(200))
    at = data.index(b"ICCP") + 4
    assert decode_image(data[:at] + struct.pack("<I", length) + data[at + 4 :]).image.size == (48, 64)


def tiff_with(tag: int, kind: int, count: int, value: int) -> bytes:
    """A turned TIFF with one more tag, whose text is said to be elsewhere, longer, or of another kind."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[65000] = "abcdefgh"
    info[274] = 6
    data = encoded("TIFF", tiffinfo=info)
    at = data.index(struct.pack("<HH", 65000, 2))
    return data[:at] + struct.pack("<HHII", tag, kind, count, value) + data[at + 12 :]


@pytest.mark.slow
@pytest.mark.parametrize("tag", [270, 282, 305, 306, 315, 330, 700, 33432, 33723, 34665, 34675, 34853, 65000])
@pytest.mark.parametrize(
    ("kind", "count", "value"),
    [(2, 9, 1 << 31), (2, 1 << 31, 8), (99, 1, 8), (5, 3, 8), (13, 9, 1), (12, 1, 1 << 30), (4, 1, 1 << 31), (5, 0, 8)],
)
def test_a_tiff_is_read_whatever_its_other_tags(tag: int, kind: int, count: int, value: int) -> None:
    image = decode_image(tiff_with(tag, kind, count, value)).image
    assert np.array_equal(np.asarray(image), np.asarray(NOISE.transpose(Image.Transpose.ROTATE_270)))


def of_many_parts(form: str) -> tuple[bytes, range]:
    """A picture with every kind of metadata, and the places of its bytes."""
    exif = Image.Exif()
    exif[270], exif[282] = "a description", 72.0
    data = encoded(form, exif=exif.tobytes(), icc_profile=bytes(200), **({} if form == "PNG" else {"xmp": b"<x/>" * 9}))
    if form == "JPEG":
        return data, range(2, data.index(b"\xff\xdb"))
    if form == "PNG":
        return data, range(33, data.index(b"IDAT") - 4)
    return data, range(30, data.index(b"VP8 "))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("bits", [0x01, 0x20, 0x80, 0xFF])
def test_no_byte_of_the_metadata_is_needed(form: str, bits: int) -> None:
    data, metadata = of_many_parts(form)
    expected = np.asarray(decode_image(data).image)
    assert len(metadata) > 90
    for place in metadata:
        assert np.array_equal(np.asarray(decode_image(flipped(data, place, bits)).image), expected), place


def restarts(**options: object) -> bytes:
    return encoded("JPEG", restart_marker_blocks=2, **options)


def with_marker(code: int) -> Callable[[], bytes]:
    data = encoded("JPEG")
    return lambda: data[:-300] + bytes([0xFF, code]) + data[-298:]


DAMAGED = {
    "a JPEG cut off": lambda: encoded("JPEG")[:-200],
    "a progressive JPEG cut off": lambda: encoded("JPEG", progressive=True)[:-200],
    "a JPEG ending in zeros": lambda: encoded("JPEG")[:-900] + bytes(900),
    "a JPEG ending in more zeros": lambda: encoded("JPEG")[:1000] + bytes(5000),
    "a marker that no scan holds": with_marker(0x42),
    "a start within a scan": with_marker(0xD8),
    "a JPEG with an early end marker": lambda: encoded("JPEG")[:-900] + b"\xff\xd9",
    "a JPEG with an early end marker, turned": lambda: encoded("JPEG", exif=turned())[:-900] + b"\xff\xd9",
    "a JPEG of quality 100 with an early end marker": lambda: encoded("JPEG", quality=100)[:-900] + b"\xff\xd9",
    "a grey JPEG with an early end marker": lambda: encoded("JPEG", NOISE.convert("L"))[:-900] + b"\xff\xd9",
    "an end marker within a JPEG": lambda: encoded("JPEG")[:-900] + b"\xff\xd9" + encoded("JPEG")[-898:],
    "a JPEG that ends early": lambda: restarts()[:-900] + b"\xff\xd9",
    "a JPEG without a part": lambda: restarts()[:-1500] + restarts()[-900:],
    "a grey JPEG that ends early": lambda: (
        encoded("JPEG", NOISE.convert("L"), restart_marker_blocks=1)[:-900] + b"\xff\xd9"
    ),
    "a WebP cut off": lambda: encoded("WEBP")[:-200],
    "a GIF cut off": lambda: encoded("GIF")[:-200],
    "a TIFF cut off": lambda: encoded("TIFF")[:-200],
    "a deflated strip of a TIFF": lambda: flipped(encoded("TIFF", compression="tiff_deflate"), 3000),
    "a deflated TIFF cut off": lambda: encoded("TIFF", compression="tiff_deflate")[:-200],
    "a JPEG 2000 cut off": lambda: encoded("JPEG2000")[:-200],
    "a BMP cut off": lambda: encoded("BMP")[:-200],
}


@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=DAMAGED)
def test_damaged_pixels_are_told(damaged: Callable[[], bytes]) -> None:
    with pytest.raises(BadImageError) as error:
        decode_image(damaged())
    assert error.value.message
    assert "\n" not in error.value.message


WHOLE = {
    "restart markers": restarts(),
    "restart markers by rows": encoded("JPEG", restart_marker_rows=1),
    "restart markers without subsampling": restarts(subsampling=0),
    "restart markers in progressive scans": restarts(progressive=True),
    "restart markers in grey": encoded("JPEG", NOISE.convert("L"), restart_marker_blocks=1),
    "an odd size": encoded("JPEG", NOISE.crop((0, 0, 37, 19)), restart_marker_blocks=1),
    "progressive": encoded("JPEG", progressive=True),
    "CMYK": encoded("JPEG", NOISE.convert("CMYK"), restart_marker_blocks=3),
    "quality 1": encoded("JPEG", quality=1),
    "quality 100": encoded("JPEG", quality=100, subsampling=0),
    "zeros behind the end": encoded("JPEG") + bytes(4096),
    "text behind the end": encoded("JPEG") + b"\xff\x01 SEFT",
    "two pictures in one file": encoded("MPO", save_all=True, append_images=[NOISE]),
    "a flat picture": encoded("JPEG", Image.new("RGB", (900, 900), "white"), optimize=True),
    "a flat WebP": encoded("WEBP", Image.new("RGB", (900, 900), "white")),
    "a grey JPEG": encoded("JPEG", Image.new("RGB", (90, 90), (128, 128, 128))),
    "a grey JPEG in steps": encoded("JPEG", Image.new("RGB", (90, 90), (128, 128, 128)), progressive=True),
    "a grey corner": encoded("JPEG", ImageOps.expand(NOISE, 40, (128, 128, 128))),
    "a grey corner of a quick JPEG": encoded("JPEG", ImageOps.expand(NOISE, 40, (128, 128, 128)), optimize=True),
    "a flat lossless WebP": encoded("WEBP", Image.new("RGB", (900, 900)), lossless=True),
    "a WebP with alpha": encoded("WEBP", Image.new("RGBA", (900, 900), (0, 0, 0, 0))),
    "a flat PNG": encoded("PNG", Image.new("RGB", (900, 900))),
    "an interlaced animation": encoded("PNG", save_all=True, append_images=[NOISE.rotate(180)]),
    "bytes behind a PNG": png() + b"more",
    "a GIF without its last byte": encoded("GIF", NOISE.quantize())[:-1],
}


@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE)
def test_whole_pictures_raise_no_alarm(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as image:
        expected = image.convert("RGBA" if "a" in image.mode.lower() else "RGB").size
    assert decode_image(data).image.size == expected
