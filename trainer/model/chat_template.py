"""Makes the chat template of a model folder from the LLM's own, for content as a string and as a list of parts.

Harnesses differ. Some give the tokenizer's template a string with `<image>` in it, others give the processor's a list
of `{"type": "image"}` and `{"type": "text", "text": ...}`. One template, saved for both, gives them the same text.
"""

import json
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from sea_pipeline.core.errors import UserError, one_line
from trainer.model.message_forms import IMAGE_TOKEN, ROLES, best_form
from trainer.model.prompts import GENERATION, VICUNA_SYSTEM, by_chat_template, front
from trainer.model.rendering import render_chat

BOS_FIRST = "{{- bos_token -}}"
"""The prelude of a template that does not write a BOS."""

_BOS = "<s>"
_EOS = "</s>"
_NAMES = {"bos_token": _BOS, "eos_token": _EOS}
_WITHOUT_EOS = "{%- set eos_token = '' -%}"
_EXAMPLE_QUESTION = "some-question"
_TURNS = [("user", _EXAMPLE_QUESTION), ("assistant", "an answer\n"), ("user", " another\n"), ("assistant", "x")]
_CHAT = [{"role": role, "content": text} for role, text in _TURNS]
_ANSWERS = [text for role, text in _TURNS if role == "assistant"]
_CHATS = ((_CHAT, False), (_CHAT[:3], True), ([{"role": "system", "content": "be brief"}, *_CHAT[:2]], False))
"""Conversations that a changed template must render as before."""

_STRINGS = """\
{%- set strings = namespace(messages=[]) -%}
{%- for message in messages -%}
  {%- if message['content'] is defined and message['content'] is not none and message['content'] is not string -%}
    {%- set content = namespace(images='', text='') -%}
    {%- for part in message['content'] -%}
      {%- if part['type'] == 'image' -%}
        {%- set content.images = content.images + '<image>\\n' -%}
      {%- elif part['type'] == 'text' -%}
        {%- set content.text = content.text + part['text'] -%}
      {%- endif -%}
    {%- endfor -%}
    {%- set strings.messages = strings.messages + [dict(message, content=content.images + content.text)] -%}
  {%- else -%}
    {%- set strings.messages = strings.messages + [message] -%}
  {%- endif -%}
{%- endfor -%}
{%- set messages = strings.messages -%}
"""

_PARTS = """\
{%- set listed = namespace(messages=[]) -%}
{%- for message in messages -%}
  {%- if message['content'] is stringOF_ROLES -%}
    {%- set text = message['content'].replace('<image>\\n', '').replace('<image>', '') -%}
    {%- set content = namespace(parts=[]) -%}
    {%- for _ in range(message['content'].count('<image>')) -%}
      {%- set content.parts = content.parts + [dict(type='image')] -%}
    {%- endfor -%}
    {%- set content.parts = content.parts + [dict(type='text', text=text)] -%}
    {%- set listed.messages = listed.messages + [dict(message, content=content.parts)] -%}
  {%- else -%}
    {%- set listed.messages = listed.messages + [message] -%}
  {%- endif -%}
{%- endfor -%}
{%- set messages = listed.messages -%}
"""

_ONE_PART = """\
{%- set listed = namespace(messages=[]) -%}
{%- for message in messages -%}
  {%- set parts = [dict(type='text', text=message['content'])] -%}
  {%- set listed.messages = listed.messages + [dict(message, content=parts)OF_ROLES] -%}
{%- endfor -%}
{%- set messages = listed.messages -%}
"""
"""The prelude of a template that takes lists alone, behind `_STRINGS`. Images stay in the text."""

_ENDED = """\
{%- set ended = namespace(messages=[]) -%}
{%- for message in messages -%}
  {%- set text = message['content'].rstrip() if message['content'] is string else '' -%}
  {%- if message['role'] == 'assistant' and text and not text.endswith(eos_token) -%}
    {%- set after = message['content'][text | length:].lstrip(' ') -%}
    {%- set ended.messages = ended.messages + [dict(message, content=text + eos_token + after)] -%}
  {%- else -%}
    {%- set ended.messages = ended.messages + [message] -%}
  {%- endif -%}
{%- endfor -%}
{%- set messages = ended.messages -%}
"""
"""The prelude of a template that ends no turn, behind `_STRINGS`. It puts an EOS where `answer_ends` does."""

_AS_TRAINED = """\
{%- if add_generation_prompt -%}
  {%- macro prompt() -%}OWN{%- endmacro -%}
  {%- set whole = prompt() -%}
  {{- whole[:-LENGTH]INSTEAD if whole.endswith(BEYOND) else whole -}}
{%- else -%}OWN{%- endif -%}
"""
"""The frame of a template whose prompt writes otherwise than what comes before an answer."""

