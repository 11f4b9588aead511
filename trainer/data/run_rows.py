"""Open the conversations that a run reads, with their images, and find everything that is wrong with them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset as Rows

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT, Reporter
from sea_pipeline.inputs.llava_json import relative_path
from sea_pipeline.inputs.sources import list_samples
from sea_pipeline.labels.store import LabelStore
from sea_pipeline.storage.paths import cache_folder
from trainer.data.bad_rows import (
    NOTHING,
    BadRow,
    LeftOutRows,
    image_names,
    missing_images,
    refuse,
    rows_with,
    unreadable_images,
    without,
)
from trainer.data.conversations import ConversationRows, read_conversations, split_rows
from trainer.data.files import check_image_root, conversations_file
from trainer.data.image_check import unreadable_files
from trainer.model.borders import border
from trainer.model.load import ModelFolder
from trainer.model.tokenise import as_of_run
from trainer.recipes.recipe import SAMPLES, Basic, Data


@dataclass(frozen=True)
class Conversations:
    """Rows to train on and rows held out, with the place of their images."""

    train: Rows
    held_out: Rows | None
    locate: Callable[[str], Path]
    file: Path
    image_root: Path
    bad: LeftOutRows = NOTHING
    """Rows of `file` that are left out."""
    evaluate_file: Path | None = None
    """The file of the rows held out, if it is another one than `file`."""
    evaluate_bad: LeftOutRows = NOTHING
    """Rows of `evaluate_file` that are left out."""
    cut: int = 0
    """Rows to train on that an existing model's visual tokens make so long that their end is cut."""

    @cached_property
    def image_ids(self) -> set[str]:
        """Collect the images of the rows to train on."""
        return image_names(self.train)


def open_conversations(
    data: Data, folder: ModelFolder, *, run: Path | None = None, reporter: Reporter = SILENT, first: bool = True
) -> Conversations:
    """Read the recipe's data for a model.

    The rows are tokenised by the model's tokenizer and split, and each image file is checked to exist.

    Args:
        data: the recipe's data settings.
        folder: the model's.
        run: the record of the run that set `max_length`; None if it is the user's to raise, which is then advised.
        reporter: receives progress.
        first: whether this is the first process, which says whatever each process does for itself.

    Raises:
        UserError: see `read_conversations`; a row cannot be trained or its image is missing, and it is not left out.
    """

    def read(path: Path) -> ConversationRows:
        grid = folder.grid
        read = read_conversations(
            path,
            folder.processor.tokenizer,
            template=data.template,
            image_tokens=grid[0] * grid[1],
            max_length=data.max_length,
            reporter=reporter,
        )
        if run is None:
            return read
        bad = [row._replace(reason=as_of_run(row.reason, data.max_length, run)) for row in read.bad]
        return read._replace(bad=bad)

    return open_rows(data, read, reporter if first else SILENT)


def open_rows(data: Data, read_file: Callable[[Path], ConversationRows], reporter: Reporter = SILENT) -> Conversations:
    """Read the recipe's data by a function that reads one file, see `open_conversations`."""
    file, image_root, locate = place_of(data.train, data.image_root)
    check_image_root(image_root)

    def rows(path: Path) -> tuple[Rows, list[BadRow]]:
        read = read_file(path)
        absent = {} if data.train == SAMPLES else missing_images(read.rows, image_root, reporter)
        return _accepted(path, data, read.rows, [*read.bad, *rows_with(read.rows, absent)], len(read.bad))

    advice = f"restore it, or remove {cache_folder() / 'conversations'}, which is made again from it"
    with border(f"{file}: cannot be read", advice, given=True):
        return _opened(data, file, image_root, locate, rows)


def _opened(
    data: Data,
    file: Path,
    image_root: Path,
    locate: Callable[[str], Path],
    rows: Callable[[Path], tuple[Rows, list[BadRow]]],
) -> Conversations:
    train, bad = rows(file)
    held_out = None
    if data.held_out:
        count = data.held_out if data.held_out < 1 else int(data.held_out)
        train, held_out = split_rows(train, count, seed=0)
    if data.evaluate:
        other = conversations_file(data.evaluate)
        held_out, other_bad = rows(other)
        found = LeftOutRows(tuple(bad)), other, LeftOutRows(tuple(other_bad))
        return Conversations(train, held_out, locate, file, image_root, *found)
    return Conversations(train, held_out, locate, file, image_root, LeftOutRows(tuple(bad)))


