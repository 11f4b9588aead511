"""Find what other formats of conversations hold beside and in turns, so that none is dropped without a word."""

import re
from collections.abc import Iterator
from typing import Any

from sea_pipeline.core.errors import UserError

_SYSTEM = ("system", "system_prompt", "system_message", "tools")
"""Keys beside the turns whose texts come before them: LLaMA-Factory's, OpenHermes'."""
_TURNS = ("history", "messages", "texts")
"""Keys beside the turns that hold turns, if they hold a list: MS-Swift's, OpenAI's, the Cauldron's."""
_ANSWER = ("tool_calls", "function_call", "reasoning_content")
"""Keys in a turn that hold a part of what it says."""
_TRAINED = ("weight", "loss", "train")
"""Keys in an answer that say whether it is trained: axolotl's and MS-Swift's."""
PLACE = "<image>"
"""Where an image goes in a turn."""
ANSWERERS = ("gpt", "assistant")
"""The values of `from` in a turn that is an answer."""
_MARK = re.compile(
    r"^(?:Picture \d+: *)?<img>[^<>\n]+\.(?:jpe?g|png|gif|webp|bmp)</img>"
    r"|<\|vision_start\|>|<\|(?:image|video)_pad\|>|<\|image(?:_\d+)?\|>|<(?:start_of_image|image_soft_token)>"
    r"|<(?:IMG_CONTEXT|ImageHere|image_placeholder)>",
    re.MULTILINE | re.IGNORECASE,
)
"""Places of images in questions: Qwen-VL's, Qwen2-VL's, Llama's, Phi-3's, Gemma's, InternVL's, DeepSeek-VL's."""


def check_other_formats(row: dict[str, Any]) -> None:
    """Refuse a record with what other formats say beside or in their turns, and which would be lost.

    Empty texts, lists and objects, and texts that a turn says as well, are no loss.

    Raises:
        UserError: names the key or the text.
    """
    given = row.get("conversations")
    turns = given if isinstance(given, list) else []
    inner = [(number, turn) for number, turn in enumerate(turns, start=1) if isinstance(turn, dict)]
    said = {_bare(turn["value"]) for _, turn in inner if isinstance(turn.get("value"), str)}
    beside = {
        'a first turn, {"from": "system", "value": text}': [key for key in _SYSTEM if _lost(row.get(key), said)],
        "further turns": [key for key in _TURNS if isinstance(row.get(key), list) and _lost(row[key], said)],
    }
    for place, keys in beside.items():
        if keys:
            raise UserError(
                f"expected what a conversation says in its turns alone; found {' and '.join(map(repr, keys))} beside "
                f"them, which would not be read; write it into {place}, or remove the key"
            )
    for number, turn in inner:
        _check_turn(number, turn)


def _check_turn(number: int, turn: dict[str, Any]) -> None:
    if unread := next((key for key in _ANSWER if _lost(turn.get(key), set())), None):
        raise UserError(
            f"expected what a turn says in its 'value' alone; found {unread!r} in turn {number}, which would not be "
            "read; write it into 'value', or remove the key"
        )
    if turn.get("from") in ANSWERERS:
        if untrained := next((key for key in _TRAINED if turn.get(key) == 0), None):
            raise UserError(
                f"expected answers that are all trained; found {untrained!r} in turn {number}, so that this answer is "
                "not to be trained; remove the key to train the answer, or remove the turn and the one before it"
            )
    elif isinstance(turn.get("value"), str) and (mark := _MARK.search(turn["value"])):
        raise UserError(
            f"expected {PLACE} where an image goes; found {mark[0]!r} in turn {number}, which would be read as text; "
            f"write {PLACE} in its place, and name the image in 'image'"
        )


def _lost(value: Any, said: set[str]) -> bool:  # noqa: ANN401 - whatever a data file holds
    return any(_bare(text) not in ("", "[]", "{}", *said) for text in _texts(value))


def _texts(value: Any) -> Iterator[str]:  # noqa: ANN401 - whatever a data file holds
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, dict):
        for key, part in value.items():
            if key not in ("role", "from", "type", "source"):
                yield from _texts(part)


def _bare(text: str) -> str:
    return text.replace(PLACE, "").strip()
