"""Spell a model folder as transformers 4 does (names of tensors, configuration, tokenizer, image processor).

Version 5 and vLLM read the old spelling. Version 4 does not read the new one, and takes what it does not find from its
defaults without a word: a rope base of 10,000, weights drawn at random. So what a version would misread gets a line in
its configuration at which this version stops, see `refused_by_4` and `refused_by_5`.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from sea_pipeline.core.errors import UserError
from trainer.model.tensor_files import PROJECTOR, TOWER, Entry

VERSION = "4.57.6"
"""The version of transformers 4 with which the tests read exports."""
VLLM = "0.33.0"
"""The version of vLLM with which exports were read on a CPU, see `tests/readers`."""
SCALING_WORDS = "5.4"
"""The first version of transformers that reads the default folder of `_SCALED_INPUTS`."""
WITHOUT_LEVEL = "5.6"
"""The first version of transformers that reads 5's own names of `_WITH_LEVEL`. Earlier ones draw a tower at random."""
CONVERTING_NESTED = "5.4"
"""The first version of transformers that reads an LLM of `is_converted` in a LLaVA. Earlier ones draw parts of it at
random."""
_WITH_LEVEL = ("clip_vision_model", "siglip_vision_model")
"""Towers whose tensors have one more level, `vision_model`, in version 4's names."""
_READ_BY_4 = (*_WITH_LEVEL, "dinov2")
_TESTED_BY_4 = ("llama", "mistral", "gemma", "qwen2", "phi3", "qwen3", "smollm3", "gemma3_text", "gpt_neox")
_TESTED_BY_VLLM = ("llama", "mistral", "gemma", "qwen2")
"""The types of LLMs whose exports the tests have had read."""
_SCALED_INPUTS = ("gemma", "gemma2", "vaultgemma")
"""LLMs whose inputs versions before `SCALING_WORDS` multiply by sqrt(width), visual tokens included; later ones and
vLLM scale words alone. No key was found that stops 5.0 to 5.3 and not 5.4."""
_ROTARY = ("gpt_neox", "gpt_neox_japanese")
"""LLMs whose rope version 4 reads under other keys, `rotary_emb_base` and `rotary_pct`."""
_EXPERTS = {"qwen3_moe": "num_experts"}
"""LLMs whose number of experts version 4 reads under another key than `num_local_experts`."""
_LONGROPE = ("short_factor", "long_factor")


def check_tower(model_type: str, option: str) -> None:
    """Refuse a tower that transformers 4 cannot load, with the option that asked for it.

    Raises:
        UserError: transformers 4 has no such tower, such as one of ours, whose code needs transformers 5.
    """
    if model_type not in _READ_BY_4:
        raise UserError(
            f"{option}: transformers 4 has no tower of the type {model_type!r}, and trainer.towers needs 5; leave it "
            "out, or give --llm-only or --projector-only"
        )


def scales_inputs(llm_type: str) -> bool:
    """Tell whether earlier versions multiply visual tokens by sqrt(width), see `_SCALED_INPUTS`."""
    return llm_type in _SCALED_INPUTS


def is_converted(llm_type: str) -> bool:
    """Tell whether transformers 5 reads weights that have another layout in files, such as experts' own tensors."""
    return bool(get_checkpoint_conversion_mapping(llm_type))


def refused_by_4(written: dict[str, Any], line: str) -> dict[str, Any]:
    """Return a configuration that makes version 4 stop with `line` in its error.

    It converts the keys of `pruned_heads` to numbers, which fails on text.
    """
    return written | {"pruned_heads": {line: []}}


def refused_by_5(written: dict[str, Any], line: str) -> dict[str, Any]:
    """Return a LLaVA's configuration that makes version 5.4 and vLLM stop with `line` in their error.

    Version 5.4 and newer ones check types, and `image_seq_length` must be a number.
    """
    return written | {"image_seq_length": line}


def can_spell_ropes(written: dict[str, Any]) -> bool:
    """Tell whether version 4's configuration can express the ropes.

    Version 4 spells several ropes differently for each model; Gemma 3's are known.
    """
    parts = (written, written.get("text_config", {}))
    return all(
        "rope_theta" in part["rope_parameters"] or _has_gemma3_ropes(part)
        for part in parts
        if part.get("rope_parameters")
    )


def _has_gemma3_ropes(part: dict[str, Any]) -> bool:
    """Tell whether a part has Gemma 3's two ropes, of which the one of windows is not scaled."""
    rope = part["rope_parameters"]
    local = rope.get("sliding_attention") or {}
    known = part.get("model_type") == "gemma3_text" and rope.keys() == {"full_attention", "sliding_attention"}
    return known and local.get("rope_type", "default") == "default"