def _accepted(file: Path, data: Data, rows: Rows, bad: list[BadRow], unread: int = 0) -> tuple[Rows, list[BadRow]]:
    """Return the rows without the bad ones, if the recipe leaves those out.

    Args:
        file: file of the rows.
        data: the recipe's data settings.
        rows: the good rows, and those bad rows that could be tokenised.
        bad: all bad rows.
        unread: number of bad rows that are not among `rows`.

    Raises:
        UserError: there are bad rows that are not to be left out, or no other rows are left.
    """
    if data.bad_rows == "stop":
        refuse(file, bad, len(rows) + unread)
    kept = without(rows, bad)
    if not len(kept):
        refuse(file, bad, len(rows) + unread, nothing_left=True)
    return kept, bad


def without_unreadable(
    conversations: Conversations, data: Data, store: LabelStore | None, reporter: Reporter
) -> Conversations:
    """Drop the rows of images that cannot be read, see `unreadable_files`.

    Images that have labels were read then and are not looked at.

    Raises:
        UserError: some cannot be read and their rows are not to be left out, or no other rows are left.
    """
    names = _names(conversations)
    unreadable = _still_unreadable(conversations, names, store)
    if data.train != SAMPLES:  # whose photos are part of two packages
        rest = sorted(name for name in names - unreadable.keys() if store is None or name not in store)
        unreadable |= unreadable_files(rest, conversations.locate, conversations.image_root, reporter)
    return _without(conversations, data, unreadable)


def without_broken(conversations: Conversations, data: Data, store: LabelStore | None) -> Conversations:
    """Drop the rows of a run that has ended whose images cannot be read.

    Only if the run left bad rows out are all images without labels looked at again.

    Raises:
        UserError: see `without_unreadable`.
    """
    if data.bad_rows == "leave_out":
        return without_unreadable(conversations, data, store, SILENT)
    return _without(conversations, data, _still_unreadable(conversations, _names(conversations), store))


def _still_unreadable(conversations: Conversations, names: set[str], store: LabelStore | None) -> dict[str, str]:
    """Find the images that labelling could not read and that still cannot be read, each with the reason."""
    bad = {bad["image_id"] for bad in store.quarantine()} & names if store is not None else set()
    return unreadable_images(sorted(bad), conversations.locate)


def without_any_unreadable(conversations: Conversations, data: Data, reporter: Reporter) -> Conversations:
    """Drop the rows of images that cannot be read, by reading all images.

    Raises:
        UserError: see `without_unreadable`.
    """
    names = sorted(_names(conversations))
    with reporter.progress("reading photos", len(names)) as advance:
        return _without(conversations, data, unreadable_images(names, conversations.locate, "", advance))


def _names(conversations: Conversations) -> set[str]:
    held_out = conversations.held_out
    return conversations.image_ids | (image_names(held_out) if held_out is not None else set())


def _without(conversations: Conversations, data: Data, unreadable: dict[str, str]) -> Conversations:
    if not unreadable:
        return conversations
    return without_bad(conversations, data, *[lambda rows: rows_with(rows, unreadable)] * 2)


def warn_of_rows(conversations: Conversations, data: Data, llm: Any, reporter: Reporter) -> None:  # noqa: ANN401
    """Warn of rows with more tokens than the LLM has positions, and of held-out rows whose images are trained on.

    Args:
        conversations: the rows. How many tokens those of existing models have is not known yet.
        data: the recipe's data settings.
        llm: the config of the LLM.
        reporter: receives the warnings.
    """
    _warn_of_shared(conversations, data, reporter)
    positions = _positions(llm) if reporter.shows_warnings else None
    if positions is None or "length" not in conversations.train.column_names:
        return
    lengths = conversations.train.with_format("arrow")["length"][:].to_numpy()
    if count := int((lengths > positions).sum()):
        reporter.warning(
            f"{conversations.file}: {count:,} of {len(lengths):,} rows to train on have more tokens than the LLM has "
            f"positions, {positions:,}; the longest has {lengths.max():,}; data.max_length: {positions} cuts them"
        )


def _positions(llm: Any) -> int | None:  # noqa: ANN401 - of any LLM
    """Return how many tokens an LLM was made for; None if its config does not say."""
    positions, rope = getattr(llm, "max_position_embeddings", None), getattr(llm, "rope_parameters", None) or {}
    # Configs of LLMs that were stretched say the positions before it or after it.
    stretched = (rope.get("original_max_position_embeddings") or positions or 0) * (rope.get("factor") or 1)
    return None if positions is None else max(positions, int(stretched))