_MARKS = """\
{%- macro rendered(messages, add_generation_prompt) -%}OWN{%- endmacro -%}
{%- set whole = rendered(messages, add_generation_prompt) -%}
{%- set done = namespace(end=0) -%}
{%- for message in messages -%}
  {%- if message['role'] == 'assistant' -%}
    {%- set start = [done.end, rendered(messages[:loop.index0], true) | length] | max -%}
    {%- set end = rendered(messages[:loop.index], false).rstrip() | length -%}
    {{- whole[done.end:start] -}}{%- generation -%}{{- whole[start:end] -}}{%- endgeneration -%}
    {%- set done.end = [start, end] | max -%}
  {%- endif -%}
{%- endfor -%}
{{- whole[done.end:] -}}
"""
"""The frame of a template that does not mark its answers. It renders up to each answer and through it to find it."""

_VICUNA = """\
{%- if messages[0]['role'] == 'system' -%}
  {{- messages[0]['content'] + ' ' -}}
  {%- set messages = messages[1:] -%}
{%- else -%}
  {{- 'SYSTEM ' -}}
{%- endif -%}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}
    {{- 'USER: ' + message['content'] + ' ' -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- 'ASSISTANT:' -}}{%- generation -%}{{- ' ' + message['content'] + eos_token -}}{%- endgeneration -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""


def chat_template(own: str | None) -> str:
    """Make the template to save, with a prelude that turns lists of parts into strings.

    Images go first.

    Args:
        own: the LLM's template; None takes vicuna_v1, LLaVA-1.5's, with generation marks around each answer and the
            token that ends it. One that takes lists alone gets its texts as lists.
    """
    if own is None:
        return _STRINGS + _VICUNA.replace("SYSTEM", VICUNA_SYSTEM.replace("'", "\\'"))
    if roles := _roles_of_lists(own):
        return _STRINGS + _ONE_PART.replace("OF_ROLES", f" if message['role'] in {roles} else message") + own
    one_part = _ONE_PART.replace("OF_ROLES", "")
    listed = _question(own, _EXAMPLE_QUESTION) is None and _question(one_part + own, _EXAMPLE_QUESTION) is not None
    return _STRINGS + (one_part if listed else "") + own


def default_template(said: str | dict[str, str] | None, source: str) -> str | None:
    """Return a tokenizer's template, of several the one named default.

    Args:
        said: the tokenizer's `chat_template`.
        source: the folder's name in an error.

    Raises:
        UserError: none of several has that name.
    """
    if not isinstance(said, dict) or "default" in said:
        return said["default"] if isinstance(said, dict) else said
    raise UserError(
        f"{source}: expected a chat template named default; found {', '.join(sorted(said))}; give the one to "
        "train with that name, or remove them to use vicuna_v1"
    )


def both_forms(own: str) -> str:
    """Make a template take content as a string and as a list of parts.

    Args:
        own: takes either form or both; those of LLaVA folders on the hub take lists alone. In a string, the images go
            to its front.
    """
    if roles := _roles_of_lists(own):
        return _STRINGS + _PARTS.replace("OF_ROLES", f" and message['role'] in {roles}") + own
    string = _question(own, f"{IMAGE_TOKEN}\n{_EXAMPLE_QUESTION}")
    if string is None:
        return _PARTS.replace("OF_ROLES", "") + own
    both = string == _question(own, [{"type": "image"}, {"type": "text", "text": _EXAMPLE_QUESTION}])
    return own if both else _STRINGS + own


def _roles_of_lists(own: str) -> list[str]:
    """List the roles whose messages a template takes as lists alone, if it takes other roles' as strings alone."""
    form = best_form(own, _NAMES)
    return sorted(form.listed) if form and form.listed != ROLES else []


def with_marks(own: str) -> str:
    """Add `{% generation %}` around each answer and the token that ends it, without changing the text.

    A template that has such marks is returned as it is. So is one whose answers cannot be found this way, because a
    later turn changes what was written before it. What the template refuses, such as a system turn, it still refuses.
    """
    if GENERATION.search(own):
        return own
    marked = _MARKS.replace("OWN", own.removesuffix("\n"))
    try:
        same = all(_text(marked, *chat) == _text(own, *chat) for chat in _CHATS)
        _, answers = _rendered(marked, _CHAT, False, marks=True)
    except TemplateError:
        return own
    found = [answer.strip().startswith(text.strip()) for answer, text in zip(answers, _ANSWERS, strict=True)]
    ends = [answer.strip().removeprefix(text.strip()).strip() for answer, text in zip(answers, _ANSWERS, strict=True)]
    return marked if same and all(found) and len(set(ends)) == 1 else own


def without_final_eos(own: str) -> str:
    """Remove the EOS that a template writes after a finished conversation, as Phi-3's does.

    That EOS belongs to no turn. With it, the text of a conversation does not begin with the text of its first turns.
    """
    bare = _WITHOUT_EOS + own
    whole, cut = (_text(template, _CHAT, False) for template in (own, bare))
    final = whole is not None and cut is not None and whole.startswith(cut) and whole[len(cut) :].strip() == _EOS
    return bare if final and _text(own, _CHAT[:3], True) == _text(bare, _CHAT[:3], True) else own


