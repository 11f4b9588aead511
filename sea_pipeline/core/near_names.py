"""Find the name that a mistaken one is nearest to."""

import bisect
import difflib
import unicodedata
from collections.abc import Iterable, Sequence


def nearest_name(wanted: str, names: Iterable[str]) -> str:
    """Return the end of a message that shows the nearest of some names, or "" if there are none.

    A name that is the same in another form of Unicode is nearest. Then come one that ends in the text, one whose path
    the text ends in, one that contains it, and one that is spelled like it.
    """
    ordered = sorted(names)
    composed = unicodedata.normalize("NFC", wanted)
    if any(unicodedata.normalize("NFC", name) == composed for name in ordered if not name.isascii()):
        form = "NFD" if wanted == composed else "NFC"
        return f"; a name that looks the same is there, in Unicode's form {form}: write it so"
    nearest = _alike(wanted.casefold(), ordered) or difflib.get_close_matches(
        wanted, _neighbours(wanted, ordered), n=1, cutoff=0.0
    )
    return f"; the nearest is {nearest[0]!r}" if nearest else ""


def _alike(text: str, names: Sequence[str]) -> list[str]:
    """Return the name that most resembles a text in lower case as a whole, or nothing."""
    folded = {name: name.casefold() for name in names} if text else {}
    for found in (
        [name for name, lower in folded.items() if lower.endswith(text)],
        [name for name, lower in folded.items() if text.endswith(f"/{lower}")],
        [name for name, lower in folded.items() if text in lower],
    ):
        if found:
            return [min(found, key=lambda name: abs(len(name) - len(text)))]
    return []


def _neighbours(text: str, ordered: list[str]) -> list[str]:
    """Select the names whose spelling is worth comparing: those that sort near it, and those of the same file name."""
    name, place = text.rsplit("/", 1)[-1], bisect.bisect(ordered, text)
    return (
        ordered[max(0, place - 500) : place + 500]
        + [other for other in ordered if other.rsplit("/", 1)[-1] == name][:100]
    )
