"""Read LLaVA's conversations as the texts that an existing model's own processor takes."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT, Reporter
from sea_pipeline.inputs.llava_json import has_lines
from trainer.attach.families import tokens_beyond
from trainer.data.conversations import ConversationRows, kept_conversations, numbered_records, read_record
from trainer.data.files import check_conversations_file
from trainer.model.answer_ends import Spans
from trainer.model.fixed_date import with_fixed_date
from trainer.model.message_forms import ROLES, find_form
from trainer.model.prompts import Message, by_chat_template, read_messages, render_prompt, special_tokens

_VERSION = 9
"""Increase it with each change of what a row holds, so that older caches are not found any more."""

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "images": datasets.List(datasets.Value("string")),
        "text": datasets.Value("string"),
        "answer": datasets.Value("string"),
        "spans": datasets.List(datasets.List(datasets.Value("int64"))),
        "truncated": datasets.Value("bool"),
        "number": datasets.Value("int64"),
        "refused": datasets.Value("string"),
    }
)
"""The columns of the cache."""


class ChatText(NamedTuple):
    """A conversation as text for a processor, with one image token for each image."""

    text: str
    spans: Spans
    """Half-open character ranges of `text` that are trained."""
    answer: str | None = None
    """The trained text if the processor takes it apart from the prompt, as PaliGemma's does."""


class Chat:
    """Write conversations by a processor's own chat template, or by PaliGemma's prompt and answer.

    Args:
        processor: the model's.
        config: the model's configuration.
        where: the model's folder, for errors.

    Raises:
        UserError: the processor has no chat template, or one that writes no answer as it is.
    """

    def __init__(self, processor: Any, config: Any, where: Path) -> None:  # noqa: ANN401 - any of transformers
        self.processor = processor
        self.image_token_id = int(config.image_token_id)
        """The id of a visual token, which is not always that of the image token in a text."""
        self.framed = hasattr(config, "vision_start_token_id")
        """Whether the family's template writes further tokens around each image, as Qwen-VL's does."""
        self.beyond = tokens_beyond(processor.tokenizer, config)
        self.mark: str = processor.image_token
        self.in_two = type(processor).__name__ == "PaliGemmaProcessor"
        """Whether prompt and answer are given apart, with full attention among the prompt."""
        self.template = ""
        if not self.in_two:
            given = processor.chat_template or processor.tokenizer.chat_template
            given = given.get("default") if isinstance(given, dict) else given
            if not given:
                raise UserError(
                    f"{where}: expected a processor with a chat template; found none; put the family's "
                    "chat_template.jinja into the folder"
                )
            self.template = with_fixed_date(str(given))
            self.form = find_form(self.template, processor.tokenizer, self.mark)
            self._render = by_chat_template(self.template, processor.tokenizer, form=self.form)

    def __call__(self, conversations: Any, images: int) -> ChatText:  # noqa: ANN401 - whatever a data file holds
        """Write LLaVA's turns with a number of images.

        Raises:
            UserError: see `read_messages`; or the template cannot write them.
        """
        messages = self._messages(conversations, images)
        if self.in_two:
            return self._pair(messages, images)
        text, spans = self._render(messages)
        self._check_images(text, images)
        if not spans:
            raise UserError("expected an answer to train on; found none that is not empty; write one")
        return ChatText(text, spans)

    def prompt(self, conversations: Any, images: int) -> str:  # noqa: ANN401 - see `__call__`
        """Write LLaVA's turns up to the last answer, as the template does for users of the processor.

        PaliGemma has no template.

        Raises:
            UserError: see `__call__`.
        """
        messages = self._messages(conversations, images)[:-1]
        return render_prompt(messages, self.processor.tokenizer, self.template, self.form)

    def _messages(self, conversations: Any, images: int) -> list[Message]:  # noqa: ANN401 - see `__call__`
        if images and self.framed and "user" not in self.form.listed:
            raise UserError(
                "expected a chat template that takes a question with an image as a list of parts; found one that takes "
                "strings, and so leaves out the tokens around an image; take the family's own template"
            )
        return read_messages(conversations, images, self.mark)

    def _check_images(self, text: str, images: int) -> None:
        if (found := text.count(self.mark)) != images:
            raise UserError(
                f"expected {images} image tokens ({self.mark}) in the text that the chat template writes; found "
                f"{found}; take the family's own template, or correct the sample"
            )

    def _pair(self, messages: list[Message], images: int) -> ChatText:
        if [message["role"] for message in messages] != ["user", "assistant"] or not images:
            raise UserError(
                f"expected one question and one answer with an image, which is all that PaliGemma takes; found "
                f"{len(messages)} turns and {images} images; leave the sample out"
            )
        question, answer = (message["content"] for message in messages)
        if not answer:
            raise UserError("expected an answer to train on; found none that is not empty; write one")
        return ChatText(f"{self.mark * images}{question.replace(self.mark, '').strip()}", [], answer)


def read_texts(path: Path, chat: Chat, reporter: Reporter = SILENT) -> ConversationRows:
    """Write the conversations of LLaVA's JSON or JSONL as texts, or load what an earlier call cached.

    Columns: `id`; `images`, image ids as the file spells them; `text`, `answer` and `spans`, see `ChatText`;
    `truncated`, False, because what is cut depends on the images' sizes, see `without_unfit`; `number`, the record's
    place in the file, from 1. `reporter` receives progress, see `reported`.

    Raises:
        UserError: the file is not LLaVA's or holds no records.
    """
    check_conversations_file(path)
    tokenizer = chat.processor.tokenizer
    names = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    made = [_VERSION, chat.template, chat.in_two, chat.mark, names, special_tokens(tokenizer), has_lines(path)]
    if not chat.in_two and chat.form.listed != ROLES:
        made.append(sorted(chat.form.listed))  # other rows than those of earlier states, which gave lists always
    return kept_conversations(path, made, partial(_rows, path, chat), FEATURES, reporter)


def _rows(path: Path, chat: Chat) -> Iterator[dict[str, Any]]:
    for number, record in numbered_records(path):
        name, images, made = read_record(path, number, record, chat)
        (text, spans, answer), refused = (ChatText("", []), made) if isinstance(made, str) else (made, None)
        row = {"id": name, "images": images, "text": text, "answer": answer, "spans": [list(span) for span in spans]}
        yield row | {"truncated": False, "number": number, "refused": refused}
