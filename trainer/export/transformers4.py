"""A model folder as transformers 4 spells it: names of tensors, configuration, tokenizer, image processor.

Version 5 and vLLM read the old spelling; version 4 reads none of the new one, and what it does not find it takes from
its defaults without a word: a rope base of 10,000, weights drawn at random. So what a version would read wrongly gets a
line in its configuration that this version stops at, see `refused_by_4` and `refused_by_5`.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch

from sea_pipeline.core.errors import UserError
from trainer.model.tensor_files import PROJECTOR, TOWER, Entry

VERSION = "4.57.6"
"""Of transformers 4, which the tests read exports with."""
VLLM = "0.33.0"
"""Which was run over exports on a CPU, see `tests/readers`."""
_WITH_LEVEL = ("clip_vision_model", "siglip_vision_model")
"""Towers whose tensors have one more level in their names."""
_READ_BY_4 = (*_WITH_LEVEL, "dinov2")
_SCALED_INPUTS = ("gemma", "gemma2", "vaultgemma")
"""LLMs whose inputs version 4 multiplies by sqrt(width), visual tokens included; 5 and vLLM scale words alone."""
_LONGROPE = ("short_factor", "long_factor")


def check_tower(model_type: str) -> None:
    """Refuses what transformers 4 cannot load.

    Raises:
        UserError: the tower is one of ours, whose code needs transformers 5.
    """
    if model_type not in _READ_BY_4:
        raise UserError(
            f"--names 4: transformers 4 has no tower of the type {model_type!r}, and trainer.towers needs 5; leave it "
            "out, or give --llm-only or --projector-only"
        )


def scales_inputs(llm_type: str) -> bool:
    """Whether version 4 multiplies visual tokens by sqrt(width) and version 5 does not."""
    return llm_type in _SCALED_INPUTS


def refused_by_4(written: dict[str, Any], line: str) -> dict[str, Any]:
    """A configuration that version 4 stops at, with the line in its error: it takes these keys for numbers."""
    return written | {"pruned_heads": {line: []}}


def refused_by_5(written: dict[str, Any], line: str) -> dict[str, Any]:
    """A LLaVA's configuration that version 5, and so vLLM, stops at, with the line in its error: it checks types."""
    return written | {"image_seq_length": line}


def has_one_rope(written: dict[str, Any]) -> bool:
    """Whether version 4's configuration can say what this one does; several ropes it spells by model."""
    parts = (written, written.get("text_config", {}))
    return all("rope_theta" in part["rope_parameters"] for part in parts if part.get("rope_parameters"))


def readers(written: dict[str, Any], *, by_4: bool, by_others: bool, names: int | None) -> str:
    """The libraries that read a folder with this configuration, as a line for people.

    Args:
        written: its configuration.
        by_4: whether transformers 4 does, if it knows the tower.
        by_others: whether transformers 5 and vLLM do.
        names: that were asked for; vLLM knows no other tower's names than 4's, and no linear projector.
    """
    tower = written.get("vision_config", {}).get("model_type")
    mapped = written.get("projector_hidden_act") != "linear"
    found = ["transformers 5"] if by_others else []
    if by_4 and tower in (None, *_READ_BY_4):
        found.append(f"transformers 4 (tested: {VERSION})")
    if by_others and (tower is None or (tower in _WITH_LEVEL and names != 5 and mapped)):
        found.append(f"vLLM (tested: {VLLM})")
    return ", ".join(found)


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
            f"--names 4: the LLM of type {model_type!r} has several ropes, {', '.join(map(str, rope))}; expected one; "
            "leave it out"
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


def renamed(new: Iterable[Entry], tower: str) -> Iterator[Entry]:
    """The tensors of a LLaVA under version 4's names."""
    for entry in new:
        if entry.name.startswith(TOWER) and tower in _WITH_LEVEL:
            yield entry._replace(name=f"{TOWER}vision_model.{entry.name.removeprefix(TOWER)}")
        else:
            yield entry


def rescaled(given: Iterable[Entry], width: int) -> Iterator[Entry]:
    """The tensors of a LLaVA whose projector's last layer is divided by sqrt(width), for an LLM that scales its inputs.

    The divisor is rounded as version 4 rounds it in the weights' precision. In float32 the two cancel; in half
    precision the layer is rounded once more.
    """
    for entry in given:
        last = entry.name.startswith(f"{PROJECTOR}linear_2.")
        yield entry._replace(read=partial(_divided, entry, width)) if last else entry


def _divided(entry: Entry, width: int) -> torch.Tensor:
    value = entry.read()
    scale = torch.tensor(width**0.5, dtype=value.dtype)
    return (value.float() / scale.float()).to(value.dtype)