def with_prompt_as_trained(own: str) -> str:
    """Make a template's prompt the beginning of a row, and so leave out an open thought.

    Rows have no thoughts. DeepSeek-R1's prompt opens one, and GLM-4.7's does where a row closes it.
    """
    prompt, row = _text(own, _CHAT[:1], True) or "", _text(own, _CHAT[:2], False) or ""
    before = row.rpartition(_ANSWERS[0].strip())[0]
    cut = len(before if prompt.startswith(before) else _text(own, _CHAT[:1], False) or prompt)
    beyond, instead = prompt[cut:], before[cut:]
    if not before or before.startswith(prompt) or not beyond.strip():
        return own
    framed = _AS_TRAINED.replace("LENGTH", str(len(beyond))).replace("BEYOND", _literal(beyond))
    framed = framed.replace("INSTEAD", f" + {_literal(instead)}" if instead else "")
    framed = framed.replace("OWN", own.removesuffix("\n"))
    same = all(_text(framed, chat, prompt) == _text(own, chat, prompt) for chat, prompt in _CHATS if not prompt)
    return framed if same and _text(framed, _CHAT[:1], True) == before else own


def with_ends_as_trained(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the tokenizer's template with the EOS that a row has after each answer, if it ends no turn itself.

    Without it prompts of a second turn would lack that EOS. A template that ends earlier turns alone, or of which rows
    would change, is returned as it is.
    """
    own = str(tokenizer.chat_template)
    ended = _STRINGS + _ENDED + own.removeprefix(_STRINGS)
    try:
        row, new = (by_chat_template(each, tokenizer)(_CHAT) for each in (own, ended))
        prompts = [render_chat(_CHAT[:3], each, tokenizer.special_tokens_map, prompt=True)[0] for each in (own, ended)]
    except (TemplateError, UserError):
        return own
    before, after = (row.text.startswith(prompt) for prompt in prompts)
    return ended if after and not before and row == new else own


def with_own_eos(own: str, eos: str) -> str:
    """Make a template write `eos` whatever the tokenizer's is.

    A template that writes no EOS is returned unchanged.
    """
    writes = _text(own, _CHAT, False) != _text(_WITHOUT_EOS + own, _CHAT, False)
    return f"{{%- set eos_token = {_literal(eos)} -%}}{own}" if writes else own


def with_bos(own: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Make a template begin as training does, with the BOS that the tokenizer adds before a text.

    Readers tokenise a template's text without adding anything. A template that writes a BOS is returned as it is.
    """
    if not adds_bos(tokenizer) or writes_bos(own):
        return own
    return f"{BOS_FIRST}{own}"


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the tokenizer adds a BOS before a text."""
    return tokenizer.bos_token_id is not None and front(tokenizer) == [tokenizer.bos_token_id]


def writes_bos(own: str) -> bool:
    """Tell whether the text of a template begins with a BOS."""
    return (_text(own, _CHAT, False) or "").startswith(_BOS)


def _literal(text: str) -> str:
    """Write a text as a literal of Jinja, which does not join JSON's escapes of one letter in two parts."""
    return json.dumps(text, ensure_ascii=False)


def _question(template: str, content: Any) -> str | None:  # noqa: ANN401 - as a template takes it
    """Render a question, or return None if it is lost or cannot be written."""
    try:
        text, _ = _rendered(template, [{"role": "user", "content": content}], True)
    except TemplateError:
        return None
    return text if _EXAMPLE_QUESTION in text else None


def _text(template: str, messages: list[dict[str, Any]], prompt: bool) -> str | None:
    """Render a conversation, or return None if the template refuses it."""
    try:
        return _rendered(template, messages, prompt)[0]
    except TemplateError:
        return None


def _rendered(
    template: str, messages: list[dict[str, Any]], prompt: bool, *, marks: bool = False
) -> tuple[str, list[str]]:
    """Render a conversation, and with `marks` return its marked parts."""
    text, spans = render_chat(messages, template, _NAMES, prompt=prompt, marks=marks)
    return text, [text[start:end] for start, end in spans]


def turn_end(tokenizer: PreTrainedTokenizerBase, source: str) -> str | None:
    """Return the special token that the tokenizer's template puts after an answer, or None.

    Args:
        tokenizer: with its `chat_template` set.
        source: the LLM's name in an error.

    Raises:
        UserError: the template cannot render one question with its answer.
    """
    question, answer = f"{IMAGE_TOKEN}\n{_EXAMPLE_QUESTION}", "an-answer"
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    advice = "correct the template in the LLM's folder, or remove it to use vicuna_v1"
    try:
        text, _ = render_chat(messages, str(tokenizer.chat_template), tokenizer.special_tokens_map)
    except TemplateError as error:
        raise UserError(
            f"{source}: its chat template cannot render a question with its answer ({one_line(error)}); {advice}"
        ) from error
    # Templates of whole models write an image their own way, as <image> without a newline or as [IMG]<image>[/IMG].
    if not all(part in text for part in (IMAGE_TOKEN, _EXAMPLE_QUESTION, answer)):
        raise UserError(f"{source}: its chat template does not write a question and its answer as they are; {advice}")
    ids = tokenizer.encode(text.rpartition(answer)[2], add_special_tokens=False)
    special = [str(tokenizer.convert_ids_to_tokens(token)) for token in ids if token in tokenizer.added_tokens_decoder]
    return special[0] if special else None
