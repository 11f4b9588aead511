"""Tokenise LLaVA's conversations once, with the mask of trained tokens, and map the result into memory later."""

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import datasets
import numpy as np
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT, Reporter
from sea_pipeline.inputs.llava_json import check_path, check_record, has_lines, images_of, records, turns_of
from sea_pipeline.storage.hashing import canonical_json, file_sha256
from sea_pipeline.storage.paths import cache_folder
from trainer.data.bad_rows import BadRow, bad_rows, without
from trainer.data.files import check_conversations_file
from trainer.data.row_cache import Rows, kept_rows, reported
from trainer.model.fixed_date import with_fixed_date
from trainer.model.message_forms import IMAGE_TOKEN
from trainer.model.prompts import RenderedText, TemplateName, chat_template, load_template, read_messages
from trainer.model.tokenise import Conversation, ConversationTokenizer

VERSION = 12
"""Increase it with each change of what a row holds, so that older caches are not found any more."""

_CHUNK = 64
"""Rows tokenised in one call, which spreads them over the cores."""

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "images": datasets.List(datasets.Value("string")),
        "input_ids": datasets.List(datasets.Value("int32")),
        "trained": datasets.List(datasets.Value("bool")),
        "length": datasets.Value("int32"),
        "truncated": datasets.Value("bool"),
        "number": datasets.Value("int64"),
        "refused": datasets.Value("string"),
    }
)
"""The columns of the cache."""

Written = TypeVar("Written")


class Summary(NamedTuple):
    """The counts of a dataset's rows and images."""

    rows: int
    text_only: int
    """Rows without an image, including rows whose images were cut off."""
    truncated: int
    """Rows that were cut at `max_length`."""
    images: int
    """Number of entries; an image in two rows counts twice."""


class ConversationRows(NamedTuple):
    """The rows of a file of conversations, good and bad."""

    rows: datasets.Dataset
    """The rows that can be trained."""
    bad: list[BadRow]
    """The rows that cannot be trained."""


def read_conversations(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: TemplateName,
    image_tokens: int,
    max_length: int = 2048,
    reporter: Reporter = SILENT,
) -> ConversationRows:
    """Tokenise LLaVA's JSON or JSONL in one streaming pass, or load what an earlier call cached for the same input.

    Columns: `id` (the number of the entry or line if a record has none or an empty one); `images`, image ids as the
    file spells them; `input_ids`, int32, one image token per image; `trained`, bool, one per id, true if any character
    of the token is trained; `length`, int32, the number of tokens after each image token is expanded to `image_tokens`
    tokens; `truncated`, bool; `number`, int64, the record's place in the file, from 1.

    A conversation longer than `max_length` loses its end. An image that does not fit whole is dropped with all that
    follows it, from `images` too.

    Args:
        path: a `.json` or `.jsonl` file.
        tokenizer: a fast one that knows `<image>`. Its own BOS is kept; an EOS comes from the template alone.
        template: see `templates.load_template`.
        image_tokens: number of tokens that an image becomes in the model.
        max_length: most tokens of a row, expanded images included.
        reporter: receives progress, see `reported`.

    Raises:
        UserError: the tokenizer or the template does not fit, or the file is not LLaVA's or holds no records.
    """
    _check_arguments(path, tokenizer, image_tokens, max_length)
    settings = [VERSION, template, IMAGE_TOKEN, image_tokens, max_length, _tokenizer_sha256(tokenizer), has_lines(path)]
    rows = partial(
        conversation_rows, path, tokenizer, template=template, image_tokens=image_tokens, max_length=max_length
    )
    return kept_conversations(path, settings, rows, FEATURES, reporter)


def kept_conversations(
    path: Path, settings: list[Any], rows: Rows, features: datasets.Features, reporter: Reporter
) -> ConversationRows:
    """Load the rows that an earlier call cached for a file, or make them.

    Args:
        path: file of the conversations.
        settings: all that decides the rows besides the file's content.
        rows: yields the rows; called only if they must be made.
        features: columns of the rows, among them `number`, `id` and `refused`.
        reporter: receives progress, see `reported`.

    Raises:
        UserError: the file cannot be read, or `rows` raises it.
    """
    try:
        fingerprint = hashlib.sha256(canonical_json([*settings, file_sha256(path)])).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    cached = kept_rows(reported(rows, path, reporter), features, cache_folder() / "conversations", fingerprint)
    bad = bad_rows(cached)
    return ConversationRows(without(cached, bad).remove_columns("refused"), bad)


