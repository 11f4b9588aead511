"""Turn conversations and photos into what an existing model takes, by its own processor.

Shapes: B samples of L tokens, T trained tokens.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import torch
from datasets import Dataset as Rows
from PIL import Image
from torch.utils.data import Dataset

from sea_pipeline.core.errors import UserError, one_line
from trainer.attach.rows import Chat
from trainer.data.dataset import MEND_IN_TRAINING, next_tokens, sample_image
from trainer.data.sampler import BLANK
from trainer.model.borders import lacks_memory

_BLANK_TEXT = "a"


class ChatSample(TypedDict):
    """A sample of an epoch."""

    row: int
    epoch: int
    id: str
    text: str
    answer: str | None
    spans: list[list[int]]
    names: list[str]
    """The images' names."""
    images: list[Image.Image]


class ChatData(Dataset[ChatSample]):
    """Samples by the index `epoch * len + row` of an `EpochSampler`, with whole upright images.

    Args:
        rows: see `read_texts`.
        locate: returns the file of an image id.
        chat: the model's.
        max_length: the most tokens of a sample, visual ones included; what is longer loses its end. None cuts nothing.
        advice: see `TrainingData`.
    """

    def __init__(
        self,
        rows: Rows,
        locate: Callable[[str], Path],
        chat: Chat,
        *,
        max_length: int | None,
        advice: str = MEND_IN_TRAINING,
    ) -> None:
        self.rows = rows
        self.chat = chat
        self.processor = chat.processor
        self.max_length = max_length
        self._locate, self._advice = locate, advice

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> ChatSample:
        """Return one sample, or at `BLANK` a text of which nothing is trained.

        Raises:
            UserError: an image cannot be read.
        """
        if index == BLANK:
            return ChatSample(row=BLANK, epoch=0, id="", text=_BLANK_TEXT, answer=None, spans=[], names=[], images=[])
        epoch, number = divmod(int(index), len(self.rows))
        row = self.rows[number]
        images = [self.image(name, row["id"]) for name in row["images"]]
        given = {name: row[name] for name in ("id", "text", "answer", "spans")}
        return cast("ChatSample", {"row": number, "epoch": epoch, "names": row["images"], "images": images, **given})

    def image(self, name: str, sample: str) -> Image.Image:
        """Read an upright image.

        Raises:
            UserError: it cannot be read.
        """
        return sample_image(self._locate(name), sample, self._advice)

    def uncut(self) -> "ChatData":
        """Return the same samples at any length."""
        whole = copy(self)
        whole.max_length = None
        return whole

    def collator(self, pad: int, seed: int) -> "ChatCollator":
        """Return the collator of these samples; `seed` is that of what is drawn for a batch."""
        return ChatCollator(self, seed)


