"""Conversations as LLaVA's JSON, for the tests of what becomes of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from trainer.data.bad_rows import refuse
from trainer.data.conversations import read_conversations

Row = dict[str, Any]
Pairs = list[tuple[str, str]]

ANSWERS = [
    "A cat.",
    "1",
    "",
    " spaced ",
    "\nline",
    "你好 🎉",
    "Ünïcode, naïve",
    "a\n\nlist:\n- one\n- two",
    "What? USER",
]


def record(pairs: Pairs, image: Any = None, **more: Any) -> Row:
    spoken = [(("human", question), ("gpt", answer)) for question, answer in pairs]
    said = [{"from": who, "value": text} for pair in spoken for who, text in pair]
    return {"conversations": said, **({} if image is None else {"image": image}), **more}


def written(folder: Path, *rows: Row, name: str = "data.json") -> Path:
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)) if name.endswith("l") else json.dumps(rows))
    return path


def load(path: Path, tokenizer: Any, template: Any, **more: Any) -> datasets.Dataset:
    """The rows, of which none may be bad."""
    settings = {"template": template, "image_tokens": 5, "max_length": 10_000} | more
    read = read_conversations(path, tokenizer, **settings)
    refuse(path, read.bad, len(read.rows) + len(read.bad))
    return read.rows.remove_columns("number")


def samples(*, empty: bool = True) -> Iterator[tuple[Pairs, str | None]]:
    """`empty`: with messages that say nothing, from which LLaVA's template takes the spaces and the EOS."""
    for answer in filter(None, ANSWERS) if not empty else ANSWERS:
        if answer:
            yield [("<image>\nWhat is it?", answer)], "a.jpg"
        yield [("What?", answer), ("1 你", "It."), ("" if empty else "?", answer)], None
        yield [("Why? <image>", "Because."), ("And so?", answer)], "a.jpg"


def rows_of(dataset: datasets.Dataset) -> list[tuple[list[int], list[bool]]]:
    return [(row["input_ids"], row["trained"]) for row in dataset]
