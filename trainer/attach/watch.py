"""Watch a model, and keep what its last forward makes of images.

Nothing is left on the model afterwards. Shapes: B samples of L tokens, T visual tokens of a forward, d the LLM's width.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import update_wrapper
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from sea_pipeline.core.errors import UserError
from trainer.attach.families import Parts
from trainer.attach.tiles import Call, ImageTokens, Tile
from trainer.losses.embeddings import input_scale, llm_embeddings
from trainer.losses.supervision import LayerRecorder, Supervision
from trainer.model.fsdp import path_of_holder

_ABSENT = object()
_MARK = "_sea_attached"
"""Attribute of a replaced method, and of what wraps it: the `Watch` that replaced it."""


@dataclass
class ForwardResults:
    """The results of one forward."""

    trains: bool
    """Whether the forward ran with gradients, as generation and `torch.no_grad()` do not."""
    call: Call | None = None
    """None if the forward had no images."""
    visual: torch.Tensor | None = None
    """V, (T, d), in the order in which it enters the LLM, with its graph."""
    columns: torch.Tensor | None = None
    """bool (B, L): the columns at which V enters the LLM."""
    valid: torch.Tensor | None = None
    """bool (B, L): False for what the mask hides; None if the mask does not tell."""
    recorder: LayerRecorder | None = None
    """BASIC's supervision; None in evaluation mode, or if BASIC is off."""
    made: torch.Tensor | None = None
    """The projector's output, from which V is put together; None unless BASIC is on and the tower trains."""
    apart: torch.Tensor | None = None
    """The projector's output for an input without a graph, so that its gradient ends at the projector."""
    ids: list[str] | None = None
    """The images' names, once `Attached.loss` was given them."""

    def tiles(self, laid: Sequence[ImageTokens]) -> Iterator[list[tuple[Tile, torch.Tensor]]]:
        """Yield for each image its tiles with their visual tokens, float32 (cells, d)."""
        assert self.visual is not None
        start = 0
        for one in laid:
            places = [torch.from_numpy(tile.cells + start).to(self.visual.device) for tile in one.tiles]
            yield [(tile, self.visual[at].float()) for tile, at in zip(one.tiles, places, strict=True)]
            start += one.tokens

    def has_images(self) -> bool:
        """Tell whether the LLM saw any image, and forget those of a forward whose mask hides all of them.

        Some collators put such an image into a batch of text alone, so that all processes run the tower.
        """
        columns, valid = self.columns, self.valid
        if self.visual is None or columns is None or valid is None or valid.shape != columns.shape:
            return self.visual is not None
        if not (columns & valid).any():
            self.visual, self.columns = None, torch.zeros_like(columns)
        return self.visual is not None

    def check_text(self, named: int, *, needs_columns: bool) -> None:
        """Refuse a forward without visual tokens that is not one of text alone.

        Args:
            named: number of ids.
            needs_columns: whether to refuse inputs_embeds, which do not say where images are.

        Raises:
            UserError: the input has image tokens, or there are ids.
        """
        found = "inputs_embeds" if self.columns is None and needs_columns else None
        if self.columns is not None and self.columns.any():
            found = "image tokens in input_ids without pixel_values, as mm_encoder_outputs has them"
        if found is not None:
            raise UserError(
                f"attached: expected input_ids, and pixel_values of images; found {found}; give both, and take "
                "off hooks that replace them"
            )
        if named:
            raise UserError(
                f"attached: expected as many ids as the last forward has images, 0; found {named}; call it right after "
                "the forward with images, before generate(), and give no ids with text alone"
            )


@dataclass
class _Method:
    """A replaced method of one module, and what was in its place before."""

    module: nn.Module
    name: str
    before: object
    now: MethodType


