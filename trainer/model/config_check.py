"""Checks what a model's configuration says: quantised weights are refused, and keys without a meaning dropped."""

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedConfig

from sea_pipeline.core.errors import UserError

_QUANTISED = ("quantization_config", "compression_config")
_DROPPED = (*_QUANTISED, "auto_map")
"""Of no meaning once the weights are plain numbers in a class of transformers; `auto_map` names files left behind."""


def check_plain(source: str, config: Mapping[str, Any]) -> None:
    """Refuses quantised weights, those of one part of a model included.

    Transformers reads some methods with a package of their own, leaves others out, and takes the rest for plain
    weights without a word.

    Args:
        source: the model, as a message names it.
        config: what its `config.json` holds.

    Raises:
        UserError: a method of quantisation is named anywhere in it.
    """
    for said in _found(config):
        by_bits = next((name for name in ("load_in_4bit", "load_in_8bit") if said.get(name)), None)
        method = said.get("quant_method") or (by_bits and "bitsandbytes") or "by a method without a name"
        raise UserError(
            f"{source}: its config.json says that its weights are quantised ({method}); expected plain ones: give the "
            "model that it was made from, or dequantise it with the package that quantised it and save it again"
        )


def _found(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            if name in _QUANTISED and value:
                yield value
            yield from _found(value)


def drop_leftovers(config: PreTrainedConfig) -> None:
    """Removes from a configuration and its parts what a folder that is made of them must not say."""
    for name in _DROPPED:
        vars(config).pop(name, None)
    for part in vars(config).values():
        if isinstance(part, PreTrainedConfig):
            drop_leftovers(part)
