"""Tokenizers that SentencePiece trains, in folders as Vicuna's is: `tokenizer.model` and no tokenizer.json."""

import json
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from tests.hub_forms.sentence_piece import train_bytes
from tests.support.tiny_tokenizers import CORPUS

CODE = [
    "def f(values):\n    for value in values:\n        if value:\n            return  value  # twice\n",
    "class A:\n    def g(self):\n        pass\n\n    def h(self):\n        return   1\n",
]
TURNS = [
    "</s>", "USER", "ASSISTANT", "[INST] [/INST]", "colour", "A photo of a jay.", "double  space",
    "two   and    four spaces",
]  # fmt: skip


def sentence_piece(file: Path, **options: Any) -> sentencepiece.SentencePieceProcessor:
    """Trains a byte-pair model of a few hundred pieces with Llama's options; runs of spaces are among its pieces."""
    file.write_bytes(train_bytes([*CORPUS, *(CODE + TURNS) * 4], **{"vocab_size": 420, **options}))
    return sentencepiece.SentencePieceProcessor(model_proto=file.read_bytes())


def token(content: str) -> dict[str, Any]:
    """A special token as tokenizer_config.json of transformers 4.31 spells it."""
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"__type": "AddedToken", "content": content, **flags}


def vicuna_like(folder: Path, *, legacy: bool = False, **options: Any) -> sentencepiece.SentencePieceProcessor:
    """Writes the tokenizer of a folder as Vicuna's on the hub, with a config of a tiny Llama and no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    model = sentence_piece(folder / "tokenizer.model", **options)
    settings = {
        "add_bos_token": True, "add_eos_token": False, "bos_token": token("<s>"), "eos_token": token("</s>"),
        "unk_token": token("<unk>"), "pad_token": None, "legacy": legacy, "clean_up_tokenization_spaces": False,
        "model_max_length": 4096, "padding_side": "right", "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": model.get_piece_size(),
        "torch_dtype": "float16", "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return model


class Slow:
    """The slow twin: how transformers 4's slow tokenizer with `legacy: false` reads a text, by SentencePiece alone.

    Special tokens are looked for first. SentencePiece's space goes before the text, and before no piece between special
    tokens.
    """

    SPECIAL = ("<s>", "</s>", "<unk>")

    def __init__(self, model: sentencepiece.SentencePieceProcessor) -> None:
        proto = sentencepiece_model_pb2.ModelProto()
        proto.ParseFromString(model.serialized_model_proto())
        proto.normalizer_spec.add_dummy_prefix = False
        self._model = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())

    def __call__(self, text: str) -> list[int]:
        """Ids without BOS."""
        if not text:
            return []
        ids: list[int] = []
        rest, first = f"\u2581{text}", True
        while rest:
            places = {name: rest.find(name) for name in self.SPECIAL if name in rest}
            name = min(places, key=lambda one: places[one]) if places else ""
            before, rest = (rest[: places[name]], rest[places[name] + len(name) :]) if name else (rest, "")
            if not (first and name and before == "\u2581"):  # alone before a special token it is taken away
                ids += self._model.encode(before)
            ids += [self._model.piece_to_id(name)] if name else []
            first = False
        return ids
