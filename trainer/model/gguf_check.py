"""Checks that transformers read all of a GGUF file that changes what its LLM computes.

It reads a list of keys for each architecture and the tensors that it has a name for, and leaves out the rest without a
word.
"""

import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase
from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from sea_pipeline.core.errors import UserError
from trainer.model.pretrained import some
from trainer.model.sentence_piece import begins_with_space

_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
_ROPE_TENSORS = re.compile(r"rope_(freqs|factors_\w+)\.weight")
"""Tensors that scale the frequencies of rope, such as those of Llama 3.1."""
INSTEAD = "give the LLM's folder of safetensors, or its name on the hub"
_SPACE = "tokenizer.ggml.add_space_prefix"
_OFF = (0, False)
_ONE = (0, 1)


class _Key(NamedTuple):
    """What a key of a GGUF file is in a config."""

    names: tuple[str, ...]
    """The config's attributes, one of which must have the key's value."""
    neutral: tuple[float, ...] = ()
    """The values with which the key changes nothing."""


_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "norm_epsilon", "norm_eps")
_KEYS = {
    "attention.layer_norm_epsilon": _Key(_EPSILONS),
    "attention.layer_norm_rms_epsilon": _Key(_EPSILONS),
    "attention.sliding_window": _Key(("sliding_window",), _OFF),
    "attention.causal": _Key(("is_causal",), (True,)),
    "attention.scale": _Key(("attention_multiplier",), _OFF),
    "attention.output_scale": _Key((), _ONE),
    "attention.temperature_scale": _Key(("attn_scale",), _OFF),
    "attention.clamp_kqv": _Key(("clip_qkv",), _OFF),
    "attention.max_alibi_bias": _Key((), _OFF),
    "attention.shared_kv_layers": _Key(("num_kv_shared_layers",), _OFF),
    "attn_logit_softcapping": _Key(("attn_logit_softcapping",), _OFF),
    "final_logit_softcapping": _Key(("final_logit_softcapping",), _OFF),
    "router_logit_softcapping": _Key(("router_logit_softcapping",), _OFF),
    "logit_scale": _Key(("logit_scale", "logits_scaling"), _ONE),
    "residual_scale": _Key(("residual_multiplier",), _ONE),
    "embedding_scale": _Key(("embedding_multiplier",), _ONE),
    "expert_weights_scale": _Key(("routed_scaling_factor",), _ONE),
    "expert_weights_norm": _Key(("norm_topk_prob",)),
}
"""Keys that change the computation, after the architecture's name; those of rope are apart."""
_SCALES = ("rope.scaling.factor", "rope.scaling.attn_factor", "rope.scale_linear")


def check_one_file(file: Path, reader: Any) -> None:  # noqa: ANN401 - gguf.GGUFReader
    """Refuse one part of a GGUF file that was split.

    Raises:
        UserError: it is one.
    """
    count = _value(reader, "split.count")
    if isinstance(count, int) and count > 1:
        first, whole = _PART.sub(r"-00001-of-\1.gguf", str(file)), _PART.sub(".gguf", str(file))
        named = whole if whole != str(file) else str(file.with_name(f"{file.stem}-whole.gguf"))
        line = shlex.join(["llama-gguf-split", "--merge", first, named])
        raise UserError(f"{file}: is one of {count} parts of a GGUF file; join them with: {line}, and give {named}")


def check_said(file: Path, reader: Any, config: Any) -> None:  # noqa: ANN401 - gguf.GGUFReader, a config
    """Refuse a file whose keys or tensors say another computation than the config that transformers made of it.

    Raises:
        UserError: they do.
    """
    for key, value, found in _left_out(reader, config):
        raise UserError(
            f"{file}: {key} is {value}, and transformers reads {found} from GGUF, so the LLM would compute otherwise "
            f"than it was trained; {INSTEAD}"
        )


