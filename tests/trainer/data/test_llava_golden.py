"""Ids and masks by LLaVA-1.5's published rules, written down token by token.

`llava_golden.jsonl` holds a conversation a line: `turns` by human and gpt, and `runs`, its tokens in pieces that are by
turns not trained and trained; `…` stands for BOS and LLaVA's system text. They were worked out from what LLaVA does:

- An image goes to the front of its message with a newline behind it, and the message loses the spaces at its ends.
- `plain`: image, caption, newline. `vicuna_v1`: system text, then `USER: Q ASSISTANT: A</s>` for each turn. A message
  that is empty is its speaker and a colon, without the space or `</s>` behind it.
- What stands between images is tokenised by itself, as SentencePiece does: a space in front of it and of what follows
  a special token, then merges by rank, and bytes for characters that the vocabulary lacks.
- Trained is the caption with its newline; or from the space before an answer, which is part of its first token if it
  can be, to `</s>`.

LLaVA finds answers by cutting the prompt at `</s>` and at ` ASSISTANT: `. Where that fails it prints a warning and
trains nothing of the sample (`"llava": "ignored"`), or trains more than the answer (`"another mask"`). There the ids
are LLaVA's and the mask is that of the rule above: nothing is dropped without a word.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from sea_pipeline.core.errors import UserError
from tests.support.conversations_json import Row, load, record, written
from tests.support.tiny_tokenizers import llama_like

TOKENIZER = llama_like("sentencepiece")
SYSTEM = (
    "<s> ▁A ▁chat ▁between ▁a ▁curious ▁user ▁and ▁an ▁artificial ▁intelligence ▁assistant. ▁The ▁assistant ▁gives "
    "▁helpful, ▁detailed, ▁and ▁polite ▁answers ▁to ▁the ▁user's ▁questions."
)
GOLDEN = [json.loads(line) for line in Path(__file__).with_name("llava_golden.jsonl").read_text("utf-8").splitlines()]


def one(case: dict[str, Any]) -> Row:
    """A conversation of the file as a record of LLaVA's JSON."""
    turns = case["turns"]
    return record(list(zip(turns[::2], turns[1::2], strict=True)), "a.jpg" if case["image"] else None)


def tokens(runs: list[str]) -> tuple[list[str], list[bool]]:
    """Runs, the first of which is not trained, as tokens and mask."""
    cut = [run.replace("…", SYSTEM).split(" ") for run in runs]
    return [token for run in cut for token in run], [number % 2 == 1 for number, run in enumerate(cut) for _ in run]


@pytest.mark.parametrize("template", ["plain", "vicuna_v1"])
def test_ids_and_masks_are_llavas(tmp_path: Path, template: str) -> None:
    cases = [case for case in GOLDEN if case["template"] == template]
    assert len(cases) >= 15
    rows = load(written(tmp_path, *map(one, cases)), TOKENIZER, template)
    for case, row in zip(cases, rows, strict=True):
        expected, mask = tokens(case["runs"])
        assert TOKENIZER.convert_ids_to_tokens(row["input_ids"]) == expected, case["why"]
        assert TOKENIZER.convert_tokens_to_ids(expected) == row["input_ids"], case["why"]
        assert row["trained"] == mask, case["why"]
        assert row["images"] == ["a.jpg"] * case["image"]


def test_what_llava_passes_over_in_silence_is_refused_or_kept(tmp_path: Path) -> None:
    """No rule of LLaVA's is followed where it loses an image or a turn without a word."""
    silent = {
        "nothing to train on": record([("What?", "")]),  # ignored with a warning; under plain a newline is trained
        "gpt first": {"conversations": record([("a", "b")])["conversations"][::-1]},  # its first turn is dropped
        "an image in an answer": record([("<image>", "an <image>")], "a.jpg"),  # two places for one image
        "an image that is none": record([("<image>", "b")]),  # tokenised as text
    }
    for why, row in silent.items():
        with pytest.raises(UserError, match="found"):
            load(written(tmp_path, row), TOKENIZER, "vicuna_v1")
            pytest.fail(why)
    unplaced = record([("What?", "A cat.")], "a.jpg")  # LLaVA does not show the image; here it goes to the front
    placed = record([("<image>\nWhat?", "A cat.")], "a.jpg")
    for template in ("plain", "vicuna_v1"):
        first, second = (load(written(tmp_path, row), TOKENIZER, template)[0] for row in (unplaced, placed))
        assert first == second | {"id": first["id"]}
