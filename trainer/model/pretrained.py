"""Reads configuration, weights and tokenizer of a model folder, and says in one line what is wrong with it."""

import json
import math
import os
import pickle
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from tokenizers import decoders
from tokenizers.pre_tokenizers import Metaspace
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils.peft_utils import find_adapter_config_file

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.core.extras import require
from sea_pipeline.core.near_names import nearest_name
from sea_pipeline.storage.json_files import read_json
from sea_pipeline.storage.leftovers import files_like
from trainer.model.borders import border
from trainer.model.config_check import check_plain, drop_leftovers
from trainer.model.hub import PIECES, find_file, find_pieces
from trainer.model.llava_folder import refuse_adapter
from trainer.model.tokenise import without_limits
from trainer.model.weight_files import INDEX, WHOLE

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LFS = b"version https://git-lfs"
_WEIGHTS = (WHOLE, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
"""transformers reads the first of these that exists."""
_OBJECTS = ("config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json")
_PREDICTING = ("num_nextn_predict_layers", "num_mtp_layers")
"""Keys for the number of layers behind an LLM's last that predict further tokens, which transformers leaves out."""


@contextmanager
def named(
    spec: str, what: str = "cannot be loaded", advice: str = "check the folder or the hub name"
) -> Iterator[None]:
    """Turn any error inside this block into one line that names the folder, or the file in it that is at fault."""
    with border(f"{spec}: {what}", advice, given=True):
        try:
            yield
        except UserError:
            raise
        except Exception:  # missing, unknown or damaged files end in nearly any kind
            if Path(spec).is_dir():
                check_files(Path(spec))
            raise


def load_config(spec: str) -> PreTrainedConfig:
    """Read the configuration of a folder or hub name, without the keys that a new model must not keep.

    Raises:
        UserError: there is none, it is an adapter's folder, its weights are quantised, or transformers lacks its type.
    """
    with named(spec):
        _check_there(spec)
        said, _ = PreTrainedConfig.get_config_dict(spec)
        check_plain(spec, said)
        kind = said.get("model_type")
        if kind is not None and kind not in CONFIG_MAPPING:
            code = ", and it comes with code (auto_map), which is never run here" if "auto_map" in said else ""
            raise UserError(
                f"{spec}: transformers {transformers.__version__} lacks its model type {kind!r}{code}; choose a model "
                "of a type that transformers has, such as llama or clip"
            )
        config: PreTrainedConfig = AutoConfig.from_pretrained(spec, trust_remote_code=False)
    drop_leftovers(config)
    return config


def _check_there(spec: str) -> None:
    """Refuse a spec that is neither a model folder nor a possible name on the hub."""
    folder = Path(spec)
    misspelt = "/" not in spec and bool(get_close_matches(spec, ["packaged"], cutoff=0.7))
    if not folder.exists() and (misspelt or not _HUB_NAME.fullmatch(spec)):
        raise UserError(
            f"{spec}: no such folder; expected `packaged`, a model folder, or a name on the Hugging Face hub"
            + (nearest_name(spec, ["packaged"]) if misspelt else "")
        )
    if adapter := find_adapter_config_file(spec):
        refuse_adapter(spec, Path(adapter))
    if folder.exists() and not (folder / "config.json").is_file():
        raise UserError(f"{spec}: there is no config.json in it; expected a model folder that transformers wrote")


def load_weights(kind: Any, spec: str, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:  # noqa: ANN401
    """Load a model with all its weights.

    Args:
        kind: an Auto class or a model class.
        spec: a folder, or a name on the hub.
        config: of the model; files may hold other parts, too.
        dtype: of the weights.

    Raises:
        UserError: a weight is missing, has another shape, or has no place in the model.
    """
    with named(spec):
        model, report = kind.from_pretrained(
            spec,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # otherwise its error refers to a report that it prints
            trust_remote_code=False,
        )
    check_loaded(model, report, spec)
    model.config.name_or_path = ""  # it is a path of this machine
    loaded: PreTrainedModel = model
    return loaded


def check_loaded(
    model: Any,  # noqa: ANN401 - any model
    report: dict[str, Any],
    spec: str,
    *,
    says: str = "config.json",
    instead: str | None = None,
) -> None:
    """Check that a model has got all its weights, and that all of them have a place in it.

    transformers only warns: it draws what is missing at random.

    Args:
        model: what `from_pretrained` returned.
        report: its `output_loading_info`.
        spec: the folder, hub name or file.
        says: what describes the model.
        instead: what to do, if it is no folder.

    Raises:
        UserError: a weight is missing, has another shape, or has no place in the model.
    """
    belongs = f"{says} that belongs to them"
    if extra := without_place(model, report["unexpected_keys"]):
        advice = instead or f"give plain weights (these may be quantised), with the {belongs}"
        raise UserError(f"{spec}: the model that {says} describes has no place for the weights {some(extra)}; {advice}")
    if beyond := _of_further_layers(model, report["unexpected_keys"]):
        raise UserError(
            f"{spec}: expected weights of as many layers as {says} says; found more, {some(beyond)}; "
            f"{instead or f'give the {belongs}'}"
        )
    if missing := sorted(report["missing_keys"]):
        said = getattr(model.config, "architectures", None) or []
        if missing == ["lm_head.weight"] and said and type(model).__name__ not in said:
            raise UserError(
                f"{spec}: expected an LLM with its head; found that it was saved without one, as {', '.join(said)}; "
                f"give the {type(model).__name__} that it was made from"
            )
        advice = instead or "copy the folder again"
        raise UserError(f"{spec}: {len(missing)} weights are missing, the first is {missing[0]}; {advice}")
    if mismatched := sorted(report["mismatched_keys"]):
        _, found, expected = mismatched[0]
        raise UserError(
            f"{spec}: {says} says other shapes than the weights have, {some([one[0] for one in mismatched])}: "
            f"expected {tuple(expected)}, found {tuple(found)}; {instead or f'give the {belongs}'}"
        )


def some(names: list[str]) -> str:
    """Write the first of some names, and how many more there are."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def without_place(model: Any, unexpected: Iterable[str]) -> list[str]:  # noqa: ANN401 - any model
    """Find weights that a module of the model has no place for, such as biases or scales of quantisation.

    Other unexpected tensors belong to parts that the model does not use, or are buffers that old versions kept.
    """
    part = _tower_prefix(model)
    modules = {name.removeprefix(part): module for name, module in model.named_modules() if name}
    found = []
    for key in unexpected:
        path = key.removeprefix(part).split(".")
        owners = [modules.get(".".join(path[:cut])) for cut in range(1, len(path))]
        if any(owner is not None and next(owner.parameters(recurse=False), None) is not None for owner in owners):
            found.append(key)
    return sorted(found)


def _of_further_layers(model: Any, unexpected: Iterable[str]) -> list[str]:  # noqa: ANN401 - any model
    """Find weights of layers behind the model's last, apart from those that predict further tokens."""
    part, predicting = _tower_prefix(model), max(getattr(model.config, name, None) or 0 for name in _PREDICTING)
    lists = ((name, one) for name, one in model.named_modules() if isinstance(one, nn.ModuleList))
    ends = {name.removeprefix(part): len(one) + predicting for name, one in lists}
    found = []
    for key in unexpected:
        path = key.removeprefix(part).split(".")
        there = [ends.get(".".join(path[:cut]), math.inf) for cut in range(len(path))]
        if any(name.isdecimal() and int(name) >= end for name, end in zip(path, there, strict=True)):
            found.append(key)
    return sorted(found)


def _tower_prefix(model: Any) -> str:  # noqa: ANN401 - any model
    """Return what a tower's names may begin with; beside an LLM that is another part, such as Llama 4's."""
    return "" if hasattr(model, "lm_head") else "vision_model."


def check_files(folder: Path) -> None:
    """Refuse a file that was not fetched, is missing, is damaged, or holds no JSON object where transformers needs one.

    Weights are opened but not read, and no code of a pickle runs.
    """
    weights = _weight_files(folder)
    for file in sorted({*files_like(folder, "*.json", "*.model"), *weights}):
        if not file.is_file():
            why = "a link to it is there" if file.is_symlink() else "the weights' index names it"
            raise UserError(f"{file}: is missing, and {why}; copy it again")
        with file.open("rb") as opened:
            if opened.read(len(_LFS)) == _LFS:
                raise UserError(f"{file}: is Git LFS's pointer to the file, not the file; run git lfs pull in {folder}")
    for name in _OBJECTS:
        read_json(folder / name, absent={})
    for file in weights:
        try:
            if file.suffix == ".safetensors":
                safe_open(file, framework="pt")
            else:
                with warnings.catch_warnings(action="ignore"):
                    torch.load(file, map_location="meta", weights_only=True)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{file}: is damaged, or a pickle that holds more than tensors, whose code is never run here; copy it "
                "again, or give the same weights as safetensors"
            ) from error
        except Exception as error:
            raise UserError(f"{file}: is damaged ({one_line(error)}); copy it again") from error


def _weight_files(folder: Path) -> list[Path]:
    """List the weight files that transformers reads, whether they exist or not."""
    files = [folder / name for name in _WEIGHTS]
    first = next((file for seen in (os.path.exists, os.path.lexists) for file in files if seen(file)), None)
    if first is None or first.suffix != ".json":
        return [] if first is None else [first]
    try:
        names = set(json.loads(first.read_text("utf-8"))["weight_map"].values())
        return [folder / name for name in sorted(names)]
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{first}: is damaged; copy it again") from error


_WORDLESS = "{}: its tokenizer has no words; expected a tokenizer.json or tokenizer.model in it; copy the folder again"

_UNREAD = (
    "{}: its tokenizer has no words, as transformers reads its {}; copy that file again, or add a "
    "tokenizer.json, and set tokenizer_class to PreTrainedTokenizerFast in its tokenizer_config.json"
)


def read_tokenizer(spec: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder or of a hub name.

    Without a tokenizer_config.json, tokenizer.json alone decides. transformers would load it as the class that is usual
    for the model's type, whatever it holds. A tokenizer.model alone begins a text with its BOS unless the folder says
    otherwise, as it did until transformers 5, and with a space if SentencePiece does. If no file names an EOS,
    config.json does.

    Raises:
        UserError: it cannot be read, comes as code, is not a fast one, or knows no words.
    """
    with named(spec):
        said = get_tokenizer_config(spec)
        whole = find_file(spec, "tokenizer.json")
        kind = PreTrainedTokenizerFast if whole and not said else AutoTokenizer
        alone = None if whole else find_pieces(spec)
        begins = alone is not None and alone.name == PIECES[0] and "add_bos_token" not in said
        defaults: dict[str, Any] = {"add_bos_token": True} if begins else {}
        try:
            tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(spec, trust_remote_code=False, **defaults)
        except Exception as error:
            _explain_tokenizer(spec, said, error)
            raise
        if alone:
            _begin_with_space(tokenizer, alone)
    if not tokenizer.is_fast:
        raise UserError(
            f"{spec}: its tokenizer {type(tokenizer).__name__} is not a fast one, which training needs; add a "
            "tokenizer.json to it, and set tokenizer_class to PreTrainedTokenizerFast in its tokenizer_config.json"
        )
    without_limits(tokenizer)
    if not set(tokenizer.encode("a photo", add_special_tokens=False)) - {tokenizer.unk_token_id}:
        raise UserError(_UNREAD.format(spec, alone.name) if alone else _WORDLESS.format(spec))
    if tokenizer.eos_token is None:
        ends = PreTrainedConfig.get_config_dict(spec)[0].get("eos_token_id")
        end = (ends or [None])[0] if isinstance(ends, list) else ends
        if end is not None and end >= 0:
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    return tokenizer


def _begin_with_space(tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Put a space before a text if the SentencePiece model does.

    transformers forgets it if no class says so.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.pre_tokenizer is not None:
        return
    model_pb2 = require("sentencepiece.sentencepiece_model_pb2", "train")
    if model_pb2.ModelProto.FromString(file.read_bytes()).normalizer_spec.add_dummy_prefix:
        backend.pre_tokenizer = Metaspace(prepend_scheme="first", split=False)
        if backend.decoder is not None:
            backend.decoder = decoders.Sequence([backend.decoder, decoders.Strip(" ", 1, 0)])


def _explain_tokenizer(spec: str, said: dict[str, Any], error: Exception) -> None:
    """Raise our own error if transformers names another cause, or gives advice that cannot be followed here."""
    if "auto_map" in said and "trust_remote_code" in str(error):
        raise UserError(
            f"{spec}: its tokenizer comes as code (auto_map), which is never run here; add a tokenizer.json, remove "
            "auto_map from its tokenizer_config.json and set tokenizer_class to PreTrainedTokenizerFast there"
        ) from error
    folder = Path(spec)
    if folder.is_dir():
        check_files(folder)
    if "tiktoken" in str(error):  # tried if SentencePiece fails; also named if there is no file
        require("sentencepiece.sentencepiece_model_pb2", "train")  # needs a protobuf that is new enough
        if (pieces := find_pieces(spec)) is None:
            raise UserError(_WORDLESS.format(spec)) from error
        raise UserError(
            f"{spec}: its {pieces.name} is damaged, or none of SentencePiece; copy it again, or add the model's "
            "tokenizer.json"
        ) from error
