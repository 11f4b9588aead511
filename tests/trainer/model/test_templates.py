from typing import Any

import pytest

from sea_pipeline.core.errors import UserError
from tests.support.refused import refused
from tests.support.tiny_tokenizers import CHATML, CHATML_MARKED, byte_level, llama_like
from trainer.model.chat_template import chat_template
from trainer.model.prompts import Message, RenderedText, load_template, read_messages


def turns(*values: str, system: str | None = None) -> list[dict[str, str]]:
    spoken = [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]
    return [{"from": "system", "value": system}, *spoken] if system is not None else spoken


def trained(rendered: RenderedText) -> list[str]:
    return [rendered.text[start:end] for start, end in rendered.spans]


@pytest.mark.parametrize(
    ("questions", "images", "expected"),
    [
        (["<image>\nWhat?"], 1, ["<image>\nWhat?"]),
        (["What? \n<image>"], 1, ["<image>\nWhat?"]),
        (["What <image>is it?"], 1, ["<image>\nWhat is it?"]),
        (["<image>"], 1, ["<image>"]),
        (["Hi. ", "And this? <image>"], 1, ["Hi. ", "<image>\nAnd this?"]),
        (["Is <image> like <image>?"], 2, ["Is <image> like <image>?"]),
        (["Is <image> like <image>?"], 1, ["<image>\nIs  like ?"]),
        (["<image><image>", "And <image> or <image>?"], 2, ["<image>", "<image>\nAnd  or ?"]),
        (["See <image>.", "And <image>?"], 2, ["<image>\nSee .", "<image>\nAnd ?"]),
        ([" What?", "Why?"], 1, ["<image>\nWhat?", "Why?"]),
        (["What?"], 2, ["<image><image>\nWhat?"]),
        ([""], 1, ["<image>"]),
        ([" No image "], 0, [" No image "]),
    ],
)
def test_an_image_goes_to_the_front_of_its_question(questions: list[str], images: int, expected: list[str]) -> None:
    values = [value for question in questions for value in (question, "An answer.")]
    messages = read_messages(turns(*values), images)
    assert [message["content"] for message in messages[::2]] == expected
    assert all(message == {"role": "assistant", "content": "An answer."} for message in messages[1::2])


def test_the_tokenizers_name_of_an_image_stands_in_the_messages() -> None:
    (question, _) = read_messages(turns("What is <image>?", "It"), 1, "<soft>")
    assert question["content"] == "<soft>\nWhat is ?"


@pytest.mark.parametrize(
    ("conversation", "images", "token", "expected"),
    [
        (None, 0, "<image>", "found None"),
        ([], 0, "<image>", r"found \[\]"),
        (["hello"], 0, "<image>", "turn 1 to be an object .* found 'hello'"),
        ([{"from": "bing", "value": "x"}], 0, "<image>", r"turn 1 .*\(human, gpt or system\).*bing"),
        ([{"from": ["human"], "value": "x"}], 0, "<image>", "turn 1"),
        ([{"from": "human", "value": None}], 0, "<image>", "turn 1"),
        (turns("a \ud800", "b"), 0, "<image>", "turn 1; found half of a UTF-16 pair"),
        (turns("a", "b")[::-1], 0, "<image>", "found human;"),
        (turns("a", "b")[1:], 0, "<image>", "found gpt alone;"),
        (turns("a", "b", "c"), 0, "<image>", "gpt last .*found human, gpt, human"),
        (turns("a", "b") + turns("c", "d", system="s"), 0, "<image>", "found human, gpt, system, human, gpt"),
        (turns(system="s"), 0, "<image>", "found system"),
        (turns("<image> <image>", "b"), 3, "<image>", "each of 3 images.*found 2"),
        (turns("<image> <image>", "b", "<image>", "d"), 1, "<image>", "each of 1 images.*found 3"),
        (turns("a", "b", "<image>", "d"), 2, "<image>", "each of 2 images.*found 1"),
        (turns("<image>", "b"), 0, "<image>", "each of 0 images.*found 1"),
        (turns("<image>", "an <image>"), 2, "<image>", r"in questions only.*turn 2 \(assistant\)"),
        (turns("a", "b", system="<image>"), 1, "<image>", r"turn 1 \(system\)"),
        (turns("<image> <soft>", "b"), 1, "<soft>", "found '<soft>' in turn 1"),
    ],
)
def test_a_conversation_that_is_none_is_a_clear_line(conversation: Any, images: int, token: str, expected: str) -> None:
    with refused(match=expected):
        read_messages(conversation, images, token)


