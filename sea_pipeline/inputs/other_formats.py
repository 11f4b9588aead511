"""Find what other formats of conversations hold beside and in turns, so that none is dropped without a word."""

import re
from collections.abc import Container, Iterator
from typing import Any

from sea_pipeline.core.errors import UserError

_SYSTEM = ("system", "system_prompt", "system_message", "tools")
"""Keys beside the turns whose texts come before them: LLaMA-Factory's, OpenHermes'."""
_TURNS = ("history", "messages", "texts")
"""Keys beside the turns that hold turns, unless they hold texts alone: MS-Swift's, OpenAI's, the Cauldron's."""
_SAID = ("content", "text", "value", "user", "assistant")
"""Keys in such a turn, and in the parts of its content, that hold what it says."""
_ANSWER = ("tool_calls", "function_call", "reasoning_content")
"""Keys in a turn that hold a part of what it says."""
_TRAINED = ("weight", "loss", "train")
"""Keys in an answer that say whether it is trained: axolotl's and MS-Swift's."""
PLACE = "<image>"
"""Where an image goes in a turn."""
ANSWERERS = ("gpt", "assistant")
"""The values of `from` in a turn that is an answer."""
_EMPTY = ("", "[]", "{}", "null", "None")
"""What writers of tables make of a value that is absent."""
_MARK = re.compile(
    r"(?:\A|^Picture \d+: *)<img>[^<>\n]+\.(?:jpe?g|png|gif|webp|bmp)</img>"
    r"|^(?:<\|vision_start\|>|<\|(?:image|video)_pad\|>|<\|image(?:_\d+)?\|>|<(?:start_of_image|image_soft_token)>"
    r"|<(?:IMG_CONTEXT|ImageHere|image_placeholder)>)",
    re.MULTILINE | re.IGNORECASE,
)
"""Places of images in questions: Qwen-VL's, Qwen2-VL's, Llama's, Phi-3's, Gemma's, InternVL's, DeepSeek-VL's.

Within a line they may be what a question is about, such as XML.
"""


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
        'a first turn, {"from": "system", "value": text}': [
            key for key in _SYSTEM if _lost(_texts(row.get(key)), said)
        ],
        "further turns": [key for key in _TURNS if _has_turns(row.get(key)) and _lost(_texts(row[key], _SAID), said)],
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
    value = turn.get("value")
    said = value if isinstance(value, str) else ""
    if unread := next((key for key in _ANSWER if _lost(_texts(turn.get(key)), said)), None):
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
    elif mark := _MARK.search(said):
        raise UserError(
            f"expected {PLACE} where an image goes; found {mark[0]!r} in turn {number}, which would be read as text; "
            f"write {PLACE} in its place, and name the image in 'image'"
        )


def _lost(texts: Iterator[str], said: Container[str]) -> bool:
    return any(text not in said for text in texts)


def _has_turns(value: Any) -> bool:  # noqa: ANN401 - whatever a data file holds
    return isinstance(value, list) and not all(isinstance(each, str) for each in value)


def _texts(value: Any, keys: Container[str] | None = None) -> Iterator[str]:  # noqa: ANN401 - whatever a data file holds
    """Yield the texts in a value that are not empty, of objects those of `keys`, or of all that may say something."""
    if isinstance(value, str):
        if (text := _bare(value)) not in _EMPTY:
            yield text
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part, keys)
    elif isinstance(value, dict):
        for key, part in value.items():
            if key not in ("role", "from", "type", "source") if keys is None else key in keys:
                yield from _texts(part, keys)


def _bare(text: str) -> str:
    return text.replace(PLACE, "").strip()
