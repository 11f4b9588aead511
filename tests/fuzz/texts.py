"""Kinds of small texts: word lists, captions, questions, recipes, rows to train on."""

import json
import random
import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from sea_pipeline.inputs.wordlists import load_wordlist
from tests.fuzz.mutations import Mutated, harmed, mutated_text
from tests.fuzz.verdicts import REFUSED, lost, told
from tests.fuzz.worlds import World

ROUNDS = 10
"""Files that one trial damages: each takes a millisecond or two."""
_WORDS = ["red", "green", "light blue", "naïve", "été", "rock 'n' roll", "日本", "x-ray", "Œuvre", "#tag", "a" * 40]


def words(world: World, folder: Path, random: random.Random) -> str:
    """A word list: a line that is as it was is a word, or the list is refused."""
    text = "".join(f"{word}\n" for word in _WORDS).encode()
    path = folder / "words.txt"

    def once(found: Mutated) -> str:
        path.write_bytes(found.data)
        read = told(found.done, lambda: load_wordlist(str(path)))
        if isinstance(read, str):
            return REFUSED
        gone = [word for word in _WORDS if word.encode() in found.data.split(b"\n") and word not in read.words]
        if gone:
            raise lost(f"{found.done}: {gone} are no words of the list")
        return "read"

    return _most(once(mutated_text(text, random)) for _ in range(ROUNDS))


def captions(world: World, folder: Path, random: random.Random) -> str:
    """Captions that a word list is mined from: those that are as they were are mined."""
    form = random.choice((".json", ".jsonl"))
    said = [f"a {colour} patch beside a {other} corner" for colour in _COLOURS for other in _COLOURS]
    text, lines = _records(said, form)
    path = folder / f"captions{form}"
    found = mutated_text(text, random)
    path.write_bytes(found.data)
    read = told(found.done, lambda: load_wordlist(f"mine:{path}"))
    if isinstance(read, str):
        return REFUSED
    kept = [caption for caption, line in zip(said, lines, strict=True) if line in found.data.splitlines()]
    if missing := {word for caption in kept for word in caption.split() if len(word) > 1} - set(read.words):
        raise lost(f"{found.done}: {missing} are not mined")
    return "mined"


def questions(world: World, folder: Path, random: random.Random) -> str:
    """Questions of `evaluate`, in both forms: each that is as it was is asked, or counted as left out."""
    from trainer.evaluation.questions import read_questions

    listed: list[dict[str, Any]] = [
        {"image": f"{n}.png", "question": f"Is there a dog in {n}?", "label": "Yes", "object": "dog"} for n in range(4)
    ]
    listed += [{"image": f"{n}.png", "question": f"What is {n}?", "answers": ["x", "ÿ"]} for n in range(4, 8)]
    content: Any = listed
    if random.random() < 0.5:
        content = {"a": {one["image"]: [one] for one in listed[:4]}, "b": {one["image"]: one for one in listed[4:]}}
    text = json.dumps(content, indent=random.choice((None, 1))).encode()
    path = folder / "questions.json"

    def once(found: Mutated) -> str:
        path.write_bytes(found.data)
        read = told(found.done, lambda: read_questions(path))
        if isinstance(read, str):
            return REFUSED
        count = len(read.asked) + sum(read.left.values())
        # A question ends where the next one's text begins, and one that is cut takes what is behind it along.
        starts = [place.start() for place in re.finditer(rb'"question"', text)]
        spans = pairwise([0, *starts, len(text)])
        touched = sum(not found.leaves(start, end) for start, end in spans)
        if count < len(listed) - touched:
            raise lost(f"{found.done}: {count} of {len(listed)} questions are asked or counted as left out")
        return "read"

    return _most(once(mutated_text(text, random)) for _ in range(ROUNDS))