def test_other_names_of_the_roles() -> None:
    rows = [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]
    assert read_messages(rows, 0) == read_messages(turns("a", "b"), 0)


def test_what_becomes_of_turns_of_the_system() -> None:
    """What templates make of questions and answers, `trainer/data/test_conversations.py` tests in tokens."""
    render = load_template("vicuna_v1", llama_like())
    assert render(read_messages(turns("a", "b", system="Be brief."), 0)).text == "Be brief. USER: a ASSISTANT: b</s>"
    render = load_template("plain", llama_like())
    for conversation in (turns("a", "b", "c", "d"), turns("a", "b", system="s")):
        with pytest.raises(UserError, match="plain: expected exactly two turns"):
            render(read_messages(conversation, 0))


def test_own_may_change_an_answer() -> None:
    """As Llama 3's does: it strips each message, and the spans follow what it wrote."""
    trims = CHATML.replace("message['content']", "message['content'] | trim")
    render = load_template("own", byte_level(trims))
    assert trained(render(read_messages(turns(" a ", " b \n", "c", "d"), 0))) == ["b<|im_end|>", "d<|im_end|>"]


RETURNS = (
    "<|start|>system<|end|>{% for m in messages %}{{ '<|start|>' + m['role'] }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + ('<|return|>' if loop.last and not add_generation_prompt else '<|end|>') }}"
    "{% endgeneration %}{% else %}{{ m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
"""As GPT-OSS's: the last answer ends otherwise than earlier ones."""
NO_ENDS = "{% for m in messages %}{{ '<|start|>' + m['content'] }}{% endfor %}"
"""As GLM-4's: after an answer comes the next question's first token."""


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (RETURNS, ["b<|end|>", "d<|end|>", "f<|return|>"]),
        (
            RETURNS.replace("{% generation %}", "").replace("{% endgeneration %}", ""),
            ["b<|end|>", "d<|end|>", "f<|return|>"],
        ),
        (NO_ENDS, ["<|start|>b<|im_end|>", "<|start|>d<|im_end|>", "<|start|>f<|im_end|>"]),
    ],
    ids=["marked", "unmarked", "no ends"],
)
def test_each_answer_is_trained_with_its_own_end(template: str, expected: list[str]) -> None:
    tokenizer = byte_level(template)
    tokenizer.add_tokens(["<|start|>", "<|end|>", "<|return|>"], special_tokens=True)
    messages = read_messages(turns("a", "b", "c", "d", "e", "f"), 0)
    found = load_template("own", tokenizer)(messages)
    assert trained(found) == expected
    if template != NO_ENDS:
        assert found.text == tokenizer.apply_chat_template(messages, tokenize=False)


