"""Real SentencePiece models of a few hundred pieces, and the tokenizer.json that the hub holds beside them."""

import io
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from tests.support.world import COLOURS

TEXT = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions. USER: ASSISTANT:",
    f"What do you see? a photo of a patch that is {', '.join(COLOURS)}; which colour is the corner?",
    "The left half of the picture is magenta, the right half is grey or brown.",
    "A caf\u00e9 in M\u00fcnchen, with 12 345 people.",
    "Describe the image in a few words. There are 1024 of them on 17 tables, and the colours of 2 differ.",
]
CODE = [
    "def colour(patch):",
    "    for row in patch:",
    "        if row.red > row.blue:",
    '            return "red"',
    "                    # nothing",
    "    return None",
]
"""Its indentation teaches runs of spaces, which Llama's vocabulary has as pieces with scores like any other's."""
PIECES = 600
"""Of the models without symbols of their own, the 256 bytes included."""


def train_bytes(sentences: Iterable[str], **options: Any) -> bytes:
    """A SentencePiece BPE of a few hundred pieces, by Llama's options; `options` go over them.

    Runs of spaces get the score that Llama's authors gave them: what is written after one keeps its own space.
    """
    made = io.BytesIO()
    llamas = {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
        "num_threads": 1,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=made, **{**llamas, **options}
    )
    proto = sentencepiece_model_pb2.ModelProto.FromString(made.getvalue())
    for piece in proto.pieces:
        if piece.type == piece.NORMAL and set(piece.piece) == {"\u2581"}:
            piece.score = -1e9
    return bytes(proto.SerializeToString())


@cache
def train(*, prefix: bool = True, ids: tuple[int, int, int, int] = (0, 1, 2, -1), symbols: str = "") -> bytes:
    """The model of a form: byte fallback, no normalisation, digits apart.

    Args:
        prefix: whether a text gets a space in front.
        ids: of unk, bos, eos and pad; -1: there is none, and the others have Llama's names.
        symbols: further pieces that are always kept whole, with "|" between them.
    """
    unk, bos, eos, pad = ids
    names = {"pad_piece": "<pad>", "bos_piece": "<bos>", "eos_piece": "<eos>"} if pad >= 0 else {}
    names |= {"user_defined_symbols": symbols.split("|")} if symbols else {}
    numbers = {"unk_id": unk, "bos_id": bos, "eos_id": eos, "pad_id": pad}
    return train_bytes((TEXT + CODE) * 8, vocab_size=PIECES, add_dummy_prefix=prefix, **numbers, **names)


def processor(model: bytes) -> Any:
    """SentencePiece itself with this model."""
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def tokenizer_json(model: bytes, added: list[AddedToken], *, split: bool, bos: bool) -> dict[str, Any]:
    """What the hub holds beside `tokenizer.model`, in the spelling of its time: merges as "LEFT RIGHT".

    Args:
        model: the SentencePiece model; the order of its scores is the order of the merges.
        added: tokens with ids of their own, those of the model included.
        split: whether the text is cut at spaces, as Gemma's; else a space is put in front, as Llama's with `legacy`.
        bos: whether a text begins with the BOS.
    """
    pieces = processor(model)
    vocab = {pieces.id_to_piece(number): number for number in range(pieces.get_piece_size())}
    merges = [
        (piece[:cut], piece[cut:])
        for piece, number in vocab.items()
        if not (pieces.is_byte(number) or pieces.is_control(number) or pieces.is_unknown(number))
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    merges.sort(key=lambda cut: (-pieces.get_score(vocab["".join(cut)]), -len(cut[0]), -len(cut[1])))
    made = Tokenizer(BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "\u2581")
    text = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.normalizer = spaces if split else normalizers.Sequence([normalizers.Prepend("\u2581"), spaces])
    if split:
        made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence(text if split else [*text, decoders.Strip(" ", 1, 0)])
    first = (pieces.id_to_piece(pieces.bos_id()), pieces.bos_id())
    made.post_processor = TemplateProcessing(
        single=f"{first[0]}:0 $A:0" if bos else "$A:0",
        pair=f"{first[0]}:0 $A:0 {first[0]}:1 $B:1" if bos else "$A:0 $B:1",
        special_tokens=[first],
    )
    for token in added:
        made.add_special_tokens([token]) if token.special else made.add_tokens([token])
    written: dict[str, Any] = json.loads(made.to_str())
    written["model"]["merges"] = [" ".join(merge) for merge in written["model"]["merges"]]
    return written


def write_model(folder: Path, model: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)


def token(content: str, **flags: bool) -> AddedToken:
    """An added token, special unless said otherwise."""
    return AddedToken(content, normalized=False, **({"special": True} | flags))


def flags(token: AddedToken) -> dict[str, Any]:
    """As special_tokens_map.json describes a token."""
    return {name: getattr(token, name) for name in ("content", "lstrip", "normalized", "rstrip", "single_word")}


def described(token: AddedToken, *, typed: bool = False) -> dict[str, Any]:
    """As tokenizer_config.json describes it; `typed` as transformers 4.31 wrote it."""
    return {"__type": "AddedToken", **flags(token)} if typed else {**flags(token), "special": token.special}
