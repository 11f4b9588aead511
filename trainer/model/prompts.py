"""Renders a conversation as the text that a model reads, and finds the characters of it that are trained.

The spans come from the template itself, never from tokenising pieces again. LLaVA finds them by tokenising, and drops a
sample silently if a tokenizer disagrees with itself.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.inputs.llava_json import shown
from trainer.model.answer_ends import Spans, with_ends
from trainer.model.fixed_date import with_fixed_date
from trainer.model.lost_text import check_answers, check_other_turns
from trainer.model.message_forms import IMAGE_TOKEN, Form, find_form, text_of
from trainer.model.message_forms import Message as Message
from trainer.model.rendering import render_chat
from trainer.recipes.options import TemplateName as TemplateName

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
NO_ANSWER = "expected an answer to train on; found none that is not empty; write one, or remove the sample"
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system"}
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class RenderedText(NamedTuple):
    """A conversation as text, without a BOS that the tokenizer adds by itself."""

    text: str
    spans: Spans
    """Half-open character ranges of `text` that are trained, ascending."""


Template: TypeAlias = Callable[[list[Message]], RenderedText]


def read_messages(conversations: Any, images: int, image_token: str = IMAGE_TOKEN) -> list[Message]:  # noqa: ANN401
    """Convert LLaVA's turns to messages with `image_token` at the place of each image.

    A message with one `<image>` gets it at its front, with a newline after it, as in LLaVA. Several stay where they
    are, if there are as many images. If there is one image for each such message, they become one, as in LLaVA. Images
    without any `<image>` go to the front of the first question. As in LLaVA, an answer before that is left out.

    Args:
        conversations: the field of that name: a list of {"from": human | gpt | system, "value": text}.
        images: how many images the sample has.
        image_token: the tokenizer's name for an image.

    Raises:
        UserError: these are not turns of human and gpt in alternation after an optional system turn; the numbers of
            `<image>` and of images do not agree; or an image token is in an answer, or has another name than `<image>`.
    """
    messages = [_message(turn, number) for number, turn in enumerate(_turns(conversations), start=1)]
    first = int(messages[0]["role"] == "system")
    if [message["role"] for message in messages[first : first + 1]] == ["assistant"]:
        del messages[first]  # LLaVA leaves out an answer without a question, too
    _check_order([message["role"] for message in messages])
    for number, message in enumerate(messages, start=1):
        for token in {IMAGE_TOKEN, image_token}:
            if token in message["content"] and (message["role"] != "user" or token != IMAGE_TOKEN):
                raise UserError(
                    f"expected {IMAGE_TOKEN} in questions only, where an image goes; found {token!r} in turn {number} "
                    f"({message['role']}); remove it there"
                )
    questions = [message for message in messages if message["role"] == "user"]
    written = [message["content"].count(IMAGE_TOKEN) for message in questions]
    found = sum(written)
    fused = found != images == sum(map(bool, written))
    if images and not found:
        questions[0]["content"] = f"{IMAGE_TOKEN * images}\n{questions[0]['content'].strip()}".strip()
    elif found != images and not fused:
        raise UserError(
            f"expected one {IMAGE_TOKEN} in the questions for each of {images} images, or none at all; found {found}; "
            "make them agree"
        )
    for message in questions:
        text = message["content"]
        if text.count(IMAGE_TOKEN) == 1 or (fused and IMAGE_TOKEN in text):
            text = f"{IMAGE_TOKEN}\n{text.replace(IMAGE_TOKEN, '').strip()}".strip()
        message["content"] = text.replace(IMAGE_TOKEN, image_token)
    return messages


def _turns(conversations: Any) -> list[Any]:  # noqa: ANN401 - whatever a data file holds
    if not isinstance(conversations, list) or not conversations:
        raise UserError(f"expected 'conversations' to be a list of turns; found {shown(conversations)}")
    return conversations


def _message(turn: Any, number: int) -> Message:  # noqa: ANN401 - whatever a data file holds
    text = turn.get("value") if isinstance(turn, dict) else None
    role = turn.get("from") if isinstance(turn, dict) else None
    if not isinstance(text, str) or not isinstance(role, str) or role not in _ROLES:
        raise UserError(
            f"expected turn {number} to be an object with 'from' (human, gpt or system) and 'value' (text); "
            f"found {shown(turn)}"
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"expected text in turn {number}; found half of a UTF-16 pair in it; remove it") from None
    return {"role": _ROLES[role], "content": text}


def _check_order(roles: list[str]) -> None:
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or len(turns) % 2 or any(role != ("user", "assistant")[i % 2] for i, role in enumerate(turns)):
        found = ", ".join(_SPEAKERS[role] for role in roles[:8]) + ", ..." * (len(roles) > 8) or "gpt alone"
        raise UserError(
            "expected turns by human and gpt in alternation, a human first and gpt last (before them at most one "
            f"system turn); found {found}; mend or remove the sample"
        )


def load_template(name: TemplateName, tokenizer: PreTrainedTokenizerBase) -> Template:
    """Return the function that renders messages.

    `plain` is LLaVA's first stage: images, caption, newline. The question is dropped, caption and newline are trained,
    and there is no EOS. `vicuna_v1` is its second: `<system> USER: Q ASSISTANT: A</s>USER: ...` with the tokenizer's
    EOS for `</s>`. The text after each `ASSISTANT:` is trained, EOS included. As in LLaVA, an empty message is `USER:`
    or `ASSISTANT:` alone, with no space or EOS after it, and an empty answer trains nothing. `own` is the tokenizer's
    chat template. The text that its `{% generation %}` marks is trained, or each answer, from where the template's
    prompt ends up to the token that ends the turn. If the template writes no such token, the text gets an EOS there.
    An empty answer trains nothing here, too.

    Raises:
        UserError: the tokenizer has no EOS (`vicuna_v1`) or no chat template (`own`). The function raises it for
            messages that the template cannot render, or whose answers are all empty.
    """
    if name == "plain":
        return _plain
    if name == "vicuna_v1":
        eos = tokenizer.eos_token
        if not isinstance(eos, str):
            raise UserError(f"template vicuna_v1: expected a tokenizer with an EOS; {tokenizer.name_or_path} has none")
        return lambda messages: _vicuna(messages, eos)
    source = chat_template(tokenizer)
    if source is None:
        raise UserError(
            f"template own: expected a tokenizer with a chat template; {tokenizer.name_or_path} has none; choose plain "
            "or vicuna_v1, or set tokenizer.chat_template"
        )
    return by_chat_template(with_fixed_date(source), tokenizer, otherwise=", or choose vicuna_v1")


def load_prompt(name: TemplateName, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[Message]], str]:
    """Return the function that writes messages up to an answer that is to follow, as processors write prompts.

    Raises:
        UserError: see `load_template`.
    """
    if name == "own":
        load_template(name, tokenizer)  # only for its checks
        source = with_fixed_date(str(chat_template(tokenizer)))
        form = find_form(source, tokenizer)
        return lambda messages: render_prompt(messages, tokenizer, source, form)
    render = load_template(name, tokenizer)
    return lambda messages: render([*messages, {"role": "assistant", "content": ""}]).text


def render_prompt(messages: list[Message], tokenizer: PreTrainedTokenizerBase, source: str, form: Form) -> str:
    """Write messages by a chat template up to an answer that is to follow.

    Raises:
        UserError: the template cannot write them.
    """
    return _render(tokenizer, source, form.write(messages), prompt=True)[0]


def by_chat_template(
    source: str, tokenizer: PreTrainedTokenizerBase, *, otherwise: str = "", form: Form | None = None
) -> Template:
    """Return the function that renders messages by a chat template, see `own` of `load_template`.

    Args:
        source: the template.
        tokenizer: gives the names of special tokens.
        otherwise: the end of the advice if the answers cannot be told from the rest.
        form: in which the template takes messages; None finds it for texts with images in them.

    Raises:
        UserError: see `find_form`. The function raises it, see `load_template`; or if the template leaves out a
            system turn, a question or what an answer says, apart from white space and a thought before the rest.
    """
    name, special = tokenizer.name_or_path, special_tokens(tokenizer)
    marked = GENERATION.search(source) is not None
    taken, write = form or find_form(source, tokenizer), partial(_render, tokenizer, source)

    def render(given: list[Message]) -> RenderedText:
        messages = taken.write(given)
        if not any(text_of(message).strip() for message in messages if message["role"] == "assistant"):
            raise UserError(NO_ANSWER)
        text, marks = write(messages, marks=marked)
        check_other_turns(messages, text, lambda other: write(other)[0], name, otherwise)
        spans = _marked(messages, text, marks, write) if marked else _by_prefix(messages, text, write)
        if spans is None:
            raise UserError(
                f"template own: expected the chat template of {name} to write a conversation turn after turn, or to "
                "mark its answers with {% generation %}; found that later turns change earlier text; mark "
                f"them{otherwise}"
            )
        answers = [text_of(message).strip() for message in messages if message["role"] == "assistant"]
        first = next(index for index, message in enumerate(messages) if message["role"] == "assistant")
        asked = write(messages[:first])[0] if len(answers) > 1 else ""
        rendered = RenderedText(*with_ends(text, spans, answers, asked, special, tokenizer.eos_token))
        check_answers(*rendered, answers, name)
        return rendered

    return render


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the tokenizer's chat template as text, or None."""
    try:
        return str(tokenizer.get_chat_template())
    except ValueError:
        return None


