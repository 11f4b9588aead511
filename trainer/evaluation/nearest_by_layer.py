"""Find the nearest vocabulary token of each visual token, layer by layer (BASIC's Fig. 2 as numbers and text).

Shapes: I images of m visual tokens, l decoder layers, d the LLM's width, V its vocabulary. Layer 0 is the projector's
output, layer i the output of the LLM's i-th decoder layer, which is the residual stream before any final norm. A
layer's states are measured as they pass and are not kept.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple, TypedDict

import torch
from transformers import PreTrainedTokenizerBase

from sea_pipeline.core.progress import Advance
from trainer.evaluation.evaluator import Evaluator, ShownImage, evaluating
from trainer.losses.supervision import decoder_layers, watching_layers
from trainer.measures import metrics
from trainer.measures.metrics import check_finite
from trainer.model.aligned_llava import AlignedLlava, Batch
from trainer.words import special_tokens

FREQUENT = 5
"""Number of a layer's most frequent tokens that are reported."""

_ANCHOR = "a"
"""Text put before a token to decode it, because some decoders drop the space at the start of a text."""


class Frequent(TypedDict):
    """A nearest token, and how often it is one."""

    token: str
    """The token as readable text, see `token_texts`."""
    share: float
    """Share of all visual tokens of the layer, 0..1."""


class Layer(TypedDict, total=False):
    """What a layer's visual tokens are nearest to, in shares 0..1 of all I * m visual tokens."""

    layer: int
    special: float
    """Share nearest to a special token, such as the end of a text. It is BASIC's finding (ii) for deep layers."""
    distinct_tokens: int
    meaningful: float
    """See `Evaluator.meaningful`. It is BASIC's finding (i) for shallow layers. Absent without labels."""
    meaningful_chance: float
    """The same share with the labels of another photo; absent for a single photo."""
    frequent: list[Frequent]
    """At most `FREQUENT` tokens, the most frequent first, among equal ones the lowest id first."""


class LayerTokens(NamedTuple):
    """The result of `look_at_layers`."""

    images: list[ShownImage]
    tokens: torch.Tensor
    """int32 (l + 1, I, m): ids of the nearest tokens."""
    summary: list[Layer]
    """One entry for each layer."""
    texts: dict[int, str]
    """Each nearest token as readable text."""

    def by_layer(self, image: int) -> list[list[str]]:
        """Return the tokens of one image as text, as l + 1 lists of m tokens, row-major."""
        return [[self.texts[token] for token in row] for row in self.tokens[:, image].tolist()]


def look_at_layers(
    evaluator: Evaluator,
    model: AlignedLlava,
    limit: int | None = None,
    advance: Advance = lambda _: None,
) -> LayerTokens:
    """Find the nearest tokens, by layer, of the first photos of the evaluator's data.

    A photo is read with the text in front of it at its first appearance.

    Args:
        evaluator: the evaluator with the samples and, for `meaningful`, the labels.
        model: a model with the LLM's layers; its mode is restored afterwards.
        limit: most photos; None takes all. Memory grows by 4 * (l + 1) * m bytes per photo.
        advance: called with the number of images done.

    Raises:
        UserError: no sample has an image, the LLM has no decoder layers under the usual name, or a state is not
            finite.
    """
    images = evaluator.first_images(limit)
    wanted, found = set(images), []
    with evaluating(model):
        embeddings = evaluator.embeddings(model)
        for batch in evaluator.batches(embeddings.device, list(dict.fromkeys(row for row, _ in images))):
            found.append(nearest_by_layer(model, batch, embeddings)[:, evaluator.places(batch, wanted)].int().cpu())
            advance(found[-1].shape[1])
    tokens = torch.cat(found, 1)
    tokenizer = evaluator.data.processor.tokenizer
    texts = token_texts(tokenizer, torch.unique(tokens).tolist())
    words = evaluator.words(images) if evaluator.labelled else None
    special = torch.tensor(sorted(special_tokens(tokenizer)))
    summary = []
    for number, layer in enumerate(tokens.long()):
        told = Layer(layer=number, special=float(torch.isin(layer, special).float().mean()))
        told |= Layer(distinct_tokens=len(layer.unique()), frequent=most_frequent(layer, texts))
        if words is not None:
            shares = evaluator.meaningful(list(layer), list(words), [image_id for _, image_id in images])
            if shares is not None:
                told["meaningful"] = shares.share
            if shares is not None and shares.chance is not None:
                told["meaningful_chance"] = shares.chance
        summary.append(told)
    return LayerTokens(images, tokens, summary, texts)


