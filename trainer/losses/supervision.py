"""BASIC's supervision from a running LLM: refined visual tokens (Eq. 4) and the weight of each patch (Eq. 5).

Shapes: B samples of L tokens, I images of m visual tokens, T = I * m of them, d the LLM's width, k layers.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from sea_pipeline.core.errors import UserError
from trainer.losses.attention_tap import AttentionRecording, AttentionTap
from trainer.losses.equations import at_least_float32
from trainer.losses.lens import Lens
from trainer.recipes.recipe import Basic

EPS = 1e-12
"""The least attention on an image. With no more than this its patches count equally."""


def decoder_layers(llm: nn.Module, asked: str, advice: str | None = None) -> nn.ModuleList:
    """Return the LLM's decoder layers, first to last.

    Args:
        llm: a base decoder such as `LlamaModel`.
        asked: what needs them, for the error.
        advice: what to do without them; None for leaving out what needs them.

    Raises:
        UserError: the LLM has none under the name `layers`, which transformers uses in nearly all LLMs.
    """
    layers = getattr(llm, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise UserError(
            f"{asked}: expected an LLM with a list of decoder layers named `layers`; {type(llm).__name__} has none; "
            f"{advice or f'leave {asked} out'}"
        )
    return layers


@contextmanager
def watching_layers(layers: Iterable[nn.Module], look: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """Call `look` with the number of each decoder layer that has run, from 1 on, and its output (B, L, d)."""

    def after(number: int, _module: nn.Module, _inputs: object, output: Any) -> None:  # noqa: ANN401 - maybe a tuple
        look(number, output[0] if isinstance(output, tuple) else output)

    with ExitStack() as hooks:
        for number, layer in enumerate(layers, 1):
            hooks.callback(layer.register_forward_hook(partial(after, number)).remove)
        yield


def layers_of(basic: Basic, llm: nn.Module) -> int:
    """Return k of Eq. 4 and 5, the number of layers that supervise.

    It is what the recipe asks for, or half of the LLM's layers, rounded down, at least 1.

    Raises:
        UserError: the LLM has fewer, or none; see `decoder_layers`.
    """
    layers = len(decoder_layers(llm, "loss.das and loss.sds"))
    k = basic.layers or max(layers // 2, 1)
    if k > layers:
        raise UserError(f"loss.basic.layers: {k}, but the LLM has {layers} layers; set it to {layers} or less")
    return k


def layer_weights(kind: Literal["inc", "const", "dec"], k: int) -> list[float]:
    """Compute the weights w_1 to w_k of Eq. 4, which sum to 1.

    They are proportional to i^2 (`inc`), all the same (`const`), or proportional to (k + 1 - i)^2 (`dec`).
    """
    by_kind: dict[str, Callable[[int], int]] = {"inc": lambda i: i**2, "const": lambda i: 1}
    by_kind["dec"] = lambda i: (k + 1 - i) ** 2
    raw = [by_kind[kind](i) for i in range(1, k + 1)]
    return [one / sum(raw) for one in raw]


def degrees(attention: torch.Tensor) -> torch.Tensor:
    """Normalise the attention on each image's patches to a_i of Eq. 5.

    Args:
        attention: (I, m), not negative.

    Returns:
        (I, m) in float32 at least, without a graph; each row sums to 1. A row whose sum is not above `EPS` becomes
        1 / m, because no text looks at that image.
    """
    attention = at_least_float32(attention.detach())
    # Eq. 5: a_i is the share of patch i in the attention that its image gets.
    total = attention.sum(-1, keepdim=True)
    return torch.where(total > EPS, attention / total.clamp_min(EPS), 1 / max(attention.shape[-1], 1))


def image_weights(images_of: Sequence[int] | torch.Tensor) -> torch.Tensor:
    """Compute what each image counts in a batch.

    The mean is first over a sample's images, then over the samples that have any.

    Args:
        images_of: the sample (0 to B - 1) of each of I images.

    Returns:
        float32 (I,), on the device of `images_of`; its sum is 1.
    """
    samples = torch.as_tensor(images_of, dtype=torch.int64)
    # 1 / (images of the sample * samples with images)
    _, which, counts = samples.unique(return_inverse=True, return_counts=True)
    weights: torch.Tensor = 1.0 / (counts[which] * len(counts))
    return weights


class LayerRecorder:
    """The supervision that one run of the LLM gives.

    Read it when the LLM has run. Nothing here has a graph.
    """

    def __init__(
        self,
        columns: torch.Tensor,
        weights: list[float],
        basic: Basic,
        length: float | torch.Tensor | None,
        lens: Lens | None = None,
    ) -> None:
        self._at = columns.flatten().nonzero().squeeze(1)
        self._waiting = dict(enumerate(weights, 1))
        self._basic, self._length, self._lens = basic, length, lens
        self._sum: torch.Tensor | None = None
        self.attention_recording: AttentionRecording | None = None

    def layer(self, number: int, hidden: torch.Tensor) -> None:
        """Add the output of the layer `number`, from 1, (B, L, d), to the sum of Eq. 4."""
        weight = self._waiting.pop(number, None)
        if weight is None:  # gradient checkpointing computes a layer twice
            return
        with torch.no_grad():
            # Eq. 4: V^ = sum_i w_i H_i at the visual tokens, summed in float32 at least.
            visual = at_least_float32(hidden.flatten(0, 1)[self._at])
            if self._lens is not None:
                visual = self._lens(number - 1, visual)
            if self._basic.normalise == "unit":
                visual = F.normalize(visual, dim=-1)  # later layers' longer tokens would outweigh their w_i
            self._sum = weight * visual if self._sum is None else self._sum.add_(visual, alpha=weight)

    @cached_property
    def refined(self) -> torch.Tensor:
        """V^ of Eq. 4, (T, d), in the order of `columns.nonzero()`; float32, or float64 if the model is."""
        assert self._sum is not None, "the LLM has not run since watching began"
        assert not self._waiting, f"the layers {sorted(self._waiting)} did not run"
        # With `normalise: unit` the layers were summed at length 1; this brings back the length of embeddings.
        refined = self._sum if self._length is None else self._sum * self._length
        if self._basic.outliers:
            refined = refined.clone()
            # The dimensions of the largest mean square over the batch
            refined[:, refined.square().mean(0).topk(self._basic.outliers).indices] = 0
        return refined

    @cached_property
    def attention(self) -> torch.Tensor:
        """The attention of Eq. 5 before `degrees` normalises it, (T,); float32, or float64 if the model is.

        With `degree: equal` it is all ones.
        """
        if self.attention_recording is None:
            return torch.ones(len(self._at), device=self._at.device)
        return self.attention_recording.attention.flatten()[self._at]


class Supervision:
    """Watches how the first k layers of an LLM refine visual tokens.

    Args:
        llm: a base decoder such as `LlamaModel`, the `language_model` of a LLaVA. With `degree: auto` its attention
            is read; see `AttentionTap`.
        basic: k, the weights, and what is done to V^.
        lens: the maps that each layer's visual tokens go through before the sum; None if `basic.lens` is "none".

    Attributes:
        k: the number of layers watched, see `layers_of`.
        lens: the lens that was given.
        needs_length: whether `watching` must be given a length.
        needs_padding: whether it must be told what is padding.

    Raises:
        UserError: the LLM has fewer layers than k, a width of no more than `basic.outliers`, or attention that cannot
            be read.
    """

    def __init__(self, llm: PreTrainedModel, basic: Basic, lens: Lens | None = None) -> None:
        assert (lens is None) == (basic.lens == "none"), basic.lens
        self._llm, self._basic = cast("Any", llm), basic
        self.lens = lens
        width = self._llm.config.hidden_size
        self.k = layers_of(basic, llm)
        if basic.outliers >= width:
            raise UserError(f"loss.basic.outliers: {basic.outliers}, but the LLM has only {width} dimensions; set less")
        self.needs_length = basic.normalise == "unit"
        self._weights = layer_weights(basic.layer_weights, self.k)
        self.needs_padding = basic.degree == "auto"
        self._tap = AttentionTap(llm, self.k) if self.needs_padding else None

    @contextmanager
    def watching(
        self,
        columns: torch.Tensor,
        rows: torch.Tensor,
        valid: torch.Tensor,
        *,
        length: float | torch.Tensor | None = None,
    ) -> Iterator[LayerRecorder]:
        """Watch the one run of the LLM inside this block.

        Args:
            columns: bool (B, L), the visual tokens.
            rows: bool (B, L), the text tokens whose attention counts. If the LLM is causal, those before an image have
                no attention on it.
            valid: bool (B, L), False for padding.
            length: the mean length of the LLM's embeddings; with `normalise: unit` V^ is multiplied by it.
        """
        assert length is not None or not self.needs_length, "normalise: unit needs a length"
        recorder = LayerRecorder(columns, self._weights, self._basic, length if self.needs_length else None, self.lens)
        with ExitStack() as stack:
            if self._tap is not None:
                recorder.attention_recording = stack.enter_context(self._tap.open(columns, rows, valid))
            stack.enter_context(watching_layers(self._llm.layers[: self.k], recorder.layer))
            yield recorder
