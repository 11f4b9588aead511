"""Replace visual tokens by their nearest token embeddings, and compare what the model then says (BASIC's Fig. 3).

There are three texts for each image: from its visual tokens, from the replaced ones, and, as a control, from the
replaced tokens of another image. Decoding is greedy, so the control is that other image's own text. The number is how
often a text has a word of the sample's answer, compared with how often the texts of other images have one.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypedDict, cast

import torch
from PIL import Image
from torch import nn
from transformers import GenerationConfig, LlavaForConditionalGeneration, LogitsProcessor, LogitsProcessorList

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.core.progress import Advance
from sea_pipeline.inputs.captions import content_words, without_last_word
from trainer.evaluation.evaluator import Evaluator, ShownImage, evaluating
from trainer.evaluation.settings import NEW_TOKENS as NEW_TOKENS
from trainer.measures import metrics
from trainer.model.aligned_llava import AlignedLlava

PROMPT = "Please describe the image in detail."
"""The prompt of the paper, supplementary C."""
IMAGES = 8
"""Default number of images; generating is slow."""
_ASKED = frozenset(content_words(PROMPT))


class Descriptions(TypedDict, total=False):
    """The texts that the model writes about one image."""

    visual: str
    """The text from its visual tokens."""
    replaced: str
    """The text from the embeddings of the tokens nearest to them."""
    control: str
    """The text from those of another sample's image. It and `control_of` are absent if there is none."""
    control_of: str
    """Id of that other image."""


class Replace(TypedDict, total=False):
    """The numbers of the comparison, with shares in 0..1."""

    prompt: str
    images: int
    scored: int
    """Number of images whose sample's answers have a content word. Shares are of these, and absent if there is none."""
    visual: float
    """Share of texts from visual tokens that have a content word of the sample's answers."""
    visual_control: float
    """Mean share over the texts of the images of other samples, which is what a text of any image reaches. Absent if
    there are none."""
    replaced: float
    """The same as `visual`, from replaced visual tokens."""
    replaced_control: float


class ReplacementResult(NamedTuple):
    """The result of `replace_and_describe`."""

    images: list[ShownImage]
    described: list[Descriptions]
    """One entry for each image."""
    summary: Replace


def replace_and_describe(
    evaluator: Evaluator,
    model: AlignedLlava,
    limit: int = IMAGES,
    new_tokens: int = NEW_TOKENS,
    advance: Advance = lambda _: None,
) -> ReplacementResult:
    """Let the model describe the first photos of the evaluator's data.

    Each photo is described on its own, in the model's chat template.

    Args:
        evaluator: the evaluator with the samples. The answers are their trained texts; labels are not used.
        model: a model with the LLM's layers; its mode is restored afterwards.
        limit: most images.
        new_tokens: most tokens of a text.
        advance: called with the number of images done.

    Raises:
        UserError: no sample has an image, the folder's processor cannot write the prompt, or logits are not finite.
    """
    images = evaluator.first_images(limit)
    processor = evaluator.data.processor
    visual: list[str] = []
    replaced: list[str] = []
    with evaluating(model):
        embeddings = evaluator.embeddings(model)
        for start in range(0, len(images), evaluator.batch_size):
            part = images[start : start + evaluator.batch_size]
            pictures = [evaluator.data.image(image_id, evaluator.data.rows[row]["id"])[0] for row, image_id in part]
            inputs = prompted(processor, pictures).to(model.device)
            visual += _texts(processor, generate(model, inputs, new_tokens))
            with nearest_in_place(model, embeddings):
                replaced += _texts(processor, generate(model, inputs, new_tokens))
            advance(len(part))
    answers = [said_words(answer_text(evaluator, row)) for row, _ in images]
    others = [_others(images, number) for number in range(len(images))]
    described = []
    for own, other, number in zip(visual, replaced, others, strict=True):
        told = Descriptions(visual=own, replaced=other)
        if number:
            told |= Descriptions(control=replaced[number[0]], control_of=images[number[0]].image_id)
        described.append(told)
    summary = Replace(prompt=PROMPT, images=len(images), scored=sum(map(bool, answers)))
    for name, texts in (("visual", visual), ("replaced", replaced)):
        summary |= cast("Replace", shares(name, texts, answers, others))
    return ReplacementResult(images, described, summary)


