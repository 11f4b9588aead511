"""Finds in which form a chat template takes the messages of each role, as a string or as a list of parts."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, TypeAlias

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from sea_pipeline.core.errors import UserError
from trainer.model.rendering import render_chat

Message: TypeAlias = dict[str, Any]
"""`role` (system, user, assistant) and `content`, a text or a list of parts, as chat templates take them."""

ROLES = frozenset(("user", "assistant", "system"))
_QUESTION, _ANSWER, _SYSTEM = "some question", "some answer", "some rule"
IMAGE_TOKEN = "<image>"
"""The mark of an image in LLaVA's data and in prompts of evaluation harnesses, and the token of our model folders."""
_UNREAD = "unread-key"
"""A key of parts that no template reads. Its name is in the text if a template prints a list instead of reading it."""
_WRONG, _RAISES = 0, -1


class Form(NamedTuple):
    """The form in which a template gets messages."""

    listed: frozenset[str] = frozenset()
    """The roles whose messages are lists of parts; those of the others are strings."""
    mark: str | None = None
    """The text that becomes a part of its own, an image; None leaves it in its text."""

    def write(self, messages: Collection[Message]) -> list[Message]:
        """Give messages this form."""
        return [
            {
                **message,
                "content": _parts(text_of(message), self.mark) if message["role"] in self.listed else text_of(message),
            }
            for message in messages
        ]


def text_of(message: Message) -> str:
    """Return the text of a message in either form."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def find_form(source: str, tokenizer: PreTrainedTokenizerBase, mark: str | None = None) -> Form:
    """Find the form in which a chat template takes messages, see `best_form`.

    Raises:
        UserError: it writes an answer as it is in no form.
    """
    form = best_form(source, tokenizer.special_tokens_map, mark)
    if form is None:
        raise UserError(
            f"expected the chat template of {tokenizer.name_or_path} to write an answer as it is, from a string or a "
            "list of parts; found that it leaves it out, changes it or prints the list; correct the template"
        )
    return form


def best_form(source: str, names: Mapping[str, Any], mark: str | None = None) -> Form | None:
    """Render a question with its answer in each form, and return the form of which a template writes most.

    If several are alike, lists are taken with a `mark`, and strings without one. That is also the form for a template
    that refuses the probe, because its own words say more of each sample.

    Args:
        source: the template.
        names: the special tokens, such as `eos_token`.
        mark: see `Form`.

    Returns:
        The form, or None if the template writes an answer as it is in none.
    """
    chat = [
        {"role": "user", "content": f"{mark or IMAGE_TOKEN}\n{_QUESTION}"},
        {"role": "assistant", "content": _ANSWER},
    ]
    both, one, none, other = map(frozenset, (("user", "assistant"), ("user",), (), ("assistant",)))
    order: list[frozenset[str]] = [both, one, none, other] if mark else [none, one, both, other]
    scores = [_score(source, names, Form(roles, mark), chat) for roles in order]
    if max(scores) == _WRONG:
        return None
    roles = order[scores.index(max(scores))]
    with_system = [{"role": "system", "content": _SYSTEM}, *chat]
    systems = [roles | {"system"}, roles] if roles else [roles, roles | {"system"}]
    return Form(max(systems, key=lambda each: _score(source, names, Form(each, mark), with_system)), mark)


def _score(source: str, names: Mapping[str, Any], form: Form, chat: list[Message]) -> int:
    """Count what a template writes of a conversation, if its answer is whole."""
    messages = form.write(chat)
    for part in (part for message in messages if message["role"] in form.listed for part in message["content"]):
        part[_UNREAD] = _UNREAD
    try:
        text, _ = render_chat(messages, source, names)
    except TemplateError:
        return _RAISES
    if _ANSWER not in text or _UNREAD in text:
        return _WRONG
    return 1 + sum(text.count(each) == 1 for each in (form.mark or IMAGE_TOKEN, _QUESTION, _SYSTEM))


def _parts(text: str, mark: str | None) -> list[dict[str, str]]:
    pieces = [text] if mark is None else text.split(mark)
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(pieces):
        if number:
            parts.append({"type": "image"})
        # LLaVA's newline after <image> is the template's affair here.
        inner = piece.strip("\n") if len(pieces) > 1 else piece
        if inner or len(pieces) == 1:
            parts.append({"type": "text", "text": inner})
    return parts
