"""Find what a chat template leaves out of a conversation, so that nothing is lost without a word."""

import re
from collections.abc import Callable
from itertools import chain

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.llava_json import shown
from trainer.model.answer_ends import Spans
from trainer.model.message_forms import Message, text_of


def check_other_turns(
    messages: list[Message], text: str, render: Callable[[list[Message]], str], name: str, otherwise: str
) -> None:
    """Refuse a system turn or a question that a template leaves out.

    It is left out if another text in its place changes nothing. A template may change what it writes, as SmolLM3's
    takes `/no_think` out of a system turn.

    Args:
        messages: the conversation in the template's form.
        text: what the template writes of it.
        render: the template.
        name: the tokenizer's, for the message.
        otherwise: the end of the advice.

    Raises:
        UserError: names the text.
    """
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            continue
        content = message["content"]
        parts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
        if all(part.strip() in text for part in parts):
            continue
        if render([*messages[:index], _changed(message), *messages[index + 1 :]]) == text:
            turn, advice = "each question", "correct the template"
            if message["role"] == "system":
                turn, advice = "a system turn", f"write it into the first question{otherwise}"
            raise UserError(
                f"expected the chat template of {name} to write {turn}; found that it leaves out "
                f"{shown(text_of(message).strip())}; {advice}"
            )


def _changed(message: Message) -> Message:
    """Return a message that says something else and shows the same images."""
    other, content = "b" if text_of(message).strip() == "a" else "a", message["content"]
    if isinstance(content, str):
        return message | {"content": other}
    return message | {"content": [part | {"text": other} if "text" in part else part for part in content]}


def check_answers(text: str, spans: Spans, answers: list[str], name: str) -> None:
    """Refuse an answer of which the trained text lacks something, unless no text is trained.

    White space does not count. Neither does what precedes a tag in the answer, because templates drop thoughts.

    Raises:
        UserError: names the answer.
    """
    trained, done = "".join("".join(text[start:end].split()) for start, end in spans), 0
    for answer in filter(None, answers if trained else ()):
        cuts = chain([0], (tag.end() for tag in re.finditer(r"[>\]]", answer)))
        rests = ("".join(answer[cut:].split()) for cut in cuts)
        rest = next((each for each in rests if each and each in trained[done:]), None)
        if rest is None:
            raise UserError(
                f"expected the chat template of {name} to write each answer; found that it leaves out text of "
                f"{shown(answer)}; correct the template, or remove the sample"
            )
        done = trained.index(rest, done) + len(rest)