class Watch:
    """Replace some methods of a model, on the instance alone, until `end`.

    Args:
        parts: the model's parts.
        processor: the model's processor; it is passed on in `Call`.
        supervision: makes BASIC's targets in training mode; None if its terms are off.
        vocabulary: number of the LLM's token ids that are real ones.

    Raises:
        UserError: the model is attached to already.
    """

    def __init__(self, parts: Parts, processor: Any, supervision: Supervision | None, vocabulary: int) -> None:  # noqa: ANN401
        self.parts = parts
        self.kept: ForwardResults | None = None
        self._order: torch.Tensor | None = None
        self._first = False
        self._processor = processor
        self._supervision, self._vocabulary = supervision, vocabulary
        self._given: dict[str, Any] | None = None
        self._running: ForwardResults | None = None
        self._methods: list[_Method] = []
        """Empty once it has ended."""
        self._functions: set[Callable[..., Any]] = set()
        """The functions of all methods that it ever put in place."""
        other: Watch | None = getattr(parts.inner.forward, _MARK, None)
        if other is not None and other._methods and other.parts.inner is parts.inner:
            raise UserError("attach: the model is attached to already; call detach() of that first")
        self._remove_copies()
        self._stand_in(parts.inner, "forward", self._forward)
        self._stand_in(parts.inner, "get_image_features", self._images)
        self._projector: nn.Module | None = None
        self._stand_in_projector()
        if supervision is not None:  # compiled code would not see its hooks, which come and go with each forward
            self._stand_in(parts.llm, "forward", self._decode, eager=True)

    def end(self) -> None:
        """Restore the methods that were there before."""
        for method in self._methods:
            placed = method.module.__dict__
            if placed.get(method.name) is method.now:
                del placed[method.name]
                if method.before is not _ABSENT:
                    placed[method.name] = method.before
        self._remove_copies()
        self._methods = []
        self.kept = self._running = None

    @contextmanager
    def first_forward(self) -> Iterator[None]:
        """Keep the first of several forwards with gradients within this block.

        Some trainers run a second forward for their metrics.
        """
        self.kept, self._first = None, True
        try:
            yield
        finally:
            self._first = False

    @contextmanager
    def reordered(self, order: torch.Tensor) -> Iterator[None]:
        """Let visual tokens enter the LLM in another order, int64 (T,), within this block.

        This feeds the LLM the tokens of other photos.
        """
        self._order = order
        try:
            yield
        finally:
            self._order = None

    @property
    def embed(self) -> Any:  # noqa: ANN401 - a module with a weight
        """Return the LLM's input embeddings."""
        return self.parts.inner.get_input_embeddings()

    @property
    def scale(self) -> float:
        """Return what the LLM multiplies its inputs by, see `input_scale`."""
        return input_scale(self.parts.llm)

    def refuse_cut_embeddings(self, model: nn.Module) -> None:
        """Refuse embeddings that are cut, because the terms use them after the forward.

        Args:
            model: the model that was given, for the advice.

        Raises:
            UserError: FSDP, tensor parallelism or DeepSpeed's ZeRO-3 has cut them.
        """
        weight = self.embed.weight
        if isinstance(weight, DTensor):
            path = path_of_holder(model, self.embed)
            call = f"{'.'.join(filter(None, ['model', path]))}.set_reshard_after_forward(False, recurse=False)"
            found = f"FSDP; call {call} before training, as AttachMixin does"
            if not isinstance(model.get_submodule(path), FSDPModule):
                found = "tensor parallelism; train with DDP, ZeRO-2 or FSDP 2"
        elif weight.dim() == 2 and weight.numel() and weight.untyped_storage().size():  # FSDP 1's may lack any of these
            return
        elif hasattr(weight, "ds_id"):
            found = "DeepSpeed's ZeRO-3; train with ZeRO-2, DDP or FSDP 2"
        else:
            found = "FSDP 1; use FSDP 2, torch's fully_shard, which is version 2 in transformers' fsdp_config"
        raise UserError(f"attached.loss: expected the LLM's input embeddings whole; found them cut by {found}")

    def _stand_in(self, module: nn.Module, name: str, around: Callable[..., Any], *, eager: bool = False) -> None:
        before = module.__dict__.get(name, _ABSENT)
        original = getattr(module, name)

        def method(this: nn.Module, *given: Any, **named: Any) -> Any:  # noqa: ANN401 - as the method
            if this is not module:  # a copy of the model, which is not watched
                return getattr(type(this), name)(this, *given, **named)
            if not self._methods:  # what wrapped this method may outlive the watch
                return original(*given, **named)
            return around(original, given, named)

        update_wrapper(method, original)
        signature = inspect.signature(original)
        this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        # Compiled code cannot keep results on this object. The original method, which this one calls, is compiled.
        function: Any = torch.compiler.disable(method, recursive=eager)
        function.__signature__ = signature.replace(parameters=[this, *signature.parameters.values()])
        setattr(function, _MARK, self)
        now = MethodType(function, module)
        module.__dict__[name] = now
        self._functions.add(function)
        self._methods.append(_Method(module, name, before, now))

    def _remove_copies(self) -> None:
        """Remove replaced methods that came with a copy of a module, as adapters make it, or of a whole model."""
        for module in self.parts.inner.modules():
            for name, value in list(module.__dict__.items()):
                function = getattr(value, "__func__", None)  # what wraps it has the mark, too, and stays
                watch: Watch | None = getattr(function, _MARK, None)
                if watch is not None and function in watch._functions:
                    del module.__dict__[name]

    def _stand_in_projector(self) -> None:
        """Replace the projector's method, again if adapters have put a copy in its place."""
        projector = self.parts.projector
        if projector is not self._projector and (self._supervision is not None or self.parts.family.late):
            self._projector = projector
            self._stand_in(projector, "forward", self._project)

    # The replaced methods

    def _forward(self, original: Callable[..., Any], given: Any, named: Any) -> Any:  # noqa: ANN401
        if self._running is not None or (self._first and (self.kept is not None or not torch.is_grad_enabled())):
            return original(*given, **named)
        bound = _by_name(original, given, named)
        for name in ("pixel_values_videos", "video_grid_thw"):
            if bound.get(name) is not None:
                raise UserError(
                    f"{self.parts.name}: expected images; found a video ({name}), of which nothing is labelled; leave "
                    "its rows out"
                )
        self._stand_in_projector()
        ids, mask = bound.get("input_ids"), bound.get("attention_mask")
        self._running = self.kept = kept = ForwardResults(trains=torch.is_grad_enabled())
        if ids is not None:
            kept.columns = ids == self.parts.inner.config.image_token_id
            kept.valid = _valid_tokens(mask, kept.columns)
        try:
            return original(*given, **named)
        finally:
            self._running = self._given = None

    def _images(self, original: Callable[..., Any], given: Any, named: Any) -> Any:  # noqa: ANN401
        kept = self._running
        if kept is None:
            return original(*given, **named)
        self._given = _by_name(original, given, named)
        found = original(*given, **named)
        if not self.parts.family.late:
            pooled = found.pooler_output
            entries = (
                list(pooled) if isinstance(pooled, list | tuple) else list(pooled.flatten(0, max(0, pooled.dim() - 3)))
            )
            flat = torch.cat(entries) if len(entries) > 1 else entries[0]
            self._keep(kept, flat, [len(entry) for entry in entries])
            if self._order is not None:
                found.pooler_output = _in_order(pooled, self._order)
                if (deeper := getattr(found, "deepstack_features", None)) is not None:
                    found.deepstack_features = [_in_order(one, self._order) for one in deeper]
        return found

    def _project(self, original: Callable[..., Any], given: Any, named: Any) -> Any:  # noqa: ANN401
        kept = self._running
        if kept is None or self._given is None:
            return original(*given, **named)
        features = given[0]
        if self._watching and features.requires_grad and torch.is_grad_enabled():
            # Both runs draw the same dropout, and the second one what it draws without the first.
            with torch.random.fork_rng([features.device] if features.is_cuda else []):
                kept.apart = original(features.detach(), *given[1:], **named)
        found = original(*given, **named)
        if kept.apart is not None:
            kept.made = found
        if self.parts.family.late:
            self._keep(kept, found.flatten(0, -2), [found[..., 0].numel()])
            if self._order is not None:
                return found.flatten(0, -2)[self._order].view_as(found)
        return found

    def _decode(self, original: Callable[..., Any], given: Any, named: Any) -> Any:  # noqa: ANN401
        kept = self._running
        if kept is None or kept.visual is None or not self._watching:
            return original(*given, **named)
        assert self._supervision is not None
        if kept.columns is None:
            raise UserError("das, sds: expected input_ids; found inputs_embeds, which do not say where images are")
        cache = _by_name(original, given, named).get("past_key_values")
        if cache is not None and (cached := int(cache.get_seq_length())):
            raise UserError(
                f"das, sds: expected rows that are whole; found {cached} tokens before them in past_key_values, as a "
                "cached prefix or peft's prefix tuning has them; put the prefix into input_ids, or train with LoRA"
            )
        valid = kept.valid
        if valid is None:
            if self._supervision.needs_padding:
                raise UserError(
                    "das, sds: expected an attention_mask of two dimensions; found another form, which may not tell "
                    "padding from text; give one of two, none for rows without padding, or basic={'degree': 'equal'}"
                )
            valid = torch.ones_like(kept.columns)
        if valid.shape != kept.columns.shape:
            raise UserError(
                f"das, sds: expected an attention_mask as long as the {kept.columns.shape[-1]} input_ids; found "
                f"{valid.shape[-1]}; give one of that length"
            )
        length = None
        if self._supervision.needs_length:
            length = llm_embeddings(self.embed, self._vocabulary).float().norm(dim=-1).mean() * self.scale
        with self._supervision.watching(kept.columns, valid & ~kept.columns, valid, length=length) as recorder:
            kept.recorder = recorder
            return original(*given, **named)

    @property
    def _watching(self) -> bool:
        """Tell whether BASIC's supervision is on, which it is in training mode alone.

        Generation keeps states, which the attention tap cannot read.
        """
        return self._supervision is not None and self.parts.inner.training

    def _keep(self, kept: ForwardResults, visual: torch.Tensor, counts: list[int]) -> None:
        assert self._given is not None
        kept.visual = visual
        kept.call = Call(self.parts.name, self.parts.inner, self._processor, self._given, counts)


