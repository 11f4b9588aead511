"""A tokenizer as SentencePiece's own file, `tokenizer.model`, for programs that read no other.

llama.cpp's converter finds no tokenizer for Gemma without it, and for Llama no order of merges.
"""

import json
from typing import Any

from transformers import PreTrainedTokenizerBase

from sea_pipeline.core.extras import require
from trainer.encode import adds_space
from trainer.sentence_piece import same_pieces

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
"""Kinds of pieces in SentencePiece's format."""


def piece_model(tokenizer: PreTrainedTokenizerBase) -> bytes | None:
    """Writes a tokenizer that imitates SentencePiece down as the model that it imitates.

    Returns:
        The file's content; None if SentencePiece gives other ids by it, as for byte-level tokenizers.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if state["model"]["type"] != "BPE" or not state["model"].get("byte_fallback") or tokenizer.unk_token is None:
        return None
    model_pb2 = require("sentencepiece.sentencepiece_model_pb2", "train")
    proto = model_pb2.ModelProto()
    for text, score, kind in _pieces(state):
        proto.pieces.add(piece=text, score=score, type=kind)
    names = {
        "unk_piece": tokenizer.unk_token, "unk_id": tokenizer.unk_token_id,
        "bos_piece": tokenizer.bos_token, "bos_id": tokenizer.bos_token_id,
        "eos_piece": tokenizer.eos_token, "eos_id": tokenizer.eos_token_id,
    }  # fmt: skip
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.CopyFrom(model_pb2.TrainerSpec(**{name: value for name, value in names.items() if value is not None}))
    trainer.model_type, trainer.byte_fallback, trainer.vocab_size = trainer.BPE, True, len(proto.pieces)
    normalizer.name, normalizer.remove_extra_whitespaces = "identity", False
    normalizer.add_dummy_prefix = _begins_with_space(tokenizer)
    written: bytes = proto.SerializeToString()
    return written if same_pieces(tokenizer, written) else None


def _pieces(state: dict[str, Any]) -> list[tuple[str, float, int]]:
    """By id each token's text, its score and its kind; what is merged first has the highest score."""
    rank: dict[str, int] = {}
    for number, (left, right) in enumerate(state["model"]["merges"]):
        rank.setdefault(left + right, number)
    added = {token["id"]: token for token in state["added_tokens"]}
    texts = {number: text for text, number in state["model"]["vocab"].items()}
    texts |= {number: token["content"] for number, token in added.items()}
    pieces = []
    for number in range(max(texts) + 1):
        text = texts.get(number, f"<unused-id-{number}>")
        kind = _NORMAL
        if text == state["model"]["unk_token"]:
            kind = _UNKNOWN
        elif len(text) == 6 and text.startswith("<0x"):
            kind = _BYTE
        elif number in added or number not in texts:
            kind = _USER_DEFINED if number in added and not added[number]["special"] else _CONTROL
        pieces.append((text, -float(rank.get(text, len(rank) + number)) if kind == _NORMAL else 0.0, kind))
    return pieces


def _begins_with_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text gets a space in front, by the tokenizer's pre-tokenizer or by its normalizer."""
    first = tokenizer.convert_ids_to_tokens(tokenizer.encode("a", add_special_tokens=False))[0]
    return adds_space(tokenizer) or str(first).startswith("\u2581")