def recipe(world: World, folder: Path, random: random.Random) -> str:
    """A recipe: it is read to settings, or refused in a line."""
    from trainer.recipes.files import read_recipes

    (folder / "base.yaml").write_bytes(_RECIPE)
    path = folder / "recipe.yaml"

    def once(found: Mutated) -> str:
        path.write_bytes(found.data)
        return REFUSED if isinstance(told(found.done, lambda: read_recipes(path)), str) else "read"

    return _most(once(mutated_text(random.choice((_RECIPE, _STAGES)), random)) for _ in range(ROUNDS))


def rows(world: World, folder: Path, random: random.Random) -> str:
    """Conversations to train on: each that is as it was trains what it trained, or the file is refused."""
    from trainer.data.row_tokens import TokensSettings, row_tokens

    form = random.choice((".json", ".jsonl"))
    text, lines = _records([f"a {colour} patch" for colour in _COLOURS], form)
    path = folder / f"rows{form}"

    def once(data: bytes) -> list[Any] | str:
        path.write_bytes(data)
        settings = TokensSettings.of(model=str(world.training.model), data=path)
        return told("rows", lambda: [row.to_json() for row in row_tokens(settings)])

    whole = once(text)
    assert not isinstance(whole, str), whole
    found = mutated_text(text, random)
    read = once(found.data)
    if isinstance(read, str):
        return REFUSED
    kept = [row for row, line in zip(whole, lines, strict=True) if line in found.data.splitlines()]
    if missing := [row["id"] for row in kept if row not in read]:
        raise lost(f"{found.done}: the rows {missing} train something else than they did, or nothing")
    return "read"


def conversations(world: World, folder: Path, random: random.Random) -> str:
    """The tokens of conversations that are kept on disk: they are as they were, whatever lies in their folder."""
    from trainer.data.conversations import FEATURES, conversation_rows
    from trainer.data.row_cache import kept_rows
    from trainer.model.load import open_model_folder

    processor = open_model_folder(world.training.model).processor

    def read() -> list[Any]:
        made = partial(conversation_rows, world.training.data, processor.tokenizer, template="plain", image_tokens=16)
        return kept_rows(made, FEATURES, folder / "cache", "0" * 16).to_list()

    whole = read()
    for _ in range(3):
        path = random.choice(sorted(file for file in (folder / "cache").rglob("*.[ja]*") if file.is_file()))
        done = f"{path.name}: {harmed(path, random, [])}"
        again = told(done, read)
        if isinstance(again, str):
            return REFUSED
        if again != whole:
            raise lost(f"{done}: other rows than were written")
    return "as it was"


_COLOURS = ("red", "green", "yellow", "brown")
_RECIPE = b"""\
# A comment, with more: than one colon
name: "tiny"
model: {vision: packaged, llm: packaged, projector: mlp2x_gelu}
data:
  train: photos.json
  image_root: ./photos
  template: plain
loss:
  sea: {weight: auto}
learning_rates: {projector: 1e-3, llm: null}
training_arguments:
  per_device_train_batch_size: 4
  max_steps: 80
"""
_STAGES = b"""\
base: base.yaml
seed: 3
stages:
  first: {loss: {sea: {weight: 0.5}}}
  second:
    learning_rates: {llm: 2e-5}
    data: {template: vicuna_v1, train: other.json}
"""


def _records(said: list[str], form: str) -> tuple[bytes, list[bytes]]:
    """LLaVA's JSON of captions, a record a line; and each line, as far as it is none of another one."""
    turns = [[{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": text}] for text in said]
    records = [{"id": f"s{n}", "image": f"{n}.png", "conversations": each} for n, each in enumerate(turns)]
    lines = [json.dumps(record).encode() for record in records]
    if form == ".jsonl":
        return b"".join(line + b"\n" for line in lines), lines
    return b"[\n" + b"\n,\n".join(lines) + b"\n]\n", lines


def _most(ends: Any) -> str:
    found = list(ends)
    return str(max(set(found), key=found.count))


KINDS: dict[str, Callable[[World, Path, random.Random], str]] = {
    "words": words, "captions": captions, "questions": questions, "recipe": recipe, "rows": rows,
    "conversations": conversations,
}  # fmt: skip