LATE_MARKS = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' }}{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""The marks of LLaVA-1.5's template begin behind the space that its prompt lacks."""


@pytest.mark.parametrize("template", [LATE_MARKS, chat_template(None)], ids=["late", "vicuna_v1's"])
def test_a_space_that_the_prompt_lacks_is_trained(template: str) -> None:
    """Else a tokenizer that keeps it apart before a digit would never learn to write it."""
    messages = read_messages(turns("a", "3", "b", "four"), 0)
    tokenizer = llama_like(chat_template=template)
    assert trained(load_template("own", tokenizer)(messages)) == [" 3</s>", " four</s>"]
    assert trained(load_template("vicuna_v1", tokenizer)(messages)) == [" 3</s>", " four</s>"]


THOUGHTS = CHATML.replace("message['content']", "'<think></think>' + message['content']")
IF_ANY = CHATML_MARKED.replace(
    "if message['role'] == 'assistant'", "if message['role'] != 'user' and message['content']"
)


@pytest.mark.parametrize(
    "template",
    [CHATML, THOUGHTS, CHATML_MARKED, IF_ANY, CHATML.replace("<|im_end|>", "")],
    ids=["own", "thoughts", "marked", "if any", "no ends"],
)
@pytest.mark.parametrize("empty", [[1], [3], [5], [1, 3], [3, 5]])
def test_an_empty_answer_trains_nothing(template: str, empty: list[int]) -> None:
    said = ["" if place in empty else one for place, one in enumerate("abcdef")]
    filled = load_template("own", byte_level(template))(read_messages(turns(*"abcdef"), 0))
    found = load_template("own", byte_level(template))(read_messages(turns(*said), 0))
    assert trained(found) == [one for place, one in enumerate(trained(filled)) if 2 * place + 1 not in empty]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}", "turn after turn"),
        ("{{ raise_exception('only system') }}", "cannot render this sample: only system"),
        ("{{ messages[7]['content'].x.y }}", "cannot render"),
        ("{{ 1 + messages[0]['content'] }}", "cannot render this sample: TypeError: unsupported operand"),
    ],
)
def test_a_chat_template_that_cannot_be_followed(template: str, expected: str) -> None:
    render = load_template("own", byte_level(template))
    with pytest.raises(UserError, match=expected):
        render(read_messages(turns("a", "b", "c", "d"), 0))


NO_SYSTEM = CHATML.replace("in messages %}", "in messages if message['role'] != 'system' %}")
LATE_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{% set rule = messages[0]['content'] %}{% endif %}"
    "{% for m in messages if m['role'] != 'system' %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + (rule + ' ' if loop.last and rule else '') + m['content'] + '[/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
"""As Mistral's: the system turn comes with a last question that has no answer yet."""


@pytest.mark.parametrize("template", [NO_SYSTEM, LATE_SYSTEM], ids=["Phi-3's", "Mistral's"])
def test_a_system_turn_that_the_template_leaves_out_is_refused(template: str) -> None:
    render = load_template("own", byte_level(template))
    asked = turns("What?", "A cat.", "And?", "a\n b ")
    advice = "write it into the first question, or choose vicuna_v1"
    with refused(match=f"to write a system turn; found that it leaves out 'Be brief.'; {advice}"):
        render(read_messages([*turns(system=" Be brief."), *asked], 0))
    asked[0]["value"] = "Be brief. What?"
    assert "Be brief. What?" in render(read_messages(asked, 0)).text
    if template == NO_SYSTEM:
        empty = read_messages([*turns(system=" \n"), *asked], 0)
        assert render(empty) == render(empty[1:])


@pytest.mark.parametrize("change", ["trim", "replace('/no_think', '')", "upper", "replace(' ', '')"])
def test_a_question_or_system_turn_may_be_changed(change: str) -> None:
    changed = f"(message['content'] if message['role'] == 'assistant' else message['content'] | {change})"
    tokenizer = byte_level(CHATML.replace("message['content']", changed))
    messages = read_messages(turns(" what is it? ", "3", system="be brief. /no_think\n"), 0)
    assert trained(load_template("own", tokenizer)(messages)) == ["3<|im_end|>"]


def test_a_question_that_the_template_leaves_out_is_refused() -> None:
    last = CHATML.replace("{{ '<|im_start|>'", "{% if loop.index > 2 or loop.last %}{{ '<|im_start|>'")
    last = last.replace("<|im_end|>\n' }}", "<|im_end|>\n' }}{% endif %}")
    with refused("to write each question; found that it leaves out 'What?'; correct the template"):
        load_template("own", byte_level(last))(read_messages(turns("What?", "b", "c", "d"), 0))


def test_a_tokenizer_without_what_a_template_needs() -> None:
    with pytest.raises(UserError, match="expected a tokenizer with a chat template"):
        load_template("own", byte_level(None))
    tokenizer = byte_level()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="expected a tokenizer with an EOS"):
        load_template("vicuna_v1", tokenizer)


def test_messages_are_left_as_they_are() -> None:
    messages: list[Message] = read_messages(turns("a", "b"), 0)
    before = [dict(message) for message in messages]
    for name in ("plain", "vicuna_v1", "own"):
        load_template(name, byte_level())(messages)
    assert messages == before
