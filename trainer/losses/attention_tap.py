"""Reads the attention of text on images (Eq. 5 of BASIC) while any attention implementation runs the LLM.

Shapes: B samples of L tokens, H heads of width w that share G heads of keys, n rows (text tokens that attend).
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sea_pipeline.core.errors import UserError
from trainer.losses.compilation import uncompiled

FAMILIES = ("llama", "mistral", "gemma", "phi3", "qwen2", "qwen3", "olmo2", "smollm3", "granite")
"""Model types whose attention is softmax(scaling * q k), causal, through transformers' `AttentionInterface`."""
DECODERS = ("qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "gemma3_text")
"""Model types of such decoders inside models with towers of their own; see `trainer.attach`."""
IMPLEMENTATIONS = ("sdpa", "eager", "flash_attention_2")
ROWS = {"cpu": 256, "gpu": 2048}
"""Rows of attention held at once, H * ROWS * L numbers. A CPU takes one sample at a time, which its cache may hold."""

_PREFIX = "sea_tap_"
_OPEN = "_sea_tap_open"
"""The key in an attention module's `__dict__` while it is tapped."""


class AttentionRecording:
    """The attention on some columns, summed while the LLM runs once."""

    def __init__(self, columns: torch.Tensor, rows: torch.Tensor, valid: torch.Tensor, layers: list[nn.Module]) -> None:
        self._columns, self._rows, self._waiting = columns, rows & valid, set(layers)
        self._sum: torch.Tensor | None = None
        self._chunks: list[_Chunk] = []

    @property
    def is_empty(self) -> bool:
        """Whether no layer has run yet."""
        return self._sum is None

    @property
    def attention(self) -> torch.Tensor:
        """The attention of the rows on each token, (B, L); float32, or float64 if the model is.

        It is the sum over layers and rows of the mean over heads, 0 outside the columns, without a graph. Read it when
        the LLM has run.
        """
        assert self._sum is not None, "the LLM has not run since the tap was opened"
        assert not self._waiting, f"{len(self._waiting)} layers ran without the tap"
        return self._sum * self._columns

    @uncompiled
    def add(
        self,
        layer: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float | None,
        window: int | None,
    ) -> None:
        """Add the attention of one layer to the sum.

        Only the layer's first call counts. `_received` and `_bias` give the shapes of the arguments.
        """
        if layer not in self._waiting:  # gradient checkpointing computes a layer twice
            return
        self._waiting.remove(layer)
        length = self._columns.shape[1]
        assert query.shape[2] == key.shape[2] == length, "the tap was opened for another length, or there is a cache"
        # The scale of softmax(scaling * q k) is 1 / sqrt(w) unless the model says otherwise.
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
            if self._sum is None:
                self._sum = query.new_zeros(self._columns.shape, dtype=_wide(query))
                self._chunks = self._cut(mask)
            for chunk in self._chunks:
                self._sum[chunk.samples, : chunk.end] += _received(query, key, mask, chunk, scaling, window)

    def _cut(self, mask: torch.Tensor | None) -> list["_Chunk"]:
        """Cut the rows into chunks, without what causality leaves out if the mask is causal."""
        if _sees_ahead(mask, self._rows):
            return list(_chunks(self._rows.cpu(), self._rows.device, self._rows.shape[1]))
        # Causality: text before all images has no attention on them.
        return list(_chunks((self._rows & (self._columns.cumsum(1) > 0)).cpu(), self._rows.device))


class _Chunk(NamedTuple):
    """The rows of b samples whose attention is computed at once."""

    samples: slice
    rows: torch.Tensor
    """int64 (b, n)."""
    there: torch.Tensor
    """bool (b, n): False for filled-up places of samples with fewer rows."""
    end: int
    """The number of first keys that the rows may attend to."""


def _sees_ahead(mask: torch.Tensor | None, rows: torch.Tensor) -> bool:
    """Tell whether any of the rows, bool (B, L), attends to a later key, as in PaliGemma's prompts."""
    if mask is None or mask.dim() != 4:
        return False
    allowed = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] > torch.finfo(mask.dtype).min
    return bool((allowed & rows.unsqueeze(-1)).triu(1).any())