def front(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that the tokenizer puts before a text by itself.

    They are BOS, or none.
    """
    whole, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    starts = [start for start in range(len(whole)) if whole[start : start + len(bare)] == bare]
    return list(whole[: starts[0]]) if starts else []


def _plain(messages: list[Message]) -> RenderedText:
    if [message["role"] for message in messages] != ["user", "assistant"]:
        raise UserError(
            f"template plain: expected exactly two turns, human and gpt; found {len(messages)}; choose another template"
        )
    images = IMAGE_TOKEN * messages[0]["content"].count(IMAGE_TOKEN)
    text = f"{images}{messages[1]['content']}\n"
    return RenderedText(text, [(len(images), len(text))])


def _vicuna(messages: list[Message], eos: str) -> RenderedText:
    system = VICUNA_SYSTEM
    if messages[0]["role"] == "system":
        system, messages = messages[0]["content"], messages[1:]
    text, spans = f"{system} ", []
    for question, answer in zip(messages[::2], messages[1::2], strict=True):
        text += f"USER: {question['content']} ASSISTANT:" if question["content"] else "USER:ASSISTANT:"
        if answer["content"]:
            start = len(text)  # before the space: a tokenizer that keeps it apart must learn it too
            text += f" {answer['content']}{eos}"
            spans.append((start, len(text)))
    return RenderedText(text, spans)


def _render(
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    messages: list[Message],
    *,
    prompt: bool = False,
    marks: bool = False,
) -> tuple[str, Spans]:
    """Render messages by the chat template `source`, see `render_chat`."""
    try:
        return render_chat(messages, source, tokenizer.special_tokens_map, prompt=prompt, marks=marks)
    except TemplateError as error:
        reason = one_line(error)
        raise UserError(f"the chat template of {tokenizer.name_or_path} cannot render this sample: {reason}") from error


_Write = Callable[..., tuple[str, Spans]]
"""`_render` with a tokenizer and a template."""


def _marked(messages: list[Message], text: str, marks: Spans, write: _Write) -> Spans:
    """Take what a template marks, from where the prompt ends.

    SmolLM3's marks begin before the header of the answer, LLaVA-1.5's often behind the space that precedes it. A
    tokenizer that keeps that space apart, as Llama's does before a digit, must learn it too.
    """
    spans: Spans = []
    for start, end in marks:
        joined = spans.pop()[0] if spans and spans[-1][1] == start else start
        spans.append((joined, end))
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, _ = write(messages[:index], prompt=True)
        whole = text.startswith(before)
        begin = len(before) if whole else alike(text, before)
        moved = [start < begin <= end or (whole and text[begin:start].isspace()) for start, end in spans]
        if not any(moved):
            break  # the marks begin where prompts end, in each turn
        if not whole and (found := _by_difference(text, messages, index, write)):
            begin = min(begin, found[0])
        spans = [
            (begin if move and (whole or start < begin) else start, end)
            for move, (start, end) in zip(moved, spans, strict=True)
        ]
    spans = [(start, end) for start, end in spans if end > start]
    return _without_empty(text, spans, messages, write)


def _without_empty(text: str, spans: Spans, messages: list[Message], write: _Write) -> Spans:
    """Leave out what is marked of empty answers, such as their ends, which would be trained alone."""
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    said = [bool(text_of(messages[index]).strip()) for index in answers]
    if all(said):
        return spans
    begins = [alike(text, write(messages[:index], prompt=True)[0]) for index in answers]
    return [(start, end) for start, end in spans if said[bisect_left(begins, end) - 1]]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the texts of the special tokens, the longest first."""
    found = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(sorted(found | set(tokenizer.all_special_tokens), key=lambda token: (-len(token), token)))


def _by_prefix(messages: list[Message], text: str, write: _Write) -> Spans | None:
    """Find each answer that is not empty between the text up to it and the text through it; None if one is not there.

    A template may write an answer otherwise once another turn follows, as Qwen3's does, which puts an empty thought
    before the last one alone. Then the end of the answer is found by writing another in its place, and so is its start
    if the prompt goes on with more than the template writes before this answer, as Qwen3-VL-Thinking's open thought.
    """
    spans = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant" and text_of(message).strip():
            before, _ = write(messages[:index], prompt=True)
            through, _ = write(messages[: index + 1])
            if through.startswith(before) and text.startswith(through):
                spans.append((len(before), len(before) + len(through[len(before) :].rstrip())))
                continue
            found = _by_difference(text, messages, index, write)
            start = _begin(text, before, messages[:index], write, found[0]) if found else None
            if found is None or start is None:
                return None
            spans.append((start, found[1]))
    return spans


def _begin(text: str, before: str, earlier: list[Message], write: _Write, own: int) -> int | None:
    """Return where the trained part of an answer begins whose letters begin at `own`, or None if nothing agrees.

    It is the end of the prompt, or `own` if the text has only the earlier turns in common with the prompt.
    """
    if text.startswith(before) and len(before) <= own:
        return len(before)
    turns, _ = write(earlier)
    return own if text.startswith(turns) and len(turns) <= own else None


def alike(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Count the characters, or tokens, that two texts have in common at their beginning."""
    pairs = zip(one, other, strict=False)
    return next((number for number, (mine, theirs) in enumerate(pairs) if mine != theirs), min(len(one), len(other)))


def _by_difference(text: str, messages: list[Message], index: int, write: _Write) -> tuple[int, int] | None:
    """Find the characters of an answer by what changes if another answer is in its place."""
    content = messages[index]["content"]
    if not (bare := text_of(messages[index]).strip()):
        return None
    other = "".join(next(one for one in "ab" if one != edge) for edge in (bare[0], bare[-1]))
    instead = other if isinstance(content, str) else [{"type": "text", "text": other}]
    changed = [*messages[:index], {**messages[index], "content": instead}, *messages[index + 1 :]]
    varied, _ = write(changed)
    start, end = alike(text, varied), len(text) - alike(text[::-1], varied[::-1])
    if text[start:end].strip() != bare:
        return None
    return start, end
