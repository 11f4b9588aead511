"""Reads the tokenizer of a folder of the hub's form from whichever of its files are there."""

from pathlib import Path
from typing import Any

from tokenizers import decoders
from tokenizers.pre_tokenizers import Metaspace
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.extras import require
from trainer.hub import find_file
from trainer.pretrained import check_files, named

_WORDLESS = "{}: its tokenizer has no words; expected a tokenizer.json or tokenizer.model in it; copy the folder again"


def read_tokenizer(spec: str) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a folder or of a hub name.

    Without a tokenizer_config.json, tokenizer.json says it all: transformers would put it into the class that is usual
    for the model's type, whatever it holds. A tokenizer.model alone begins a text with its BOS unless the folder says
    otherwise, as it did until transformers 5, and with a space if SentencePiece does. If no file names an EOS,
    config.json does.

    Raises:
        UserError: it cannot be read, is code that comes with it, is not a fast one, or knows no words.
    """
    with named(spec):
        said = get_tokenizer_config(spec)
        whole = find_file(spec, "tokenizer.json")
        kind = PreTrainedTokenizerFast if whole and not said else AutoTokenizer
        alone = None if whole else find_file(spec, "tokenizer.model")
        defaults: dict[str, Any] = {"add_bos_token": True} if alone and "add_bos_token" not in said else {}
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
    if not set(tokenizer.encode("a photo", add_special_tokens=False)) - {tokenizer.unk_token_id}:
        raise UserError(_WORDLESS.format(spec))
    if tokenizer.eos_token is None:
        ends = PreTrainedConfig.get_config_dict(spec)[0].get("eos_token_id")
        end = tokenizer.convert_ids_to_tokens(ends[0] if isinstance(ends, list) else ends) if ends else None
        tokenizer.eos_token = end
    return tokenizer


def _begin_with_space(tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Puts a space before a text if the SentencePiece model does; transformers forgets it if no class says so."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.pre_tokenizer is not None:
        return
    model_pb2 = require("sentencepiece.sentencepiece_model_pb2", "train")
    if model_pb2.ModelProto.FromString(file.read_bytes()).normalizer_spec.add_dummy_prefix:
        backend.pre_tokenizer = Metaspace(prepend_scheme="first", split=False)
        if backend.decoder is not None:
            backend.decoder = decoders.Sequence([backend.decoder, decoders.Strip(" ", 1, 0)])


def _explain_tokenizer(spec: str, said: dict[str, Any], error: Exception) -> None:
    """Raises our words where transformers names another cause, or gives advice that cannot be followed here."""
    if "auto_map" in said and "trust_remote_code" in str(error):
        raise UserError(
            f"{spec}: its tokenizer comes as code (auto_map), which is never run here; add a tokenizer.json, remove "
            "auto_map from its tokenizer_config.json and set tokenizer_class to PreTrainedTokenizerFast there"
        ) from error
    folder = Path(spec)
    if folder.is_dir():
        check_files(folder)
    if "tiktoken" in str(error):  # what it tries where SentencePiece fails, and names where there is no file at all
        require("sentencepiece.sentencepiece_model_pb2", "train")  # with protobuf, and one that is new enough for it
        if not find_file(spec, "tokenizer.model"):
            raise UserError(_WORDLESS.format(spec)) from error
        raise UserError(
            f"{spec}: its tokenizer.model is damaged, or none of SentencePiece; copy it again, or add the model's "
            "tokenizer.json"
        ) from error