def _valid_tokens(mask: Any, columns: torch.Tensor) -> torch.Tensor | None:  # noqa: ANN401 - any that a model takes
    """Return False for padding, bool (B, L); None if the mask does not tell.

    A mask (B, 1, L, L), a dictionary of masks, and flex attention's are such. For instance, if a last token that is
    padding attends to itself, its mask is that of text.
    """
    if mask is None:
        return torch.ones_like(columns)
    return mask.bool() if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None


def _by_name(method: Callable[..., Any], given: Any, named: Any) -> dict[str, Any]:  # noqa: ANN401
    """Map a call's arguments to their names."""
    bound = inspect.signature(method).bind_partial(*given, **named)
    kinds = bound.signature.parameters
    others = [name for name in bound.arguments if kinds[name].kind is inspect.Parameter.VAR_KEYWORD]
    found = {name: value for name, value in bound.arguments.items() if name not in others}
    return found | {name: value for other in others for name, value in bound.arguments[other].items()}


def _in_order(features: Any, order: torch.Tensor) -> Any:  # noqa: ANN401 - a tensor, or a list of them
    """Put visual tokens into another order, and keep the form in which they were given."""
    if isinstance(features, torch.Tensor):
        return features.flatten(0, -2)[order].view_as(features)
    return torch.split(torch.cat(list(features))[order], [len(one) for one in features])
