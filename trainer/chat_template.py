"""The chat template of a model folder: the LLM's own, made to take content as a string and as a list of parts.

Harnesses differ: some give the tokenizer's template a string with `<image>` in it, others give the processor's a list
of `{"type": "image"}` and `{"type": "text", "text": ...}`. One template, saved for both, gives both the same text.
"""

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from sea_pipeline.errors import UserError
from trainer.templates import VICUNA_SYSTEM

IMAGE_TOKEN = "<image>"
"""The literal that evaluation harnesses write; another would not be replaced by image tokens."""

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
    {{- 'ASSISTANT: ' -}}{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""


def chat_template(own: str | None) -> str:
    """The template to save: `own` after a prelude that turns lists of parts into strings, images first.

    Args:
        own: the LLM's template; None stands for vicuna_v1, LLaVA-1.5's, with generation marks around each answer and
            the token that ends it.
    """
    return _STRINGS + (own or _VICUNA.replace("SYSTEM", VICUNA_SYSTEM.replace("'", "\\'")))


def turn_end(tokenizer: PreTrainedTokenizerBase, source: str) -> str | None:
    """The special token that the tokenizer's template puts after an answer, None where it puts none.

    Args:
        tokenizer: with its `chat_template` set.
        source: what to call the LLM in an error.

    Raises:
        UserError: the template cannot render one question with its answer.
    """
    answer = "an-answer"
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except TemplateError as error:
        raise UserError(
            f"{source}: its chat template cannot render a question with its answer ({error}); correct the template in "
            "the LLM's folder, or remove it to use vicuna_v1"
        ) from error
    ids = tokenizer.encode(str(text).rpartition(answer)[2], add_special_tokens=False)
    special = [str(tokenizer.convert_ids_to_tokens(token)) for token in ids if token in tokenizer.added_tokens_decoder]
    return special[0] if special else None
