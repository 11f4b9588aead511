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


def row(question: dict[str, Any], answer: dict[str, Any], **more: Any) -> dict[str, Any]:
    made = record([(Q, A)], "a.jpg", **more)
    turns = zip(made["conversations"], (question, answer), strict=True)
    return made | {"conversations": [turn | keys for turn, keys in turns]}


@pytest.mark.parametrize(
    ("question", "answer", "more", "expected"),
    [
        (
            {},
            {},
            {"system_prompt": "Be brief."},
            "found 'system_prompt' beside them, which would not be read; write it",
        ),
        ({}, {}, {"system": "a", "system_message": "b"}, "found 'system' and 'system_message' beside"),
        (
            {},
            {},
            {"history": [["Hi.", "Hello."]]},
            "found 'history' beside them, which would not be read; write it into f",
        ),
        ({}, {}, {"messages": TOLD}, "found 'messages' beside"),
        ({}, {}, {"texts": [{"user": "What?", "assistant": "A dog.", "source": "x"}]}, "found 'texts' beside"),
        ({}, {"tool_calls": [{"function": {"name": "look"}}]}, {}, "found 'tool_calls' in turn 2, which would not be"),
        ({}, {"reasoning_content": "It has ears."}, {}, "found 'reasoning_content' in turn 2"),
        ({}, {"weight": 0}, {}, "found 'weight' in turn 2, so that this answer is not to be trained; remove the key"),
        ({}, {"weight": 1, "loss": False}, {}, "found 'loss' in turn 2"),
        (
            {"value": "Picture 1: <img>a.jpg</img>\nWhat?"},
            {},
            {},
            "found 'Picture 1: <img>a.jpg</img>' in turn 1, which",
        ),
        ({"value": "<|vision_start|><|image_pad|><|vision_end|>What?"}, {}, {}, "found '<|vision_start|>' in turn 1"),
        ({"value": "<|image_1|>\nWhat?"}, {}, {}, "found '<|image_1|>' in turn 1"),
    ],
)
def test_what_would_be_lost_is_refused(
    question: dict[str, Any], answer: dict[str, Any], more: dict[str, Any], expected: str
) -> None:
    with refused(expected):
        turns_of(row(question, answer, **more))


@pytest.mark.parametrize(
    ("question", "answer", "more"),
    [
        (
            {},
            {},
            {"system_prompt": None, "system_message": " ", "tools": "[]", "history": [], "texts": {}},
        ),
        ({}, {}, {"system_prompt": A, "messages": [{"role": "user", "content": "What?"}], "history": "of the file"}),
        ({}, {}, {"source": "coco", "weight": 0, "width_list": [1], "height_list": [1], "loss": 0, "train": False}),
        ({"weight": 0, "loss": False}, {"weight": 1, "loss": True, "train": None, "tool_calls": [], "score": 0}, {}),
        ({"value": "Is <img>a.jpg</img> right HTML? <img src='a.jpg'>"}, {"value": "<|image_pad|>"}, {}),
        ({"value": "Mend this XML:\n<img>a.jpg</img>"}, {}, {}),
        ({"value": "What does <|image_1|> mean to Phi-3?"}, {"tool_calls": "null", "function_call": "None"}, {}),
        ({}, {"value": "<think>Ears.</think>A cat.", "reasoning_content": "Ears."}, {"system": "null"}),
        ({}, {}, {"messages": AS_TURNS, "texts": ["EXIT", "a sign"]}),
    ],
)
def test_what_is_empty_said_twice_or_of_no_turn_is_no_loss(
    question: dict[str, Any], answer: dict[str, Any], more: dict[str, Any]
) -> None:
    made = row(question, answer, **more)
    assert turns_of(made) is made["conversations"]


@pytest.mark.parametrize("given", [None, "x", {"from": ["human"]}, ["x"], [{"from": ["gpt"], "value": 7, "weight": 0}]])
def test_turns_that_are_none_are_left_to_their_reader(given: Any) -> None:
    assert turns_of({"conversations": given}) == given
