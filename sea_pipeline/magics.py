"""Names what a file that is no image holds, and what to do about it."""

import re

from PIL import features

_CONVERT = "convert it to JPEG or PNG"
_KINDS: list[tuple[bytes, str]] = [
    (rb"version https://git-lfs\.github\.com/spec", "a git-lfs pointer; fetch the image itself with `git lfs pull`"),
    (rb"....ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)", f"a HEIC picture, which Pillow cannot decode here; {_CONVERT}"),
    (rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", f"a JPEG XL picture, which Pillow cannot decode; {_CONVERT}"),
    (rb"....ftyp(?:crx|cr3)", f"a camera's raw picture; {_CONVERT}"),
    (rb"....(?:ftyp|moov|mdat)", "an MP4 or QuickTime video; take pictures out of it, or leave it out"),
    (rb"\x1a\x45\xdf\xa3", "a Matroska or WebM video; take pictures out of it, or leave it out"),
    (rb"RIFF....AVI ", "an AVI video; take pictures out of it, or leave it out"),
    (rb"OggS|FLV\x01|\0\0\x01[\xba\xb3]", "a video; take pictures out of it, or leave it out"),
    (rb"RIFF....WAVE|ID3|fLaC", "a sound; leave it out"),
    (rb"\s*%PDF-", "a PDF document; export its pictures as JPEG or PNG"),
    (
        rb"\s*(?:<\?xml[^>]*>\s*)?(?:(?><!--.*?-->|<!DOCTYPE svg.*?>)\s*)*+<svg[\s>:]",
        "an SVG drawing; render it as PNG",
    ),
    (
        rb"\s*(?:<\?xml[^>]*>\s*)?(?:(?><!--.*?-->)\s*)*+<(?:!doctype\s+)?html",
        "an HTML page, such as an error page; download the image again",
    ),
    (rb"\s*<(?:head|body|title|script|h1|center)\b", "an HTML page, such as an error page; download the image again"),
    (rb"\s*<[?A-Za-z!]", "an XML document, such as a server's error message; download the image again"),
    (rb'\s*(?:\{\s*["}]|\[\s*[{"\]])', "JSON text, such as a server's error message; download the image again"),
    (rb"\x1f\x8b", "gzip data; decompress it with `gunzip`"),
    (rb"PK(?:\x03\x04|\x05\x06|\x07\x08)", "a zip archive; extract it with `unzip`"),
    (rb"BZh[1-9]1AY&SY", "bzip2 data; decompress it with `bunzip2`"),
    (rb"\xfd7zXZ\0", "xz data; decompress it with `unxz`"),
    (rb"\x28\xb5\x2f\xfd", "Zstandard data; decompress it with `unzstd`"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive; extract it with `7z x`"),
    (rb"Rar!\x1a\x07", "a RAR archive; extract it with `unrar x`"),
    (rb".{257}ustar", "a tar archive; extract it with `tar -xf`"),
    (rb"\x93NUMPY", "a NumPy array; save it as PNG"),
    (rb"8BPS", f"a Photoshop document; {_CONVERT}"),
    (rb"\x89PNG(?!\r\n\x1a\n)", "a PNG whose line ends were changed; copy it again in binary mode"),
]
"""Byte patterns from a file's start, the most particular first, and what such a file is."""
_CODECS = {
    "avif": (rb"....ftyp(?:avi[fs]|mi[af]1.{4,60}?avif)", "an AVIF picture"),
    "webp": (rb"RIFF....WEBP", "a WebP picture"),
    "jpg_2000": (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "a JPEG 2000 picture"),
}
"""Pillow's names of codecs that it may be built without, and the files that need them."""
_PATTERNS = [
    (re.compile(rb"(?:\xef\xbb\xbf)?(?:" + pattern + rb")", re.DOTALL | re.IGNORECASE), said)
    for pattern, said in _KINDS
]
_LACKS = f"is built without its codec; install Pillow from PyPI, or {_CONVERT}"
_HEAD = 4096


def known_kind(data: bytes) -> str | None:
    """What the bytes are and what to do about it, in one line; None if they are of no kind known here."""
    if data and data.count(0) == len(data):
        return f"expected an image; all {len(data):,} bytes are zeros: the file was never written; copy it again"
    head = data[:_HEAD]
    if head.startswith((b"\xff\xfe<\0", b"\xfe\xff\0<")):
        head = head.decode("utf-16", "ignore").encode()
    for codec, (pattern, name) in _CODECS.items():
        if re.match(pattern, head, re.DOTALL):
            return None if features.check(codec) else f"expected an image; this is {name}, and this Pillow {_LACKS}"
    return next((f"expected an image; this is {said}" for pattern, said in _PATTERNS if pattern.match(head)), None)