def _chunks(chosen: torch.Tensor, device: torch.device, end: int | None = None) -> Iterator[_Chunk]:
    """Split the chosen rows of a batch, bool (B, L) on the CPU, into chunks on a device.

    The rows of a chunk may attend to the keys up to `end`, or by causality up to the largest row.
    """
    kind = "cpu" if device.type == "cpu" else "gpu"
    most, together = ROWS[kind], 1 if kind == "cpu" else len(chosen)  # a GPU has no use for small kernels
    for first in range(0, len(chosen), together):
        samples = slice(first, first + together)
        each = [one.nonzero().squeeze(1) for one in chosen[samples]]
        # Samples have different numbers of rows: shorter lists are filled up with row 0, which `there` leaves out.
        rows = torch.nn.utils.rnn.pad_sequence(each, batch_first=True)
        there = torch.arange(rows.shape[1]) < torch.tensor([[len(one)] for one in each])
        for part, known in zip(*(both.split(max(1, most // len(each)), 1) for both in (rows, there)), strict=True):
            if part.shape[1]:
                yield _Chunk(samples, part.to(device), known.to(device), end or int(part.max()) + 1)


class AttentionTap:
    """Reads the attention of an LLM's first layers while the LLM computes it as before.

    Inside `open` the LLM's config names a twin of its attention implementation. The twin calls the implementation, and
    computes the chosen rows of the softmax beside it, in float32 at least, without a graph. Outside of `open` the model
    has nothing of it, and so copies and pickles of the model have not either.

    Args:
        llm: a base decoder such as `LlamaModel`, the `language_model` of a LLaVA.
        layers: k of Eq. 5, 1 to the number of the LLM's layers.

    Raises:
        UserError: the model type is in neither `FAMILIES` nor `DECODERS`, or its attention not in `IMPLEMENTATIONS`.
    """

    def __init__(self, llm: PreTrainedModel, layers: int) -> None:
        self._llm, self._layers = cast("Any", llm), layers
        config = self._llm.config
        if config.model_type not in FAMILIES + DECODERS:
            raise UserError(
                f"loss.basic.degree: the attention of an LLM of the model type {config.model_type!r} cannot be read; "
                f"expected one of {', '.join(FAMILIES + DECODERS)}; set loss.basic.degree: equal"
            )
        _implementation(config)  # only for its check
        assert 1 <= layers <= len(self._llm.layers), layers
        assert all(layer.self_attn.config is config for layer in self._llm.layers)

    @contextmanager
    def open(self, columns: torch.Tensor, rows: torch.Tensor, valid: torch.Tensor) -> Iterator[AttentionRecording]:
        """Read the attention of `rows` on `columns` in the one run of the LLM inside this block.

        Args:
            columns: bool (B, L), the tokens attended to, which are the visual ones.
            rows: bool (B, L), the text tokens that attend.
            valid: bool (B, L), False for padding, whose rows never count.

        Raises:
            UserError: the LLM's attention implementation was set since, and to none of `IMPLEMENTATIONS`.
        """
        config = self._llm.config
        base, before = _implementation(config), config._attn_implementation
        layers: list[nn.Module] = [layer.self_attn for layer in self._llm.layers[: self._layers]]
        assert not any(_OPEN in layer.__dict__ for layer in layers), "the tap is open already"
        recording = AttentionRecording(columns, rows, valid, layers)
        try:
            # Not by set_attn_implementation, which takes a name with "flash" in it for a kernel to download.
            config._attn_implementation = _PREFIX + base
            for layer in layers:
                layer.__dict__[_OPEN] = recording
            yield recording
        finally:  # gradient checkpointing then computes layers again without the twin, and gets the same
            config._attn_implementation = before
            for layer in layers:
                layer.__dict__.pop(_OPEN, None)


def _implementation(config: Any) -> str:  # noqa: ANN401 - of any LLM
    """Return the name of an LLM's attention implementation, also while a tap of another LLM with this config is open.

    Raises:
        UserError: it is none of `IMPLEMENTATIONS`.
    """
    found = str(config._attn_implementation).removeprefix(_PREFIX)
    if found not in IMPLEMENTATIONS:
        raise UserError(
            f"loss.basic.degree: the LLM's attention implementation is {found!r}; expected one of "
            f"{', '.join(IMPLEMENTATIONS)}; load the model with one of them or set loss.basic.degree: equal"
        )
    return found


def _wide(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _received(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    chunk: _Chunk,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """Compute the attention that each key gets from the chunk's rows, (b, end).

    It is the mean over heads of the sum over rows. Queries are (B, H, L, w), keys (B, G, L, w).
    """
    heads, groups, wide = query.shape[1], key.shape[1], _wide(query)
    keys = key[chunk.samples, :, : chunk.end].to(wide)
    chosen = query[chunk.samples].gather(2, chunk.rows[:, None, :, None].expand(-1, heads, -1, query.shape[-1]))
    # Grouped-query attention: heads that share keys are neighbours, so they become rows of one head without copies.
    grouped = chosen.to(wide).reshape(len(keys), groups, -1, query.shape[-1])
    # scaling * q k', (b, H, n, end)
    scores = (grouped @ keys.mT).mul_(scaling).view(len(keys), heads, -1, chunk.end)
    bias = _bias(mask, chunk, window)
    # Row 0 stands for rows that are not there. It may be padding that attends to no key, whose softmax is NaN.
    bias = bias.masked_fill_(~chunk.there.unsqueeze(-1), bias.dtype == torch.bool).unsqueeze(1)
    scores = scores.masked_fill_(~bias, -torch.inf) if bias.dtype == torch.bool else scores.add_(bias)
    # The softmax is over keys up to `end`: later keys get nothing. Rows that are not there are multiplied by 0.
    received: torch.Tensor = scores.softmax(-1).mul_(chunk.there[:, None, :, None]).sum((1, 2))
    return received / heads


def _bias(mask: torch.Tensor | None, chunk: _Chunk, window: int | None) -> torch.Tensor:
    """Return which keys each row may attend to, bool (b, n, end), or what is added to its scores.

    It follows the attention's own mask. A mask (B, 1, L, L) holds everything. For flash attention, or without padding,
    the mask is None or a bool (B, L) that is False for padding. Then the attention function itself does causality and
    the sliding window, and so does this one.
    """
    if mask is not None and mask.dim() == 4:
        assert mask.shape[1] == 1, "a mask for each head"
        whole = mask[:, 0, :, : chunk.end] if len(mask) == 1 else mask[chunk.samples, 0, :, : chunk.end]
        return whole.expand(len(chunk.rows), -1, -1).gather(1, chunk.rows.unsqueeze(-1).expand(-1, -1, chunk.end))
    # No whole mask: the position of the row less that of the key; causal if not negative.
    distance = chunk.rows.unsqueeze(-1) - torch.arange(chunk.end, device=chunk.rows.device)
    allowed = distance >= 0
    if window is not None:
        allowed &= distance < window
    return allowed if mask is None else allowed & mask[chunk.samples, None, : chunk.end].bool()


def refuse_packed(samples: int, mask: torch.Tensor | None, options: Mapping[str, Any]) -> None:
    """Refuse rows of several samples, between which flash attention draws borders that no mask shows.

    Args:
        samples: B.
        mask: what the attention function is given.
        options: its other arguments, among them `cu_seq_lens_q` or `position_ids`, int64 (1, L).

    Raises:
        UserError: the rows are packed.
    """
    positions = options.get("position_ids")
    packed = options.get("cu_seq_lens_q") is not None
    if not packed and mask is None and samples == 1 and positions is not None and positions.dim() == 2:
        packed = bool((positions.diff() != 1).any())
    if packed:
        raise UserError(
            "loss.basic.degree: expected one sample in a row; found several, packed for flash_attention_2; load the "
            "model with attn_implementation='sdpa', leave packing out, or set loss.basic.degree: equal"
        )


class _OverridingView:
    """A view of an object in which some attributes have other values."""

    def __init__(self, what: object, **instead: object) -> None:
        self.__dict__.update(instead, what=what)

    def __getattr__(self, name: str) -> object:
        return getattr(self.__dict__["what"], name)


def _attend(base: str, module: nn.Module, *given: Any, **options: Any) -> Any:  # noqa: ANN401 - whatever models pass
    if base == "eager":  # each family has its own
        homes = (sys.modules[kind.__module__] for kind in type(module).__mro__)
        return next(home for home in homes if hasattr(home, "eager_attention_forward")).eager_attention_forward(
            module, *given, **options
        )
    if base == "flash_attention_2":  # fetches its kernels by the name in the config
        config = _OverridingView(module.config, _attn_implementation=base)
        return ALL_ATTENTION_FUNCTIONS[base](_OverridingView(module, config=config), *given, **options)
    return ALL_ATTENTION_FUNCTIONS[base](module, *given, **options)


def _twin(base: str) -> Callable[..., Any]:
    def attend(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        recording = module.__dict__.get(_OPEN)
        if recording is not None:
            if query.shape[1] != (heads := cast("Any", module).config.num_attention_heads):
                raise UserError(
                    f"loss.basic.degree: expected all {heads} heads of a layer; found {query.shape[1]}, as tensor "
                    "parallelism cuts them; train with DDP, ZeRO-2 or FSDP 2, or set loss.basic.degree: equal"
                )
            if base == "flash_attention_2" and recording.is_empty:
                refuse_packed(len(query), attention_mask, options)
            recording.add(module, query, key, attention_mask, options.get("scaling"), options.get("sliding_window"))
        return _attend(base, module, query, key, value, attention_mask, **options)

    return attend


for _base in IMPLEMENTATIONS:
    AttentionInterface.register(_PREFIX + _base, _twin(_base))
    AttentionMaskInterface.register(_PREFIX + _base, ALL_MASK_ATTENTION_FUNCTIONS[_base])
