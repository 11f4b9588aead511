"""Renders chat templates, which are programs that others wrote."""

from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from sea_pipeline.core.errors import one_line
from trainer.model.answer_ends import Spans


def render_chat(
    messages: list[dict[str, Any]],
    template: str,
    names: Mapping[str, Any],
    *,
    prompt: bool = False,
    marks: bool = False,
) -> tuple[str, Spans]:
    """Render a conversation.

    Args:
        messages: as chat templates take them.
        template: the source.
        names: the special tokens, such as `eos_token`.
        prompt: whether an answer is to follow.
        marks: whether to find the answers that the template marks.

    Returns:
        The text, and the half-open character ranges of marked answers.

    Raises:
        TemplateError: the template refuses the conversation, or fails in any other way.
    """
    try:
        rendered: Any = render_jinja_template(
            [messages],
            chat_template=template,
            return_assistant_tokens_mask=marks,
            add_generation_prompt=prompt,
            **names,
        )
    except TemplateError:
        raise
    except Exception as error:  # as of any program
        raise TemplateError(f"{type(error).__name__}: {one_line(error)}") from error
    (text,), spans = rendered
    return str(text), spans[0] if marks else []