class ChatCollator:
    """Collate samples to a batch for an `AttachedModel`, see `ChatBatch`."""

    def __init__(self, data: ChatData, seed: int) -> None:
        self._chat, self._max_length, self._seed = data.chat, data.max_length, seed

    def __call__(self, samples: Sequence[ChatSample]) -> dict[str, Any]:
        """Collate samples.

        Blank samples are dropped, unless all samples are blank. Then one of them stays.

        Returns:
            What the model's forward takes by name, right-padded; `predict` and `targets`, int64 (T,), `rows`, int64
            (B,), and `seed`, as in `aligned_llava.Batch`; `images`, for each image its name, width and height; and
            `draws`, for each image the seed of what is drawn for it, which no other sample of the batch changes.

        Raises:
            UserError: the processor refuses a sample, or `max_length` leaves nothing of it to train; names the sample.
        """
        samples = [sample for sample in samples if sample["row"] != BLANK] or list(samples[:1])
        try:
            given, trained = self._processed(samples)
        except UserError:
            self._name_refused(samples)
            raise
        trained = self._cut(given, trained, samples)
        predict, targets = next_tokens(given["input_ids"], trained)
        rows = [sample["row"] for sample in samples if sample["row"] != BLANK]
        return given | {
            "predict": predict,
            "targets": targets,
            "rows": torch.tensor(rows, dtype=torch.int64),
            "seed": self._drawn(samples[0]),
            "draws": [
                self._drawn(sample, position) for sample in samples for position in range(1, len(sample["names"]) + 1)
            ],
            "images": [
                (name, *image.size)
                for sample in samples
                for name, image in zip(sample["names"], sample["images"], strict=True)
            ],
        }

    def _drawn(self, sample: ChatSample, image: int = 0) -> int:
        """Draw the seed of a sample's image, counted from 1, or that of the batch that begins with the sample.

        It depends on no other sample. So several processes draw what one process with all of their samples would draw.
        """
        return int(np.random.default_rng((self._seed, sample["epoch"], sample["row"] + 1, image)).integers(2**31))

    def _processed(self, samples: Sequence[ChatSample]) -> tuple[dict[str, Any], torch.Tensor]:
        return processed(
            self._chat,
            [sample["text"] for sample in samples],
            [sample["images"] for sample in samples],
            spans=[sample["spans"] for sample in samples],
            answers=[sample["answer"] for sample in samples],
        )

    def _name_refused(self, samples: Sequence[ChatSample]) -> None:
        """Raise a `UserError` that names the first sample that the processor refuses alone, if there is one."""
        for sample in samples:
            try:
                self._processed([sample])
            except UserError as error:
                images = "".join(
                    f" {name!r} of {image.width} x {image.height} pixels,"
                    for name, image in zip(sample["names"], sample["images"], strict=True)
                )
                raise UserError(
                    f"sample {sample['id']!r}:{images} {error}; mend the sample, or leave it out and begin anew"
                ) from error

    def _cut(self, given: dict[str, Any], trained: torch.Tensor, samples: Sequence[ChatSample]) -> torch.Tensor:
        """Cut samples at `max_length` in place, and return what is trained of them, bool (B, L)."""
        ids, mask = given["input_ids"], given["attention_mask"]
        if self._max_length is None:
            return trained
        length = min(self._max_length, int(mask.sum(1).max()))
        beyond = mask[:, length:].any(1)
        if beyond.any():
            for row in beyond.nonzero().squeeze(1).tolist():
                if cut_too_short(ids[row], trained[row], length, self._chat.image_token_id):
                    raise UserError(
                        f"sample {samples[row]['id']!r}: expected its images and the beginning of an answer within "
                        f"data.max_length {self._max_length}; found {int(mask[row].sum())} tokens in all; begin anew "
                        "with a larger one, or without the sample"
                    )
        shape = ids.shape
        for name, value in given.items():
            if isinstance(value, torch.Tensor) and value.shape == shape:
                given[name] = value[:, :length]
        return trained[:, :length]


def cut_too_short(ids: torch.Tensor, trained: torch.Tensor, length: int, image_token_id: int) -> bool:
    """Tell whether a sample, int64 and bool (L,), loses a visual token or all that is trained beyond `length`."""
    return bool((ids[length:] == image_token_id).any() or not trained[1:length].any())


