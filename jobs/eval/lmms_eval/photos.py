"""What smoke_photos.yaml asks of each sample photo; it needs nothing but the packages that the photos come with."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}
_COMMON = frozenset({"a", "an", "and", "at", "between", "from", "in", "its", "of", "on", "the", "to", "with"})


def photo(doc: dict[str, Any]) -> list[Any]:
    """Open the image of a row of samples.json, in RGB."""
    from PIL import Image

    for package, folder in _FOLDERS.items():
        spec = find_spec(package)
        for root in (spec and spec.submodule_search_locations) or ():
            if (path := Path(root) / folder / doc["image"]).is_file():
                return [Image.open(path).convert("RGB")]
    raise FileNotFoundError(
        f"{doc['image']}: expected it in scikit-image or scikit-learn; pip install scikit-image scikit-learn"
    )


def question(doc: dict[str, Any]) -> str:
    """Give the question without the placeholder of the image, which the harness adds."""
    return str(doc["conversations"][0]["value"]).replace("<image>", "").strip()


def caption(doc: dict[str, Any]) -> str:
    """Give the answer of the row."""
    return str(doc["conversations"][1]["value"])


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """`caption_words`: the share of the caption's words, short common ones left out, that the model's text has."""
    words = _words(caption(doc)) - _COMMON
    return {"caption_words": len(words & _words(results[0])) / len(words)}


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))
