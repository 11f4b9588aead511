"""Find the keys of LLaVA's records that name media beside `image`, so that none is dropped without a word."""

import re
from collections.abc import Sequence
from numbers import Number
from typing import Any


def media_keys(row: dict[str, Any], images: Sequence[Any]) -> list[str]:
    """List the keys of a record and its turns that hold media and are neither `image` nor `images`.

    In a record without an image, a key of any name counts if its value is the name of a picture, a film or a sound.

    Args:
        row: the record.
        images: its images. A value that is one of them, or some of them, is no further medium.
    """
    turns = row.get("conversations")
    inner = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    pairs = [(key, value) for key, value in row.items() if key not in ("id", "image", "images", "conversations")]
    pairs += [(key, value) for turn in inner for key, value in turn.items() if key not in ("from", "value")]
    found = [
        key
        for key, value in pairs
        if not all(part in images for part in (value if isinstance(value, list) else [value]))
        and (
            (_names_media(key) and value not in (None, "", {}) and not isinstance(value, Number))
            or ((not images or (_speaks_of_media(key) and not _is_image_id(key))) and _is_media(value))
        )
    ]
    return list(dict.fromkeys(found))


def _words(key: str) -> list[str]:
    return [word.lower().removesuffix("s") for word in _KEY_WORDS.findall(key)]


def _speaks_of_media(key: str) -> bool:
    return any(word in _MEDIA for word in _words(key))


def _is_image_id(key: str) -> bool:
    """Tell whether a key is named like the id of an image, which may look like a file's name."""
    words = _words(key)
    return words[-1] == "id" and not any(word in _MEDIA - _IMAGE for word in words)


def _names_media(key: str) -> bool:
    """Tell whether a key is named like media, such as `video`, `image_path`, `imageUrls` or `imgfile`.

    `image_id` and `image_size` are not, because they only describe an image.
    """
    words = _words(key)
    if _COMPOUND.fullmatch(key):
        return True
    return _speaks_of_media(key) and all(word in _MEDIA or word in _REFERENCE for word in words)


def _is_media(value: Any) -> bool:  # noqa: ANN401 - whatever a data file holds
    """Tell whether a value is the name or the address of a media file, or a list of such."""
    while isinstance(value, list) and value:  # a file may nest thousands
        value = value[0]
    if isinstance(value, dict):
        return any(_is_media(inner) for inner in value.values() if isinstance(inner, str))
    return isinstance(value, str) and (_MEDIA_FILE.search(value) is not None or value.startswith("data:"))


_KEY_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_IMAGE = {"image", "img", "picture", "pic", "photo"}
_MEDIA = _IMAGE | {"video", "audio", "sound", "speech", "media", "frame", "clip", "pixel"}
_REFERENCE = {"path", "file", "filename", "filepath", "name", "fn", "url", "uri", "link", "list", "byte", "data"}
_REFERENCE |= {"src", "b", "content", "local", "ab", "rel", "absolute", "relative", "input", "query", "encoded"}
_REFERENCE |= {"dir", "folder", "value", "tensor", "base", "pil"}
_COMPOUND = re.compile(
    r"(image|img|picture|photo|video|audio)s?(path|file|filename|url|uri|name|list|data)s?", re.IGNORECASE
)
_MEDIA_FILE = re.compile(
    r"^(\S+|[^\n]*/[^\n]*)\.(jpe?g|png|gif|webp|bmp|tiff?|heic|avif|mp4|avi|mov|mkv|webm|wav|mp3|flac|ogg|m4a)$",
    re.IGNORECASE,
)