def processed(
    chat: Chat,
    texts: Sequence[str],
    images: Sequence[Sequence[Image.Image]],
    *,
    spans: Sequence[Sequence[Sequence[int]]] | None = None,
    answers: Sequence[str | None] = (),
    left: bool = False,
) -> tuple[dict[str, Any], torch.Tensor]:
    """Run a processor over texts with their images.

    Args:
        chat: the model's.
        texts: B texts with one image token for each image.
        images: the images of each text.
        spans: the trained ranges of each text; none by default.
        answers: the answers of PaliGemma's texts; None or empty for prompts alone.
        left: pad on the left, so that all texts end together.

    Returns:
        What the model's forward takes by name; and what is trained of `input_ids`, bool (B, L).

    Raises:
        UserError: the processor refuses them.
    """
    processor, given = chat.processor, [list(each) for each in images]
    options: dict[str, Any] = {"padding_side": "left" if left else "right", "padding": True, "return_tensors": "pt"}
    if not chat.in_two:
        options["add_special_tokens"] = adds_special_tokens(chat, texts)
    elif answers and None not in answers:
        options["suffix"] = list(answers)
    if chat.in_two and not any(given):  # a blank sample; PaliGemma's processor takes no text without an image
        made = dict(processor.tokenizer(list(texts), return_token_type_ids=True, **options))
        return made, _nothing(made)
    said = f"the model's processor refuses a sample ({texts[0][:60]!r}, …): "
    with _refusing(said), _quietly(), _replacements(processor) as moved:
        images_given = given if any(given) else None
        made = dict(processor(images=images_given, text=list(texts), return_offsets_mapping=True, **options))
    offsets, labels = (made.pop(name, None) for name in ("offset_mapping", "labels"))
    if "pixel_values" in made:
        made["pixel_values"] = made["pixel_values"].float()
    if chat.in_two:
        return made, (labels != -100) & made["attention_mask"].bool() if answers else _nothing(made)
    if spans is None:
        return made, _nothing(made)
    moved = moved or [[] for _ in texts]
    trained = [within(offsets[row], spans[row], moved[row]) for row in range(len(texts))]
    return made, torch.stack(trained) & made["attention_mask"].bool()


def adds_special_tokens(chat: Chat, texts: Sequence[str]) -> bool:
    """Tell whether the tokenizer is to add its own BOS, which a text must not get twice if the template writes it."""
    bos = chat.processor.tokenizer.bos_token
    return not (bos and all(text.startswith(bos) for text in texts))


def written_out(chat: Chat, images: Sequence[Image.Image]) -> str:
    """Return what a processor writes in place of the first image token of a text with these images.

    Raises:
        UserError: the processor refuses them.
    """
    with _refusing(), _quietly(), _replacements(chat.processor) as moved:
        chat.processor(images=[list(images)], text=[chat.mark * len(images)], return_tensors="pt")
    return str(moved[0][0]["replacement"])


@contextmanager
def _refusing(said: str = "") -> Iterator[None]:
    """Raise what a processor raises within this block, at images that it cannot take, as a `UserError`."""
    try:
        yield
    except (ValueError, ArithmeticError, RuntimeError) as error:
        if lacks_memory(error):
            raise
        raise UserError(f"{said}{one_line(error)}") from error


@contextmanager
def _replacements(processor: Any) -> Iterator[list[list[dict[str, Any]]]]:  # noqa: ANN401 - any of transformers
    """Keep where a processor writes out the image tokens of each text within this block.

    Idefics3's cannot give them out (`return_text_replacement_offsets`) if its texts have unlike numbers of images.
    """
    found: list[list[dict[str, Any]]] = []
    plain = processor.get_text_with_replacements

    def keeping(*given: Any, **named: Any) -> Any:  # noqa: ANN401 - as the method
        text, moved = plain(*given, **named)
        found.extend(moved)
        return text, moved

    processor.get_text_with_replacements = keeping
    try:
        yield found
    finally:
        del processor.get_text_with_replacements


@contextmanager
def _quietly() -> Iterator[None]:
    """Leave out a warning of numpy about PaliGemma's processor within this block."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation")
        yield


def _nothing(made: dict[str, Any]) -> torch.Tensor:
    return torch.zeros_like(made["input_ids"], dtype=torch.bool)


def within(offsets: torch.Tensor, spans: Sequence[Sequence[int]], moved: Sequence[dict[str, Any]]) -> torch.Tensor:
    """Mark the tokens of a text, bool (L,), that have a character in one of the spans.

    Args:
        offsets: (L, 2), the tokens' ranges in the text in which image tokens are written out.
        spans: ranges in the text before that.
        moved: for each image token where it was (`span`), and where what is in its place is (`new_span`).
    """
    start, end = offsets[:, 0], offsets[:, 1]
    inside = torch.zeros(len(offsets), dtype=torch.bool)
    for first, last in spans:
        grown = [one["new_span"][1] - one["span"][1] for one in moved if one["span"][1] <= first]
        shift = grown[-1] if grown else 0
        inside |= (start < last + shift) & (end > first + shift)
    return inside & (start < end)
