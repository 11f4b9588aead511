"""The conversations that a run reads, with their images: all that is bad of them is found here."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset as Rows

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.llava_json import relative_path
from sea_pipeline.inputs.sources import list_samples
from sea_pipeline.labels.store import LabelStore
from sea_pipeline.storage.paths import cache_folder
from trainer.data.bad_rows import (
    NOTHING,
    BadRow,
    LeftOut,
    image_names,
    missing_images,
    refuse,
    rows_with,
    unreadable_images,
    without,
)
from trainer.data.conversations import read_conversations, split_rows
from trainer.data.files import conversations_file
from trainer.model.borders import border
from trainer.model.load import ModelFolder
from trainer.recipes.recipe import SAMPLES, Basic, Data


@dataclass(frozen=True)
class Conversations:
    """Rows to train on and rows held out, and where their images are."""

    train: Rows
    held_out: Rows | None
    locate: Callable[[str], Path]
    file: Path
    image_root: Path
    bad: LeftOut = NOTHING
    """Rows of `file` that are left out."""
    evaluate_file: Path | None = None
    """Of the rows held out, if they are another file's."""
    evaluate_bad: LeftOut = NOTHING
    """Rows of that file that are left out."""

    @cached_property
    def image_ids(self) -> set[str]:
        """Every image of the rows to train on."""
        return image_names(self.train)


def open_conversations(data: Data, folder: ModelFolder) -> Conversations:
    """Reads the recipe's data for a model: tokenised by its tokenizer, split, every image file seen to be there.

    Raises:
        UserError: see `read_conversations`; a row cannot be trained or its image is missing, and it is not left out.
    """
    file, image_root, locate = place_of(data.train, data.image_root)

    def rows(path: Path) -> tuple[Rows, list[BadRow]]:
        grid = folder.grid
        read = read_conversations(
            path,
            folder.processor.tokenizer,
            template=data.template,
            image_tokens=grid[0] * grid[1],
            max_length=data.max_length,
            image_root=image_root,
        )
        absent = {} if data.train == SAMPLES else missing_images(read.rows, image_root)
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
        found = LeftOut(tuple(bad)), other, LeftOut(tuple(other_bad))
        return Conversations(train, held_out, locate, file, image_root, *found)
    return Conversations(train, held_out, locate, file, image_root, LeftOut(tuple(bad)))


def _accepted(file: Path, data: Data, rows: Rows, bad: list[BadRow], unread: int = 0) -> tuple[Rows, list[BadRow]]:
    """The rows without the bad ones, if the recipe leaves those out.

    Args:
        file: of the rows.
        data: the recipe's.
        rows: good ones, and some of the bad ones.
        bad: all that were found bad.
        unread: how many of them are not among `rows`.

    Raises:
        UserError: there are bad ones, and they are not to be left out; or nothing else is left.
    """
    if data.bad_rows == "stop":
        refuse(file, bad, len(rows) + unread)
    kept = without(rows, bad)
    if not len(kept):
        refuse(file, bad, len(rows) + unread, nothing_left=True)
    return kept, bad


def without_unreadable(conversations: Conversations, data: Data, store: LabelStore | None) -> Conversations:
    """Looks again at the images of the data that labelling could not read.

    Raises:
        UserError: some cannot be read, and their rows are not to be left out.
    """
    if store is None:
        return conversations
    held_out = conversations.held_out
    names = {bad["image_id"] for bad in store.quarantine()}
    names &= conversations.image_ids | (image_names(held_out) if held_out is not None else set())
    unreadable = unreadable_images(sorted(names), conversations.locate)
    if not unreadable:
        return conversations
    train, bad = _accepted(conversations.file, data, conversations.train, rows_with(conversations.train, unreadable))
    changed = replace(conversations, train=train, bad=conversations.bad.and_more(bad))
    if held_out is None:
        return changed
    other = conversations.evaluate_file
    held_out, bad = _accepted(other or conversations.file, data, held_out, rows_with(held_out, unreadable))
    if other is None:
        return replace(changed, held_out=held_out, bad=changed.bad.and_more(bad))
    return replace(changed, held_out=held_out, evaluate_bad=conversations.evaluate_bad.and_more(bad))


def check_prompts(conversations: Conversations, folder: ModelFolder, basic: Basic, option: str) -> None:
    """Looks for images whose patches would count alike, though attention was asked for: none of the text sees them.

    Args:
        conversations: of the run; rows that are trained on.
        folder: the model's.
        basic: how the supervision is made; only `text: prompt` leaves text out.
        option: what sets `text`, for the message.

    Raises:
        UserError: behind an image there is text, and all of it is trained, as with the template `plain`.
    """
    if (basic.degree, basic.text) != ("auto", "prompt"):
        return
    unseen, images, example = 0, 0, ""
    columns = conversations.train.select_columns(["id", "input_ids", "trained"]).with_format("arrow")
    for batch in columns.iter(10_000):
        lengths = pc.list_value_length(batch["input_ids"]).to_numpy()
        image = pc.list_flatten(batch["input_ids"]).to_numpy() == folder.processor.image_token_id
        trained = pc.list_flatten(batch["trained"]).to_numpy(zero_copy_only=False)
        starts, place = np.cumsum(lengths) - lengths, np.arange(len(image))
        last_trained, last_other = (
            np.repeat(np.maximum.reduceat(np.where(chosen, place, -1), starts), lengths)
            for chosen in (trained, ~trained & ~image)
        )
        found = image & (place > last_other) & (place < last_trained)
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
    """The file of conversations, the folder that its images are in, and the file of an image id."""
    if train == SAMPLES:
        listing = list_samples(None)
        root = Path(listing.root)
        places = {sample.image_id: root / sample.uri for sample in listing.samples}
        return conversations_file(train), root, places.__getitem__
    root = image_root or Path(train).parent
    return Path(train), root, partial(below, root)


def below(root: Path, image_id: str) -> Path:
    """Gives the file of an image id below an image root."""
    return root / relative_path(image_id, str(root))