def conversation_rows(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: TemplateName,
    image_tokens: int,
    max_length: int = 2048,
    limit: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Tokenise the records of a file one after the other, without a cache.

    It takes what `read_conversations` does, and stops after `limit` records; None reads all.

    Yields:
        Rows with the columns of `FEATURES`. `number` is the record's place in the file, from 1. `refused` is why it
        cannot be trained, or None; a refused row has no tokens.

    Raises:
        UserError: the file or the template does not fit.
    """
    render = load_template(template, tokenizer)
    encode = ConversationTokenizer(tokenizer, image_tokens, max_length)

    def rendered(turns: Any, images: int) -> RenderedText:  # noqa: ANN401 - whatever a data file holds
        return render(read_messages(turns, images))

    rows = islice(numbered_records(path), limit)
    while chunk := [
        Conversation(number, *read_record(path, number, record, rendered)) for number, record in islice(rows, _CHUNK)
    ]:
        yield from encode(chunk)


def numbered_records(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the records of a file, whatever they hold, with their places in it, from 1.

    Raises:
        UserError: the file cannot be read, or holds no records.
    """
    number = 0
    for number, record in records(path, strict=False):
        yield number, record
    if not number:
        raise UserError(f"{path}: expected conversations; found none")


def read_record(
    path: Path,
    number: int,
    record: Any,  # noqa: ANN401 - whatever a data file holds
    write: Callable[[Any, int], Written],
) -> tuple[str, list[str], Written | str]:
    """Return a record's name, its images and what is written of its turns, or why it cannot be trained.

    `write` gets the turns and the number of images. A record that cannot be trained has no images.
    """
    given = record.get("id") if isinstance(record, dict) else None
    name = str(number if given in (None, "") else given).encode("utf-8", "backslashreplace").decode()
    try:
        check_record(record, path)
        images = images_of(record)
        for image in images:
            check_path(image)
        return name, images, write(turns_of(record), len(images))
    except (ValueError, RecursionError) as error:  # a UserError is a ValueError
        return name, [], str(error)


def summary(dataset: datasets.Dataset) -> Summary:
    """Count the rows, images and cuts of a dataset that `read_conversations` made.

    Reads two small columns only.
    """
    text_only = truncated = images = 0
    for batch in dataset.select_columns(["images", "truncated"]).with_format("arrow").iter(10_000):
        lengths = pc.list_value_length(batch["images"]).to_numpy()
        text_only += int((lengths == 0).sum())
        images += int(lengths.sum())
        truncated += pc.sum(batch["truncated"]).as_py()
    return Summary(len(dataset), text_only, truncated, images)


def split_rows(
    dataset: datasets.Dataset, held_out: int | float, seed: int
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Set rows aside by a hash of (seed, id).

    The hash of a row does not depend on the others: neither their order nor added rows change it.

    Args:
        dataset: with a column `id`; rows that share an id stay together.
        held_out: an int is a number of rows, a float a share of them; rows that share the last id drawn are added.
        seed: seed of the hash; another seed gives another split.

    Returns:
        The rows to train on and the rows held out, both in the dataset's order.

    Raises:
        UserError: nothing would be left to train on, or `held_out` is negative.
    """
    total = len(dataset)
    count = max(int(held_out > 0), round(held_out * total)) if isinstance(held_out, float) else held_out
    names = (name for batch in dataset.select_columns(["id"]).iter(10_000) for name in batch["id"])
    digests = (hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in names)
    hashes = np.fromiter((int.from_bytes(digest[:8]) for digest in digests), np.uint64, total)
    held = hashes <= np.sort(hashes)[count - 1] if 0 < count <= total else np.full(total, count > 0)
    if held_out < 0 or held.all():
        raise UserError(
            f"data.held_out: expected 0 or more, and fewer than all of {total:,} rows; found {held_out}, which would "
            f"hold out {int(held.sum()):,} (rows with one id stay together)"
        )
    return dataset.select(np.flatnonzero(~held)), dataset.select(np.flatnonzero(held))


def _check_arguments(path: Path, tokenizer: PreTrainedTokenizerBase, image_tokens: int, max_length: int) -> None:
    name = tokenizer.name_or_path
    check_conversations_file(path)
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer {name}: expected a fast one, which knows where its tokens come from; found a slow one"
        )
    if IMAGE_TOKEN not in tokenizer.get_added_vocab():
        raise UserError(
            f"tokenizer {name}: expected the added token {IMAGE_TOKEN!r}; found none; add it with "
            f"tokenizer.add_tokens([{IMAGE_TOKEN!r}], special_tokens=True)"
        )
    if image_tokens < 1 or max_length < 1:
        raise UserError(f"expected image_tokens and max_length of 1 or more; found {image_tokens} and {max_length}")


def _tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # Calls of the tokenizer leave these two in its state. They do not change our rows, because we set both.
    backend = {key: value for key, value in backend.items() if key not in ("truncation", "padding")}
    template = chat_template(tokenizer)
    parts = [backend, template and with_fixed_date(template), tokenizer.special_tokens_map]
    return hashlib.sha256(canonical_json(parts)).hexdigest()