@torch.no_grad()
def nearest_by_layer(model: AlignedLlava, batch: Batch, embeddings: torch.Tensor) -> torch.Tensor:
    """Compute Eq. 2 of BASIC for all visual tokens at all layers.

    Args:
        model: a model in evaluation mode, with the LLM's layers.
        batch: a batch with `pixel_values`. Samples without an image and padding after a sample's end have no effect.
        embeddings: float32 (V, d), see `Evaluator.embeddings`.

    Returns:
        int64 (l + 1, I, m): the nearest row by cosine, with images in the batch's order and visual tokens row-major.

    Raises:
        UserError: see `look_at_layers`.
    """
    found: list[torch.Tensor] = []

    def look(layer: int, visual: torch.Tensor) -> None:
        nearest = metrics.nearest(visual.float(), embeddings, measure="cosine")
        check_finite(nearest.values, f"layer {layer}")
        found.append(nearest.indices.view(len(batch["pixel_values"]), -1))

    watch_visual(model, batch, look)
    return torch.stack(found)


def watch_visual(
    model: AlignedLlava, batch: Batch, look: Callable[[int, torch.Tensor], None], option: str = "--layers"
) -> None:
    """Run a model without its head, and show its visual tokens at each layer.

    The head would compute logits for all tokens.

    Args:
        model: a model in evaluation mode, with the LLM's layers.
        batch: a batch with `pixel_values`.
        look: called with each layer from 0 on and its visual tokens (I * m, d), images in the batch's order.
        option: option that asks for it, for the error message.

    Raises:
        UserError: see `decoder_layers`.
    """
    at = batch["input_ids"] == model.config.image_token_id
    with ExitStack() as hooks:
        projector = model.model.multi_modal_projector
        hooks.callback(projector.register_forward_hook(lambda _m, _i, given: look(0, given.flatten(0, 1))).remove)
        layers = decoder_layers(model.llm, option)
        hooks.enter_context(watching_layers(layers, lambda layer, hidden: look(layer, hidden[at])))
        model.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            pixel_values=batch["pixel_values"],
            use_cache=False,
        )


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> dict[int, str]:
    """Decode tokens as they read in running text.

    That is " cat" for "Ġcat" or "▁cat", and "cat" for a token that continues a word. Special tokens are their own
    names. A part of a character reads as U+FFFD, so different tokens may read alike.
    """
    chosen = list(ids)
    (anchor,) = tokenizer([_ANCHOR], add_special_tokens=False)["input_ids"]
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    start = len(tokenizer.decode(anchor, **options))
    decoded = tokenizer.batch_decode([[*anchor, token] for token in chosen], **options)
    return {token: text[start:] for token, text in zip(chosen, decoded, strict=True)}


def most_frequent(tokens: torch.Tensor, texts: Mapping[int, str] | Sequence[str]) -> list[Frequent]:
    """List the most frequent tokens, int64 of any shape, by their texts, see `Layer.frequent`."""
    ids, counts = tokens.unique(return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:FREQUENT]
    return [
        Frequent(token=texts[id_], share=count / tokens.numel())
        for id_, count in zip(ids[order].tolist(), counts[order].tolist(), strict=True)
    ]
