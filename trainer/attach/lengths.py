"""Find, before a run, the rows that an existing model's processor refuses or that `max_length` would cut too short.

How many tokens a row has is decided by its images' sizes and its text, so no image is read whole.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset as Rows
from PIL import Image

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT, Reporter, progress_if_slow
from sea_pipeline.inputs.llava_json import shown
from sea_pipeline.inputs.pixels import BadImageError, upright_size
from sea_pipeline.labels.store import LabelStore
from trainer.attach.batches import adds_special_tokens, cut_too_short, within
from trainer.attach.expansions import Expansion, Expansions
from trainer.attach.rows import Chat
from trainer.attach.tiles import Size
from trainer.data.bad_rows import BadRow
from trainer.data.run_rows import Conversations, without_bad
from trainer.recipes.recipe import Data

_BATCH = 1000
_COLUMNS = ["number", "id", "images", "text", "answer", "spans"]
_DOT = Image.new("RGB", (1, 1))


def without_unfit(
    conversations: Conversations,
    data: Data,
    chat: Chat,
    store: LabelStore | None,
    *,
    max_length: int | None,
    reporter: Reporter = SILENT,
) -> Conversations:
    """Drop the rows that the processor refuses, and those to train on that `max_length` would cut too short.

    Too short is without some of the images, or without the beginning of an answer. The rows that are cut, but not too
    short, are counted in `cut`.

    Args:
        conversations: what is to be read.
        data: the recipe's data settings.
        chat: the model's.
        store: the labels, which know the sizes of their images; the headers of other images are read.
        max_length: the most tokens of a row to train on; None cuts nothing. Rows held out are never cut.
        reporter: receives a line and progress, if it takes more than some seconds.

    Raises:
        UserError: there are such rows that are not to be left out, or no other rows are left.
    """
    lengths = RowLengths(chat, conversations.locate, store, reporter)
    found = without_bad(
        conversations, data, lambda rows: lengths.unfit(rows, max_length), lambda rows: lengths.unfit(rows, None)
    )
    return replace(found, cut=lengths.cut)


class RowLengths:
    """Compute rows' numbers of tokens from the sizes of their images.

    Args:
        chat: the model's.
        locate: returns the file of an image id.
        store: see `without_unfit`.
        reporter: see `without_unfit`.
    """

    def __init__(
        self, chat: Chat, locate: Callable[[str], Path], store: LabelStore | None, reporter: Reporter = SILENT
    ) -> None:
        self.cut = 0
        """Rows found so far that are cut, but not too short."""
        self._chat, self._locate, self._reporter = chat, locate, reporter
        self._sizes: dict[str, Size | BadImageError] = {} if store is None else {**store.sizes()}
        self._expansions = Expansions(chat)

    def unfit(self, rows: Rows, max_length: int | None) -> list[BadRow]:
        """List the rows that cannot be trained, and count those that are only cut; None as `max_length` cuts none."""
        self._find(rows)
        bad = []
        with progress_if_slow(self._reporter, "numbers of tokens of rows", len(rows)) as advance:
            for batch in rows.select_columns(_COLUMNS).iter(_BATCH):
                fitting = []
                for values in zip(*batch.values(), strict=True):
                    row = dict(zip(batch, values, strict=True))
                    try:
                        fitting.append((row, self._expanded(row["images"])))
                    except UserError as error:
                        bad.append(BadRow(row["number"], row["id"], str(error)))
                if self._chat.beyond and fitting:
                    bad += self._pop_without_embedding(fitting)
                if max_length is not None and fitting:
                    bad += self._too_long(fitting, max_length)
                advance(len(batch["number"]))
        return bad

    def _find(self, rows: Rows) -> None:
        """Find the sizes of all images of rows, and what their image tokens become."""
        batches = rows.select_columns(["images"]).iter(_BATCH)
        images = {(name, len(names) > 1) for batch in batches for names in batch["images"] for name in names}
        unknown = {name for name, _ in images}.difference(self._sizes)
        with progress_if_slow(self._reporter, "sizes of images from their files' headers", len(unknown)) as advance:
            for name in sorted(unknown):
                self._read_size(name)
                advance(1)
        sizes = ((self._sizes[name], several) for name, several in images)
        known = [(size, several) for size, several in sizes if not isinstance(size, BadImageError)]
        self._expansions.find(sorted(set(known)), self._reporter)

    def lengths(self, rows: Sequence[tuple[dict[str, Any], list[Expansion]]]) -> list[int]:
        """Count the tokens of rows with what their image tokens become."""
        encoded = self._short(rows)
        return [len(ids) + sum(one.spared for one in images) for ids, (_, images) in zip(encoded, rows, strict=True)]

    def _short(self, rows: Sequence[tuple[dict[str, Any], list[Expansion]]]) -> list[list[int]]:
        """Tokenise rows with what is shortest in place of each image."""
        short = [self._text(row, [one.short for one in images])[0] for row, images in rows]
        encoded: list[list[int]] = self._encode(short, [row for row, _ in rows])["input_ids"]
        return encoded

    def _pop_without_embedding(self, rows: list[tuple[dict[str, Any], list[Expansion]]]) -> Iterator[BadRow]:
        """Remove from `rows` those with a token that the LLM has no embedding for, and yield each with the reason."""
        given, beyond = rows.copy(), self._chat.beyond
        rows.clear()
        for (row, images), ids in zip(given, self._short(given), strict=True):
            if reason := next((beyond[each] for each in ids if each in beyond), None):
                yield BadRow(row["number"], row["id"], reason)
            else:
                rows.append((row, images))

    def _too_long(self, rows: Sequence[tuple[dict[str, Any], list[Expansion]]], max_length: int) -> Iterator[BadRow]:
        for (row, images), length in zip(rows, self.lengths(rows), strict=True):
            if length <= max_length:
                continue
            text, moved = self._text(row, [one.text for one in images])
            given = self._encode([text], [row], offsets=True)
            if self._chat.in_two:
                trained = torch.tensor(given["token_type_ids"][0], dtype=torch.bool)
            else:
                trained = within(torch.tensor(given["offset_mapping"][0]), row["spans"], moved)
            ids = torch.tensor(given["input_ids"][0])
            if cut_too_short(ids, trained, max_length, self._chat.image_token_id):
                yield BadRow(
                    row["number"],
                    row["id"],
                    "expected its images and the beginning of an answer within data.max_length "
                    f"{max_length}; found {length} tokens in all; raise data.max_length, or shorten or remove the "
                    "sample",
                )
            else:
                self.cut += 1

    def _text(self, row: dict[str, Any], images: list[str]) -> tuple[str, list[dict[str, Any]]]:
        """Write out a row's image tokens; return the text, and where they were and are."""
        processor = self._chat.processor
        dots = [[_DOT] * len(images)] if images else None
        _, texts, *_ = processor.prepare_inputs_layout(images=dots, text=[row["text"]])
        if not images:
            return texts[0], []
        texts, moved = processor.get_text_with_replacements(texts, images)
        return texts[0], moved[0]

    def _encode(self, texts: list[str], rows: Sequence[dict[str, Any]], *, offsets: bool = False) -> Any:  # noqa: ANN401
        tokenizer = self._chat.processor.tokenizer
        options: dict[str, Any] = {"return_offsets_mapping": offsets, "verbose": False}
        if self._chat.in_two:
            pairs = [row["answer"] + tokenizer.eos_token for row in rows]
            return tokenizer(texts, pairs, return_token_type_ids=True, **options)
        return tokenizer(texts, add_special_tokens=adds_special_tokens(self._chat, texts), **options)

    def _expanded(self, names: Sequence[str]) -> list[Expansion]:
        """Find what the image tokens of a row become.

        Raises:
            UserError: an image cannot be read, or the processor refuses images of its size.
        """
        return [self._expansion(name, several=len(names) > 1) for name in names]

    def _expansion(self, name: str, *, several: bool) -> Expansion:
        size = self._size(name)
        try:
            return self._expansions.of(size, several=several)
        except UserError as error:
            raise UserError(
                f"expected images that the model's processor takes; found {shown(name)} of {size[0]} x {size[1]} "
                f"pixels: {error}; scale, cut or remove it"
            ) from error

    def _size(self, name: str) -> Size:
        if name not in self._sizes:
            self._read_size(name)
        size = self._sizes[name]
        if isinstance(size, BadImageError):
            raise UserError(f"expected images that can be read; found {shown(name)}: {size.message}")
        return size

    def _read_size(self, name: str) -> None:
        try:
            self._sizes[name] = upright_size(self._locate(name))
        except BadImageError as error:
            self._sizes[name] = error
