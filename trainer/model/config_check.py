"""Refuses quantised weights by a model's configuration, and drops keys without a meaning."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedConfig

from sea_pipeline.core.errors import UserError

_QUANTISED = ("quantization_config", "compression_config")
_DROPPED = (*_QUANTISED, "auto_map")
"""Keys without a meaning if the weights are plain and the class is of transformers. `auto_map` names absent files."""
_COARSE = re.compile(r"(torch\.)?(float[48]|u?int)")
"""The beginnings of dtypes that hold quantised weights."""


def check_plain(source: str, config: Mapping[str, Any]) -> None:
    """Refuse quantised weights, including those of one part of a model.

    transformers reads some methods with a package of their own, leaves others out, and silently takes the rest for
    plain weights.

    Args:
        source: the model's name in a message.
        config: the content of its `config.json`.

    Raises:
        UserError: it names a method of quantisation, or a dtype of quantised weights, anywhere.
    """
    for method in _methods(config):
        raise UserError(
            f"{source}: its config.json says that its weights are quantised ({method}); expected plain ones: give the "
            "model that it was made from, or dequantise it with the package that quantised it and save it again"
        )


def _methods(config: Mapping[str, Any]) -> Iterator[str]:
    for name, value in config.items():
        if name in ("dtype", "torch_dtype") and _COARSE.match(str(value)):
            yield str(value)
        if isinstance(value, Mapping):
            if name in _QUANTISED and value:
                by_bits = next((bits for bits in ("load_in_4bit", "load_in_8bit") if value.get(bits)), None)
                yield value.get("quant_method") or (by_bits and "bitsandbytes") or "by a method without a name"
            yield from _methods(value)


def drop_leftovers(config: PreTrainedConfig) -> None:
    """Remove keys from a configuration and its parts that a folder made of them must not have."""
    for name in _DROPPED:
        vars(config).pop(name, None)
    for part in vars(config).values():
        if isinstance(part, PreTrainedConfig):
            drop_leftovers(part)