def readers(written: dict[str, Any], *, by_4: bool, by_others: bool, names: int | None) -> str:
    """Name the libraries that read a folder with this configuration, as a line for people.

    Args:
        written: the folder's configuration.
        by_4: whether transformers 4 reads it, provided that it knows the tower.
        by_others: whether the newest transformers 5 and vLLM read it.
        names: the version of the names that was asked for. vLLM reads only 4's names of a tower, and no linear
            projector.
    """
    tower = written.get("vision_config", {}).get("model_type")
    llm = written.get("text_config", written).get("model_type")
    mapped = written.get("projector_hidden_act") != "linear"
    found = []
    if by_others:
        levelled = names == 5 and tower in _WITH_LEVEL
        scaled, converted = (tower is not None and kind(llm) for kind in (scales_inputs, is_converted))
        needed = ((WITHOUT_LEVEL, levelled), (SCALING_WORDS, scaled), (CONVERTING_NESTED, converted))  # latest first
        first = next((version for version, needs in needed if needs), None)
        found.append(f"transformers {first} or newer" if first else "transformers 5")
    if by_4 and tower in (None, *_READ_BY_4):
        found.append(f"transformers 4 ({_tested(VERSION, llm in _TESTED_BY_4)})")
    if not by_others:
        found.append(f"transformers 5 before {SCALING_WORDS}")
    if by_others and (tower is None or (tower in _WITH_LEVEL and names != 5 and mapped)):
        found.append(f"vLLM ({_tested(VLLM, llm in _TESTED_BY_VLLM and tower is not None)})")
    return ", ".join(found)


def _tested(version: str, was: bool) -> str:
    return f"tested: {version}" if was else "not tested with such an export"


def config(written: dict[str, Any]) -> dict[str, Any]:
    """Add version 4's keys to a configuration.

    These are `torch_dtype` next to `dtype`, `rope_theta` and `rope_scaling` next to `rope_parameters`, and the key of
    `_EXPERTS` next to `num_local_experts`.

    Args:
        written: `config.json` of a LLaVA or of an LLM, as version 5 writes it.

    Raises:
        UserError: the LLM has several ropes, which version 4 spells differently for each model.
    """
    old = dict(written)
    for part in ("text_config", "vision_config"):
        if part in old:
            old[part] = config(old[part])
    if (dtype := old.get("dtype")) is not None:
        old["torch_dtype"] = dtype
    if (experts := _EXPERTS.get(old.get("model_type", ""))) and "num_local_experts" in old:
        old[experts] = old["num_local_experts"]
    if rope := old.get("rope_parameters"):
        if _has_gemma3_ropes(old):
            local = {"rope_local_base_freq": rope["sliding_attention"]["rope_theta"]}
            old |= _rope(rope["full_attention"], old["model_type"]) | local
        else:
            old |= _rope(rope, old["model_type"])
    return old


def _rope(rope: dict[str, Any], model_type: str) -> dict[str, Any]:
    if "rope_theta" not in rope:
        raise UserError(
            f"--names 4: the LLM of type {model_type!r} has several ropes, {', '.join(map(str, rope))}; expected one; "
            "leave it out"
        )
    scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
    if model_type == "phi3" and scaling.get("rope_type") == "longrope":  # version 4 refuses other keys for it
        scaling = {"type": "longrope"} | {name: scaling[name] for name in _LONGROPE}
    old = {"rope_theta": rope["rope_theta"], "rope_scaling": scaling}
    if scaling.get("rope_type") == "default":
        old["rope_scaling"] = None
    if "partial_rotary_factor" in rope:
        old["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if model_type in _ROTARY:
        old |= {"rotary_emb_base": old["rope_theta"], "rotary_pct": rope["partial_rotary_factor"]}
    return old


def tokenizer_config(written: dict[str, Any]) -> dict[str, Any]:
    """Rewrite `tokenizer_config.json` with a class that version 4 knows.

    Both versions read the rest from `tokenizer.json`.
    """
    old = {name: value for name, value in written.items() if name != "backend"}
    old["tokenizer_class"] = "PreTrainedTokenizerFast"
    old.setdefault(
        "model_input_names", ["input_ids", "attention_mask"]
    )  # the default of version 4 adds token types, which LLMs refuse
    extra = old.pop("extra_special_tokens", None)
    if isinstance(extra, list):  # in version 4 it is a mapping of names
        old["additional_special_tokens"] = extra
    elif extra:
        old["extra_special_tokens"] = extra
    return old


def processor_configs(written: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split `processor_config.json` into that file and `preprocessor_config.json` of the image processor.

    Version 5's image processors compute as version 4's "fast" ones do. Its "Pil" ones compute as version 4's others,
    which resize a little differently.
    """
    image = dict(written["image_processor"])
    kind: str = image["image_processor_type"]
    kind = kind.removesuffix("Pil") if kind.endswith("Pil") else f"{kind.removesuffix('Fast')}Fast"
    image |= {"image_processor_type": kind, "processor_class": written["processor_class"]}
    return {name: value for name, value in written.items() if name != "image_processor"}, image


def renamed(new: Iterable[Entry], tower: str) -> Iterator[Entry]:
    """Yield the tensors of a LLaVA under version 4's names."""
    for entry in new:
        if entry.name.startswith(TOWER) and tower in _WITH_LEVEL:
            yield entry._replace(name=f"{TOWER}vision_model.{entry.name.removeprefix(TOWER)}")
        else:
            yield entry


def rescaled(given: Iterable[Entry], width: int) -> Iterator[Entry]:
    """Yield the tensors of a LLaVA with the projector's last layer divided by sqrt(width).

    This is for an LLM that scales its inputs. The divisor is rounded to the weights' precision as version 4 rounds it.
    In float32 division and multiplication cancel; in half precision the layer is rounded once more.
    """
    for entry in given:
        last = entry.name.startswith(f"{PROJECTOR}linear_2.")
        yield entry._replace(read=partial(_divided, entry, width)) if last else entry


def _divided(entry: Entry, width: int) -> torch.Tensor:
    value = entry.read()
    scale = torch.tensor(width**0.5, dtype=value.dtype)
    return (value.float() / scale.float()).to(value.dtype)
