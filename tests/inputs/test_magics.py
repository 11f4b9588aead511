"""A file that is no image says what it is and what to do."""

import gzip
import io
import zipfile

import numpy as np
import pytest
from PIL import AvifImagePlugin, Image, WebPImagePlugin, features

from sea_pipeline.inputs.pixels import BadImageError, decode_image


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a.txt"), "x" * 99)
    return buffer.getvalue()


def box(brand: bytes, *compatible: bytes) -> bytes:
    body = b"ftyp" + brand + bytes(4) + b"".join(compatible)
    return (len(body) + 4).to_bytes(4) + body + b"\0\0\0\x08free" + bytes(64)


def encoded(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(3072, dtype=np.uint8).reshape(32, 32, 3)).save(buffer, form)
    return buffer.getvalue()


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
        (gzip.compress(b"x" * 99, mtime=0), "gzip", "gunzip"),
        (zipped(), "zip", "unzip"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(40), "7z", "7z x"),
        (b"8BPS\0\1" + bytes(40), "Photoshop", "convert it"),
        (b"\x89PNG\n\x1a\n" + bytes(40), "line ends", "binary mode"),
        (bytes(1), "all 1 bytes are zeros", "copy it again"),
        (bytes(5000), "all 5,000 bytes are zeros", "copy it again"),
        (b"", "0 bytes", "copy it again"),
        (encoded("TIFF")[:9], "begins as TIFF does", "copy it again"),
        (encoded("AVIF")[:90], "begins as AVIF does", "copy it again"),
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
    data = encoded(form)
    decode_image(data)
    has = features.check
    monkeypatch.setattr(plugin, "SUPPORTED", False)
    monkeypatch.setattr(features, "check", lambda name: name != codec and has(name))
    with pytest.raises(BadImageError, match="built without its codec; install Pillow from PyPI, or convert it"):
        decode_image(data)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "TGA"])
def test_images_are_no_other_kind(form: str) -> None:
    assert decode_image(encoded(form)).image.size == (32, 32)