def check_space(file: Path, reader: Any, tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: ANN401
    """Refuse a file that says that no space goes before a text, if its tokenizer puts one there.

    Args:
        file: the GGUF file.
        reader: the gguf.GGUFReader of it.
        tokenizer: what transformers made of it.

    Raises:
        UserError: it does.
    """
    if _value(reader, _SPACE) is False and begins_with_space(tokenizer):
        raise UserError(
            f"{file}: {_SPACE} is False, and transformers puts a space before each text, so the LLM would read other "
            f"tokens than it was trained on; {INSTEAD}"
        )


def check_places_of(file: Path, reader: Any, model: Any, unexpected: set[str]) -> None:  # noqa: ANN401
    """Refuse a file with tensors that the model has no place for.

    Args:
        file: the GGUF file.
        reader: the gguf.GGUFReader of it.
        model: the causal LM that was loaded from it.
        unexpected: what transformers found unexpected.

    Raises:
        UserError: there are some.
    """
    architecture = _value(reader, "general.architecture")
    names = {tensor.name for tensor in reader.tensors}
    if architecture in GGUF_ARCHS:
        names = unexpected
    else:  # transformers leaves them out without a word
        processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
        known = get_gguf_hf_weights_map(model, processor).keys()
        names = {name for name in names if not {name, name.removesuffix(".weight")} & known}
    if extra := sorted(name for name in names if not _ROPE_TENSORS.search(name)):
        raise UserError(
            f"{file}: transformers has no place for the weights {some(extra)}, so the LLM would compute otherwise than "
            f"it was trained; {INSTEAD}"
        )


def _left_out(reader: Any, config: Any) -> Iterator[tuple[str, Any, Any]]:  # noqa: ANN401
    """Yield the name, the value and what was read in its place, of all that differs."""
    architecture = _value(reader, "general.architecture")
    yield from _rope(reader, architecture, config)
    for key, (names, neutral) in _KEYS.items():
        value = _value(reader, f"{architecture}.{key}")
        if value is None or all(one in neutral for one in _each(value)):
            continue
        there = {name: getattr(config, name) for name in names if hasattr(config, name)}
        if not any(_same(value, one) for one in there.values()):
            yield f"{architecture}.{key}", value, ", ".join(f"{name} {one}" for name, one in there.items()) or "nothing"
    pattern = _value(reader, f"{architecture}.attention.sliding_window_pattern")
    layers = [kind == "sliding_attention" for kind in getattr(config, "layer_types", None) or []]
    if isinstance(pattern, int) and pattern:
        pattern = [number % pattern != 0 for number in range(1, len(layers) + 1)]
    if isinstance(pattern, list) and [bool(one) for one in pattern] != layers and any(pattern):
        yield f"{architecture}.attention.sliding_window_pattern", pattern, f"layer_types {layers}"


def _rope(reader: Any, architecture: str, config: Any) -> Iterator[tuple[str, Any, Any]]:  # noqa: ANN401
    """Yield what differs of the rotary embeddings."""
    ropes = _ropes(config)
    kinds = {str(rope.get("rope_type", "default")) for rope in ropes} or {"default"}
    if kinds == {"default"}:
        kind = _value(reader, f"{architecture}.rope.scaling.type")
        if kind not in (None, "", "none"):
            yield f"{architecture}.rope.scaling.type", repr(kind), "rope_type 'default'"
        for key in _SCALES:
            value = _value(reader, f"{architecture}.{key}")
            if value is not None and not any(_same(value, one) for one in _ONE):
                yield f"{architecture}.{key}", value, "rope_type 'default'"
        for tensor in reader.tensors:
            if _ROPE_TENSORS.search(tensor.name) and (tensor.data != 1).any():
                yield f"the tensor {tensor.name}", "not all ones", "rope_type 'default'"
    thetas = [rope["rope_theta"] for rope in ropes if rope.get("rope_theta") is not None]
    for key in ("rope.freq_base", "rope.freq_base_swa"):
        value = _value(reader, f"{architecture}.{key}")
        if value is not None and thetas and not any(_same(value, theta) for theta in thetas):
            yield f"{architecture}.{key}", value, f"rope_theta {thetas[0]}"
    value, widths = _value(reader, f"{architecture}.rope.dimension_count"), _rotated(config, ropes)
    if isinstance(value, int) and value and widths and value not in widths:
        yield f"{architecture}.rope.dimension_count", value, f"{min(widths)} rotated dimensions"


def _ropes(config: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    """List the config's settings of rope, one for all layers or one for each type of layers."""
    said = getattr(config, "rope_parameters", None) or {}
    nested = [one for one in said.values() if isinstance(one, dict)]
    return nested or ([said] if said else [])


def _rotated(config: Any, ropes: list[dict[str, Any]]) -> set[int]:  # noqa: ANN401
    """Return the numbers of a head's dimensions that the config has rotated; empty for a config without rope."""
    if not ropes:
        return set()
    said = [getattr(config, name, None) for name in ("head_dim", "global_head_dim")]
    heads = {head for head in said if head is not None} or {config.hidden_size // config.num_attention_heads}
    shares = {rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", 1) for rope in ropes}
    whole = getattr(config, "rotary_dim", None)
    return {int(head * share) for head in heads for share in shares} | ({whole} if isinstance(whole, int) else set())


def _value(reader: Any, key: str) -> Any:  # noqa: ANN401
    """Return a key's value, or None if the file does not have it."""
    field = reader.fields.get(key)
    return None if field is None else field.contents()


def _each(value: Any) -> list[Any]:  # noqa: ANN401
    return value if isinstance(value, list) else [value]


def _same(value: Any, other: Any) -> bool:  # noqa: ANN401
    """Compare a value of a file, which has float32, with a config's."""
    if isinstance(value, bool) or isinstance(other, bool) or not isinstance(other, int | float):
        return bool(value == other)
    return isinstance(value, int | float) and math.isclose(value, other, rel_tol=1e-5, abs_tol=1e-12)
