"""Write the README.md of a dataset on the hub, with its figures, how to read it and its terms."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from sea_pipeline import __version__
from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.core.extras import require
from sea_pipeline.hub.by_word import BY_WORD
from sea_pipeline.labels.format import KIND as LABELS
from sea_pipeline.labels.format import MEANS
from sea_pipeline.labels.statistics import Statistics
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.records import Manifest
from sea_pipeline.storage.hashing import leaves

BEGIN, END = "<!-- sea-pipeline writes from here -->", "<!-- to here; what is outside of it stays -->"
_SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B")
_FOLDERS = re.compile(r"(^|[:=,/])~?/(?:.*/)?", re.DOTALL)
"""Matches an absolute path but for its last part, alone or in a spec. It is private to a machine and is not shown."""
_MARKS = re.compile(r"([\\`*_{}\[\]<>|#~$&])")


def dataset_card(
    name: str, ledger: Ledger, stats: Statistics | None, words: Sequence[str], picture: str | None, existing: str | None
) -> str:
    """Write the card of a finished folder as Markdown with the hub's metadata.

    Args:
        name: OWNER/NAME.
        ledger: the folder's.
        stats: statistics of labels; None for targets.
        words: the word list of labels.
        picture: the path of the picture in the dataset; None if there is none.
        existing: the present card, or None. Its text outside the marked part stays, and so does its metadata that is
            not ours, such as a licence.

    Raises:
        UserError: the present card cannot be read.
    """
    hub = require("huggingface_hub", "data")
    manifest, kind, title = ledger.manifest(), ledger.dataset.kind, name.partition("/")[2]
    data = hub.DatasetCardData(
        annotations_creators="machine-generated",
        configs=_configs(ledger, manifest),
        pretty_name=f"{title} ({kind} by sea-pipeline)",
        size_categories=_size(manifest.rows),
        tags=["sea-pipeline", "image-patches", kind],
    )
    frequent = stats.to_json(tuple(words))["most_frequent"] if stats is not None else []
    example = frequent[0]["word"] if frequent else "zebra"
    said = {
        "name": name,
        "title": plain(title),
        "what": _what(ledger, manifest),
        "picture": picture,
        "picture_says": picture_says(kind),
        "facts": _facts(ledger, manifest, stats),
        "settings": [(plain(key), plain(_shown(value))) for key, value in leaves(manifest.fields).items()],
        "words": [(plain(word["word"]), f"{word['labels']:,}", f"{word['best']:,}") for word in frequent],
        "kind": kind,
        "example": plain(example),
        "sql": "'" + example.replace("'", "''") + "'",
        "python": repr(example),
        "fields": manifest.fields,
        "terms": _terms(ledger),
    }
    template = str(Path(__file__).parent / "card.md.jinja")
    card = hub.DatasetCard.from_template(data, template_path=template, begin=BEGIN, end=END, **said)
    return _kept(hub, card, existing)


def licence_of(card: str) -> str | None:
    """Return the licence that a card's metadata names, or None."""
    found = require("huggingface_hub", "data").DatasetCard(card).data.to_dict().get("license")
    return found if isinstance(found, str) else None


def picture_says(kind: str) -> str:
    """Describe the picture for people who cannot see it."""
    if kind == LABELS:
        return "Labels by their score, and the words of the list by their mean similarity"
    return "The mean attention of each patch over all images"


def plain(text: str) -> str:
    """Return text on one line, escaped so that Markdown shows it as it is."""
    return _MARKS.sub(r"\\\1", " ".join(text.split()))


def _configs(ledger: Ledger, manifest: Manifest) -> list[dict[str, Any]]:
    """List the configurations that the hub's viewer and `datasets` read, by name.

    The first is read unless another is named.
    """
    kind = ledger.dataset.kind
    paths = {kind: f"{kind}/*.parquet"}
    if kind == LABELS:
        paths |= {BY_WORD: f"{BY_WORD}/*.parquet"} if manifest.rows else {}
        paths |= {"word_list": MEANS}
    paths |= {"bad_images": "quarantine/*.parquet"} if manifest.bad else {}
    configs = [{"config_name": name, "data_files": [{"split": "train", "path": path}]} for name, path in paths.items()]
    return [configs[0] | {"default": True}, *configs[1:]]


def _size(rows: int) -> str:
    """Name the range of the number of rows in the hub's words."""
    low = [None, *_SIZES]
    thousands = sum(rows >= 1000 * 10**power for power in range(len(_SIZES)))
    if thousands == 0:
        return f"n<{_SIZES[0]}"
    return f"{low[thousands]}<n<{_SIZES[thousands]}" if thousands < len(_SIZES) else f"n>{_SIZES[-1]}"


