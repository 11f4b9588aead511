"""List the families of models that SEA and BASIC can be attached to, one line each.

Other families are refused by name.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from sea_pipeline.core.errors import UserError
from trainer.attach import pan_and_scan, tiles
from trainer.attach.tiles import Call, ImageTokens, Size


class Family(NamedTuple):
    """The way in which one family makes visual tokens."""

    projector: str
    """Path of the module that maps to the LLM's width, relative to the model that has `get_image_features`."""
    llm: str
    """Path of the decoder, relative to the same model."""
    lay: Callable[[Call, Sequence[Size | None]], list[ImageTokens]]
    """Locates visual tokens from the arguments of `get_image_features` and the images' sizes."""
    images: str | None = None
    """The argument with an entry per image; None if only tiles are counted, whose number follows from the sizes."""
    late: bool = False
    """True if the projector runs after `get_image_features`, so that its output is the visual tokens."""
    beside: tuple[str, ...] = ()
    """Other parameters of the LLM's width that train with the projector, by the beginning of their paths."""
    uncut: Callable[[Call], int | None] | None = None
    """Counts the images without `images` if none of them is cut, and gives None if some may be."""

    def count_images(self, call: Call) -> int | None:
        """Count the images of a call; None if that follows from their sizes."""
        if self.images is not None:
            return len(call.given[self.images])
        return None if self.uncut is None else self.uncut(call)


_ROWS = ("image_newline",)
_DEEPER = ("visual.deepstack_merger_list",)

FAMILIES = {
    "llava": Family("multi_modal_projector", "language_model", tiles.fixed, "pixel_values"),
    "llava_next": Family("multi_modal_projector", "language_model", tiles.anyres, "image_sizes", beside=_ROWS),
    "llava_onevision": Family("multi_modal_projector", "language_model", tiles.anyres, "image_sizes", beside=_ROWS),
    "qwen2_vl": Family("visual.merger", "language_model", tiles.merged, "image_grid_thw"),
    "qwen2_5_vl": Family("visual.merger", "language_model", tiles.merged, "image_grid_thw"),
    "qwen3_vl": Family("visual.merger", "language_model", tiles.merged, "image_grid_thw", beside=_DEEPER),
    "smolvlm": Family("connector", "text_model", tiles.split),
    "idefics3": Family("connector", "text_model", tiles.split),
    "gemma3": Family("multi_modal_projector", "language_model", pan_and_scan.scanned, uncut=pan_and_scan.unscanned),
    "paligemma": Family("multi_modal_projector", "language_model", tiles.fixed, "pixel_values"),
    "internvl": Family("multi_modal_projector", "language_model", tiles.canvas),
    "llama4": Family("multi_modal_projector", "language_model.model", tiles.padded, late=True),
}
"""The families by the `model_type` of a model's configuration."""


class Parts(NamedTuple):
    """The parts of a model."""

    name: str
    """The model type."""
    family: Family
    inner: Any
    """The model that has `get_image_features`."""
    llm: Any

    @property
    def projector(self) -> nn.Module:
        """Return the current projector, because adapters may have replaced it by a copy."""
        projector: nn.Module = self.inner.get_submodule(self.family.projector)
        return projector

    def part(self, name: str) -> str:
        """Return the part that a parameter of the model belongs to: projector, llm, lora, or vision."""
        if ".lora_" in name:
            return "lora"
        path = name.removeprefix("model.")
        if path.startswith((f"{self.family.projector}.", *self.family.beside)):
            return "projector"
        return "llm" if path.startswith((f"{self.family.llm.partition('.')[0]}.", "lm_head.")) else "vision"


def tokens_beyond(tokenizer: Any, config: Any) -> dict[int, str]:  # noqa: ANN401 - transformers'
    """Find the tokens that the LLM's embedding matrix has no row for, and say of each what is wrong and what to do.

    The image token may be one of them, because visual tokens take its place.
    """
    rows = int(config.get_text_config().vocab_size)
    return {
        number: (
            f"expected tokens of the {rows} rows of the LLM's embeddings; found {token!r}, whose id is {number}; call "
            "model.resize_token_embeddings(len(processor.tokenizer)) and save the model again"
        )
        for token, number in tokenizer.get_vocab().items()
        if number >= rows and number != config.image_token_id
    }


def check_words(tokens: torch.Tensor, tokenizer: Any, config: Any) -> None:  # noqa: ANN401 - transformers'
    """Refuse words of labels with a token that the LLM has no embedding for.

    Args:
        tokens: the words' token ids, of any shape.
        tokenizer: the LLM's.
        config: the model's.

    Raises:
        UserError: a word has one.
    """
    beyond = tokens_beyond(tokenizer, config)
    if found := beyond.keys() & tokens.unique().tolist():
        raise UserError(f"attach: a word of the labels: {beyond[min(found)]}")


def _refuse_wrapped(model: nn.Module) -> None:
    """Refuse a wrapper that holds a model of a family, such as DDP.

    Raises:
        UserError: it is one.
    """
    if _model_type(model) is not None:
        return
    for name, child in model.named_modules():
        if _model_type(child) in FAMILIES:
            raise UserError(
                f"attach: expected the model itself; found it inside of {type(model).__name__}; attach to its .{name}, "
                "and wrap it afterwards"
            )


def _model_type(model: nn.Module) -> str | None:
    return getattr(getattr(model, "config", None), "model_type", None)


def parts_of(model: nn.Module) -> Parts:
    """Find a model's parts, with or without peft's adapters around it.

    Raises:
        UserError: its family is not in `FAMILIES`, its tower has no fixed grid, or it has no LM head.
    """
    base: Any = cast("Any", model).get_base_model() if hasattr(model, "get_base_model") else model
    name = _model_type(base) or type(base).__name__
    family = FAMILIES.get(name)
    if family is None:
        _refuse_wrapped(base)
        raise UserError(
            f"attach: a model of the type {name!r}; expected one of {', '.join(FAMILIES)}; another one needs a line in "
            "trainer/attach/families.py: which module is its projector and which its LLM, and where each of its visual "
            "tokens lies in an image"
        )
    if name == "llava" and base.config.vision_config.model_type == "pixtral":
        raise UserError(
            "attach: a model of the type 'llava' with a tower 'pixtral', whose images have grids of their own; "
            "expected a tower with one grid, such as 'clip_vision_model' or 'siglip_vision_model'; choose such a model"
        )
    inner = base if family.late else getattr(base, "model", None)
    if inner is None:
        raise UserError(
            f"attach: expected a model with its LM head; found {type(base).__name__}, which has none; load it with "
            "AutoModelForImageTextToText.from_pretrained"
        )
    return Parts(name, family, inner, inner.get_submodule(family.llm))