@contextmanager
def nearest_in_place(model: AlignedLlava, embeddings: torch.Tensor) -> Iterator[None]:
    """Replace visual tokens by the embeddings of their nearest tokens by cosine (Eq. 2), within this block.

    `embeddings` is float32 (V, d).
    """

    def replace(_module: nn.Module, _inputs: object, visual: torch.Tensor) -> torch.Tensor:
        nearest = metrics.nearest(visual.flatten(0, 1).float(), embeddings, measure="cosine").indices
        return embeddings[nearest].view_as(visual).to(visual.dtype)

    handle = model.model.multi_modal_projector.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def prompted(processor: Any, pictures: Sequence[Image.Image]) -> Any:  # noqa: ANN401 - transformers'
    """Write `PROMPT` under each picture, in the processor's chat template up to the answer, as a BatchFeature.

    Raises:
        UserError: the chat template does not exist, cannot write one image and one question, or drops the image.
    """
    question = {"type": "text", "text": PROMPT}
    chats = [[{"role": "user", "content": [{"type": "image", "image": each}, question]}] for each in pictures]
    try:
        return processor.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a template fails as any program does
        reason = one_line(error)
        raise UserError(
            f"--replace: the model folder's chat template cannot write a question about an image ({reason}); mend its "
            "chat_template.jinja"
        ) from error


class _Checked(LogitsProcessor):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        metrics.check_finite(scores.clamp(min=0), "a generated text", "the LLM's logits")  # -inf is no probability
        return scores


CHECKED = LogitsProcessorList([_Checked()])
"""The `logits_processor` that raises a `UserError` for logits that are not finite; greedily they would be a text."""


def generate(model: AlignedLlava, inputs: Any, new_tokens: int) -> torch.Tensor:  # noqa: ANN401 - transformers'
    """Decode greedily with transformers, as int64 (images, at most new_tokens).

    Padding follows a text's end.

    Raises:
        UserError: logits are not finite.
    """
    ends = model.generation_config
    settings = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        bos_token_id=ends.bos_token_id,
        eos_token_id=ends.eos_token_id,
        pad_token_id=ends.pad_token_id,
    )
    generated = stock(model).generate(**inputs, generation_config=settings, logits_processor=CHECKED)
    written = cast("torch.Tensor", generated)
    return written[:, inputs["input_ids"].shape[1] :]


def shares(
    name: str, texts: Sequence[str], answers: Sequence[set[str]], others: Sequence[Sequence[int]]
) -> dict[str, float]:
    """Compute the shares of texts with a word of their own answer, and with a word of other images' answers.

    Args:
        name: name of the first share.
        texts: the text of each image.
        answers: the content words of each image's answers; an image without any is left out of both shares.
        others: for each image the images whose texts are compared with its answers for the control.

    Returns:
        `name` and `name`_control, 0..1; either is absent if there is nothing to count.
    """
    said = [said_words(text) for text in texts]
    scored = [image for image, answer in enumerate(answers) if answer]
    own = [bool(said[image] & answers[image]) for image in scored]
    control = [bool(said[other] & answers[image]) for image in scored for other in others[image]]
    named = {name: own, f"{name}_control": control}
    return {each: sum(hits) / len(hits) for each, hits in named.items() if hits}


def said_words(text: str) -> set[str]:
    """Collect the content words of a text, by the rules of `captions.py`, without those of `PROMPT`."""
    return {*content_words(text)} - _ASKED


def answer_text(evaluator: Evaluator, row: int) -> str:
    """Decode all trained text of a sample, which is its answers."""
    return trained_text(evaluator.data.processor, evaluator.data.rows[row])


def trained_text(processor: Any, sample: Mapping[str, Any]) -> str:  # noqa: ANN401 - transformers'
    """Decode all trained text of a row of `read_conversations`, without the word that a cut may have left a part of."""
    spans: list[list[int]] = [[]]
    for token, trained in zip(sample["input_ids"], sample["trained"], strict=True):
        if trained:
            spans[-1].append(token)
        elif spans[-1]:
            spans.append([])
    text = " ".join(_texts(processor, spans))
    return without_last_word(text) if sample["truncated"] and sample["trained"][-1] else text


class TrainedTexts(Sequence[str]):
    """Decode the trained text of a row when it is read, because few of many rows may be.

    Args:
        processor: the model's.
        rows: see `read_conversations`.
    """

    def __init__(self, processor: Any, rows: Any) -> None:  # noqa: ANN401 - transformers', and a list or mapped rows
        self._processor, self._rows = processor, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: Any) -> Any:  # noqa: ANN401 - a Sequence takes slices, too
        return trained_text(self._processor, self._rows[int(number)])


def _texts(processor: Any, ids: Any) -> list[str]:  # noqa: ANN401 - transformers'
    decoded = processor.tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [text.strip() for text in decoded]


def _others(images: Sequence[ShownImage], number: int) -> list[int]:
    """List the images that differ from this one and belong to another sample, from the next one on."""
    order = [(number + step) % len(images) for step in range(1, len(images))]
    return [
        other
        for other in order
        if images[other].row != images[number].row and images[other].image_id != images[number].image_id
    ]


def stock(model: AlignedLlava) -> Any:  # noqa: ANN401 - transformers' types do not know its own generate
    """Put the same weights in transformers' own class.

    `generate` looks at the arguments that a class's forward names.
    """
    with torch.device("meta"):
        stock = LlavaForConditionalGeneration(model.config)
    stock.model, stock.lm_head = model.model, model.lm_head
    return stock.eval()
