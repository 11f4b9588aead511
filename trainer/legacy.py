"""A model folder as transformers 4 spells it: names of tensors, configuration, tokenizer, image processor.

Version 5 reads most of the old spelling; version 4 reads none of the new one, and what it does not find it takes from
its defaults without a word: a rope base of 10,000, weights drawn at random.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch

from sea_pipeline.errors import UserError
from trainer.weights import PROJECTOR, TOWER, Entry

VERSION = "4.57.6"
"""Of transformers 4, which the tests read exports with."""
_WITH_LEVEL = ("clip_vision_model", "siglip_vision_model")
"""Towers whose tensors have one more level in their names."""
_READ_BY_4 = (*_WITH_LEVEL, "dinov2")
_SCALED_INPUTS = ("gemma",)
"""LLMs whose inputs version 4 multiplies by sqrt(width), visual tokens included; version 5 scales words alone."""
_LONGROPE = ("short_factor", "long_factor")


def check_tower(model_type: str) -> None:
    """Refuses what transformers 4 cannot load.

    Raises:
        UserError: the tower is one of ours, whose code needs transformers 5.
    """
    if model_type not in _READ_BY_4:
        raise UserError(
            f"--compat 4: transformers 4 has no tower of the type {model_type!r}, and trainer.towers needs 5; leave "
            "--compat out, or give --llm-only or --projector-only"
        )


def scales_inputs(llm_type: str) -> bool:
    """Whether version 4 multiplies visual tokens by sqrt(width) and version 5 does not."""
    return llm_type in _SCALED_INPUTS


def config(written: dict[str, Any]) -> dict[str, Any]:
    """A configuration with `torch_dtype` beside `dtype`, and `rope_theta` and `rope_scaling` beside `rope_parameters`.

    Args:
        written: `config.json` of a LLaVA or of an LLM, as version 5 writes it.

    Raises:
        UserError: the LLM has a rope for each kind of layer, which version 4 spells by model.
    """
    old = dict(written)
    for part in ("text_config", "vision_config"):
        if part in old:
            old[part] = config(old[part])
    if (dtype := old.get("dtype")) is not None:
        old["torch_dtype"] = dtype
    if isinstance(rope := old.get("rope_parameters"), dict):
        old |= _rope(rope, old["model_type"])
    return old


def _rope(rope: dict[str, Any], model_type: str) -> dict[str, Any]:
    if "rope_theta" not in rope:
        raise UserError(
            f"--compat 4: the LLM of type {model_type!r} has several ropes, {', '.join(map(str, rope))}; expected one; "
            "leave --compat out"
        )
    scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
    if model_type == "phi3" and scaling.get("rope_type") == "longrope":  # it takes these three and no more
        scaling = {"type": "longrope"} | {name: scaling[name] for name in _LONGROPE}
    old = {"rope_theta": rope["rope_theta"], "rope_scaling": scaling}
    if scaling.get("rope_type") == "default":
        old["rope_scaling"] = None
    if "partial_rotary_factor" in rope:
        old["partial_rotary_factor"] = rope["partial_rotary_factor"]
    return old


def tokenizer_config(written: dict[str, Any]) -> dict[str, Any]:
    """`tokenizer_config.json` with a class that version 4 knows; `tokenizer.json` says the rest to both."""
    old = {name: value for name, value in written.items() if name != "backend"}
    old["tokenizer_class"] = "PreTrainedTokenizerFast"
    old.setdefault(
        "model_input_names", ["input_ids", "attention_mask"]
    )  # its default adds token types, which LLMs refuse
    extra = old.pop("extra_special_tokens", None)
    if isinstance(extra, list):  # there it is a mapping of names
        old["additional_special_tokens"] = extra
    elif extra:
        old["extra_special_tokens"] = extra
    return old


def processor_configs(written: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`processor_config.json` as that file and `preprocessor_config.json`, of the image processor.

    Version 5's image processors compute as version 4's "fast" ones do, its "Pil" ones as the others, which resize a
    little differently.
    """
    image = dict(written["image_processor"])
    kind: str = image["image_processor_type"]
    kind = kind.removesuffix("Pil") if kind.endswith("Pil") else f"{kind.removesuffix('Fast')}Fast"
    image |= {"image_processor_type": kind, "processor_class": written["processor_class"]}
    return {name: value for name, value in written.items() if name != "image_processor"}, image


def entries(new: Iterable[Entry], tower: str, llm: str, width: int) -> Iterator[Entry]:
    """The tensors of a LLaVA under version 4's names, and with the values that it needs.

    An LLM that scales its inputs (Gemma) gets a projector whose last layer is divided by that scale, rounded as version
    4 rounds it in the weights' precision. In float32 the two cancel; in half precision the layer is rounded once more.
    """
    for entry in new:
        if entry.name.startswith(TOWER) and tower in _WITH_LEVEL:
            yield entry._replace(name=f"{TOWER}vision_model.{entry.name.removeprefix(TOWER)}")
        elif scales_inputs(llm) and entry.name.startswith(f"{PROJECTOR}linear_2."):
            yield entry._replace(read=partial(_divided, entry, width))
        else:
            yield entry


def _divided(entry: Entry, width: int) -> torch.Tensor:
    value = entry.read()
    scale = torch.tensor(width**0.5, dtype=value.dtype)
    return (value.float() / scale.float()).to(value.dtype)