def _what(ledger: Ledger, manifest: Manifest) -> str:
    fields, rows = manifest.fields, f"{manifest.rows:,}"
    grid = " x ".join(map(str, fields["grid"]))
    if ledger.dataset.kind == LABELS:
        return (
            f"Words for the patches of {rows} {_images(fields)}: for each of {grid} patches the {fields['top_n']} most "
            f"similar words of a list of {fields['wordlist']['words']:,}, with their similarities, as SEA "
            f"(arXiv 2408.11813) labels them. Made with sea-pipeline {__version__}. The images are not in it."
        )
    return (
        f"A teacher's targets for {rows} images, as BASIC describes them: for each of {grid} patches a refined "
        f"embedding of width {fields['width']} and its share of the attention. Made with sea-pipeline {__version__}. "
        "The images are not in it."
    )


def _images(fields: Mapping[str, Any]) -> str:
    return "images and crops of them" if "crops" in fields else "images"


def _facts(ledger: Ledger, manifest: Manifest, stats: Statistics | None) -> list[tuple[str, str]]:
    fields, dataset = manifest.fields, ledger.dataset
    size = sum(file.bytes for file in [*manifest.shards, *manifest.other_files])
    facts = [(_images(fields), f"{manifest.rows:,}"), ("images that could not be read", f"{manifest.bad:,}")]
    facts += [("patches of an image", " x ".join(map(str, fields["grid"]))), ("size", decimal(size))]
    if stats is not None:
        encoder = fields["encoder"]
        spec = _FOLDERS.sub(r"\1", dataset.encoder or str(encoder["name"]))
        facts += [
            ("encoder", plain(spec)),
            ("path through the encoder", plain(str(encoder.get("path", "its own")))),
            ("sign of the similarity", "+" if fields["sign"] > 0 else "-"),
            ("word list", f"{fields['wordlist']['words']:,} words, sha256 {fields['wordlist']['sha256']}"),
            ("n, labels of a patch at most", str(fields["top_n"])),
            ("labels", f"{stats.labels:,}"),
            ("patches with a label", f"{stats.labelled_patches:,} of {stats.patches:,}"),
            ("words of the list that are used", f"{stats.words_used:,} ({stats.share_used:.1%})"),
            ("words whose mean similarity is below 0", f"{stats.share_below_zero:.1%}"),
        ]
    else:
        facts += [("codec", plain(str(fields["codec"]))), ("width", f"{fields['width']:,}")]
    return [*facts, ("fingerprint of the settings", dataset.fingerprint)]


def _terms(ledger: Ledger) -> list[str]:
    source = plain(_FOLDERS.sub(r"\1", ledger.dataset.source))
    terms = [
        "Licence: whoever publishes this dataset chooses it; `license:` at the top of this file names it if it was "
        "chosen.",
        f"Images: from {source}. They are not in this dataset. They have terms of their own, which may say what may be "
        "made from them and shared.",
    ]
    if ledger.dataset.kind == LABELS:
        return [
            *terms,
            "Encoder: its weights have terms of their own, too; they are not in this dataset.",
            "Word list: it is in this dataset, as `words.txt`. The list 2of12 of sea-pipeline is public domain; "
            "another one has its author's terms.",
        ]
    return [*terms, "Model: its weights have terms of their own, too; they are not in this dataset."]


def _shown(value: Any) -> str:  # noqa: ANN401 - whatever JSON holds
    return _FOLDERS.sub(r"\1", value) if isinstance(value, str) else str(value)


def _kept(hub: Any, card: Any, existing: str | None) -> str:  # noqa: ANN401 - huggingface_hub and its DatasetCard
    """Keep the owner's text and metadata of the present card around our part."""
    if existing is None:
        return str(card)
    try:
        there = hub.DatasetCard(existing)
    except Exception as error:  # YAML raises errors of many classes
        raise UserError(f"README.md: cannot be read as a card: {one_line(error)}; mend it on the hub") from error
    ours: Mapping[str, Any] = card.data.to_dict()
    for key, value in ours.items():
        if key in ("configs", "size_categories") or there.data.get(key) is None:
            there.data[key] = value
    before, begin, rest = there.text.partition(BEGIN)
    _, end, after = rest.partition(END)
    text, new = there.text, card.text
    if begin and end:
        new = new[new.index(BEGIN) : new.index(END)]
        text = f"{before}{new}{END}{after}"
    there.text = text
    there.content = f"---\n{there.data.to_yaml()}\n---\n{text}"
    return str(there)
