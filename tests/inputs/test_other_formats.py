"""What other formats say beside and in turns is refused, unless it is empty or said twice."""

from typing import Any

import pytest

from sea_pipeline.inputs.llava_json import turns_of
from tests.support.conversations_json import record
from tests.support.refused import refused

Q, A = "<image>\nWhat?", "A cat."
TOLD = [{"role": "user", "content": [{"type": "text", "text": "What?"}]}, {"role": "assistant", "content": "A dog."}]

AS_TURNS = [
    {"role": "user", "name": "x", "content": [{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "What?"}]},
    {"role": "assistant", "content": A},
]


def row(question: dict[str, Any] | None = None, answer: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A sample, with these keys in the question's turn, in the answer's, and beside the turns."""
    made = record([(Q, A)], "a.jpg", **more)
    turns = zip(made["conversations"], (question or {}, answer or {}), strict=True)
    return made | {"conversations": [turn | keys for turn, keys in turns]}


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (row(system_prompt="Be brief."), "found 'system_prompt' beside them, which would not be read; write it"),
        (row(system="a", system_message="b"), "found 'system' and 'system_message' beside"),
        (row(history=[["Hi.", "Hello."]]), "found 'history' beside them, which would not be read; write it into f"),
        (row(messages=TOLD), "found 'messages' beside"),
        (row(texts=[{"user": "What?", "assistant": "A dog.", "source": "x"}]), "found 'texts' beside"),
        (row({}, {"tool_calls": [{"function": {"name": "look"}}]}), "found 'tool_calls' in turn 2, which would not be"),
        (row({}, {"reasoning_content": "It has ears."}), "found 'reasoning_content' in turn 2"),
        (row({}, {"weight": 0}), "found 'weight' in turn 2, so that this answer is not to be trained; remove the key"),
        (row({}, {"weight": 1, "loss": False}), "found 'loss' in turn 2"),
        (row({"value": "Picture 1: <img>a.jpg</img>\nWhat?"}), "'Picture 1: <img>a.jpg</img>' in turn 1, which"),
        (row({"value": "<|vision_start|><|image_pad|><|vision_end|>What?"}), "found '<|vision_start|>' in turn 1"),
        (row({"value": "<|image_1|>\nWhat?"}), "found '<|image_1|>' in turn 1"),
    ],
)
def test_what_would_be_lost_is_refused(made: dict[str, Any], expected: str) -> None:
    with refused(expected):
        turns_of(made)


@pytest.mark.parametrize(
    "made",
    [
        row(system_prompt=None, system_message=" ", tools="[]", history=[], texts={}),
        row(system_prompt=A, messages=[{"role": "user", "content": "What?"}], history="of the file"),
        row(source="coco", weight=0, width_list=[1], height_list=[1], loss=0, train=False),
        row({"weight": 0, "loss": False}, {"weight": 1, "loss": True, "train": None, "tool_calls": [], "score": 0}),
        row({"value": "Is <img>a.jpg</img> right HTML? <img src='a.jpg'>"}, {"value": "<|image_pad|>"}),
        row({"value": "Mend this XML:\n<img>a.jpg</img>"}),
        row({"value": "What does <|image_1|> mean to Phi-3?"}, {"tool_calls": "null", "function_call": "None"}),
        row({}, {"value": "<think>Ears.</think>A cat.", "reasoning_content": "Ears."}, system="null"),
        row(messages=AS_TURNS, texts=["EXIT", "a sign"]),
    ],
)
def test_what_is_empty_said_twice_or_of_no_turn_is_no_loss(made: dict[str, Any]) -> None:
    assert turns_of(made) is made["conversations"]


@pytest.mark.parametrize("given", [None, "x", {"from": ["human"]}, ["x"], [{"from": ["gpt"], "value": 7, "weight": 0}]])
def test_turns_that_are_none_are_left_to_their_reader(given: Any) -> None:
    assert turns_of({"conversations": given}) == given