def _warn_of_shared(conversations: Conversations, data: Data, reporter: Reporter) -> None:
    # As in data with many questions on an image.
    if conversations.held_out is None or data.evaluate == data.train or not reporter.shows_warnings:
        return
    names = image_names(conversations.held_out)
    if shared := names & conversations.image_ids:
        reporter.warning(
            f"{len(shared):,} of {len(names):,} held-out images are also trained on, in other rows, such as "
            f"{min(shared)!r}; metrics of them say little of new images; data.evaluate names a file of others"
        )


def without_bad(
    conversations: Conversations,
    data: Data,
    find: Callable[[Rows], list[BadRow]],
    find_held_out: Callable[[Rows], list[BadRow]],
) -> Conversations:
    """Drop the bad rows that functions find, one among the rows to train on and one among those held out.

    Raises:
        UserError: there are bad rows that are not to be left out, or no other rows are left.
    """
    held_out = conversations.held_out
    train, bad = _accepted(conversations.file, data, conversations.train, find(conversations.train))
    changed = replace(conversations, train=train, bad=conversations.bad.and_more(bad))
    if held_out is None:
        return changed
    other = conversations.evaluate_file
    held_out, bad = _accepted(other or conversations.file, data, held_out, find_held_out(held_out))
    if other is None:
        return replace(changed, held_out=held_out, bad=changed.bad.and_more(bad))
    return replace(changed, held_out=held_out, evaluate_bad=conversations.evaluate_bad.and_more(bad))


def check_prompts(conversations: Conversations, folder: ModelFolder, basic: Basic, option: str) -> None:
    """Refuse images that no text of the prompt attends to, if degrees are to come from that attention.

    All patches of such an image would count the same.

    Args:
        conversations: the run's conversations; rows to train on are checked.
        folder: the model's folder.
        basic: settings of the supervision; only `text: prompt` leaves text out.
        option: name of what sets `text`, for the message.

    Raises:
        UserError: all text after an image is trained, such as with the template `plain`.
    """
    if (basic.degree, basic.text) != ("auto", "prompt"):
        return
    unseen, images, example = 0, 0, ""
    columns = conversations.train.select_columns(["id", "input_ids", "trained"]).with_format("arrow")
    for batch in columns.iter(10_000):
        lengths = pc.list_value_length(batch["input_ids"]).to_numpy()
        image = pc.list_flatten(batch["input_ids"]).to_numpy() == folder.processor.image_token_id
        trained = pc.list_flatten(batch["trained"]).to_numpy(zero_copy_only=False)
        # All rows of the batch lie one after the other; for each token, the last trained and last other token of its
        # row are looked up by segments.
        starts, position = np.cumsum(lengths) - lengths, np.arange(len(image))
        # An image sees no prompt if the text after it is all trained: nothing else follows it, but something trained.
        last_trained, last_other = (
            np.repeat(np.maximum.reduceat(np.where(chosen, position, -1), starts), lengths)
            for chosen in (trained, ~trained & ~image)
        )
        found = image & (position > last_other) & (position < last_trained)
        if found.any() and not unseen:
            example = batch["id"][int(np.searchsorted(starts, found.argmax(), side="right")) - 1].as_py()
        unseen, images = unseen + int(found.sum()), images + int(image.sum())
    if unseen:
        raise UserError(
            f"{option}: `prompt` is the text behind an image that is not trained; {unseen:,} of {images:,} images of "
            f"{conversations.file} have none, such as that of {example!r}, and every patch of theirs would count the "
            "same; set it to all, or take another template"
        )


def place_of(train: str, image_root: Path | None) -> tuple[Path, Path, Callable[[str], Path]]:
    """Return the file of conversations, the folder of its images, and a function from image id to file."""
    if train == SAMPLES:
        listing = list_samples(None)
        root = Path(listing.root)
        places = {sample.image_id: root / sample.uri for sample in listing.samples}
        return conversations_file(train), root, places.__getitem__
    root = image_root or Path(train).parent
    return Path(train), root, partial(below, root)


def below(root: Path, image_id: str) -> Path:
    """Return the file of an image id below an image root."""
    return root / relative_path(image_id, str(root))
