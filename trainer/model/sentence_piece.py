"""Compares a tokenizer with its own SentencePiece model or tokenizer.json, and mends it.

transformers converts a SentencePiece model (`tokenizer.model`) to byte-pair merges, and rebuilds a `tokenizer.json` by
the rules of a tokenizer class. Either may change ids, and then the LLM reads other tokens than it was trained on.
`piece_model` writes such a model again. Without it llama.cpp's converter finds no tokenizer for Gemma, and no order of
merges for Llama.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.core.extras import require
from sea_pipeline.inputs.wordlists import load_wordlist
from trainer.model.hub import PIECES, find_file, find_pieces
from trainer.model.tokenise import adds_space, tokenise

TEXTS = (
    "Two  spaces, 1234 and caf\u00e9: it's HERE.",
    *(f"{'x' * (n % 2)}{' ' * n}y{' ' * n}" for n in range(1, 34)),
    "def f(values):\n    for value in values:\n        if value > 0:\n            yield value  # twice\n",
    "#include <stdio.h>\nint main(void)\n{\n\tint i;\n\tfor (i = 0; i < 10; i++)\n\t\tprintf(\"%d\\n\", i);\n}\n",
    '{"a": [1, 2.5e-3, null], "b": {"c": "\\u00e9"}}\r\n<p class="x">1 &lt; 2</p>\n\n\n| a | b |\n|---|---|\n',
    "https://example.org/a_b?c=%20d&e=f#g, a.b@example.org, C:\\dir\\file.txt, $\\frac{a}{b}$, `x`, **y**, 0x1F600",
    "\u65e5\u672c\u8a9e\u306e\u6587\u3002\u4e2d\u6587\uff0c\u6c49\u5b57\u3002\ud55c\uad6d\uc5b4 \ubb38\uc7a5.",
    "\u0420\u0443\u0441\u0441\u043a\u0438\u0439, \u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac, \u05e2\u05d1\u05e8"
    "\u05d9\u05ea, \u0627\u0644\u0639\u0631\u0628\u064a\u0629, \u0939\u093f\u0928\u094d\u0926\u0940,"
    " \u0e44\u0e17\u0e22",
    "na\u00efve e\u0301 \ufb01 \uff26\uff35\uff2c\uff2c \u201cquotes\u201d \u2014 \u2026 \u20ac \u00bd "
    "\u03b1\u2264\u03b2 \U0001f642 \U0001f408\u200d\u2b1b \u00a0 \u3000 \u200b \ufeff \u2581 \u2581\u2581x",
    "\nline", "\tx\ty", " one", "  two", "", " ", "\n", "\u2581",
)  # fmt: skip
"""Texts with code, runs of spaces and several scripts. The packaged word list is compared, too."""

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
"""The kinds of pieces in SentencePiece's format."""


def faithful(tokenizer: PreTrainedTokenizerBase, source: str) -> PreTrainedTokenizerBase:
    """Return a tokenizer that tokenises texts as the model's own files do.

    Args:
        tokenizer: as transformers loads it from `source`.
        source: a folder, or a hub name whose files are on this machine.

    Returns:
        `tokenizer` if its ids are right. Otherwise one with SentencePiece's order of merges, or one that is the file
        `tokenizer.json` to the letter.

    Raises:
        UserError: no mending gives the ids of the model's own files; the message names a text and both ids.
    """
    written = find_file(source, "tokenizer.json")
    # Under other names the ids may be fairseq's, which the file does not say
    model = find_file(source, PIECES[0]) if written else find_pieces(source)
    pieces = _Pieces.read(model, written is None) if model else None
    if pieces is None and (written is None or _is_file(tokenizer, written)):
        return tokenizer
    texts = _texts()
    own = pieces.ids(texts) if pieces else _ids_of_json(cast("Path", written), texts)
    found = None
    for candidate in _candidates(tokenizer, pieces, written):
        theirs = _ids(candidate, texts)
        if theirs == own or (pieces is None and _plain_ids(candidate, texts) == own):
            return candidate
        different = [(text, a, b) for text, a, b in zip(texts, own, theirs, strict=True) if a != b]
        found = found or min(different, key=lambda one: len(one[0]))
    assert found is not None
    text, own_ids, their_ids = found
    raise UserError(
        f"{source}: transformers' tokenizer gives {text[:40]!r} the ids {_short(their_ids)}; "
        f"{(model or written or Path(source)).name} gives {_short(own_ids)}; copy tokenizer files that belong "
        "together, or convert the tokenizer to a tokenizer.json that gives these ids and remove "
        f"{model.name if model else PIECES[0]}"
    )


def same_tokenizer(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, *prompts: str) -> bool:
    """Check whether two tokenizers give the same ids to the texts of the comparison.

    `prompts` are compared with special tokens, too.
    """
    if tokenizer.backend_tokenizer.to_str() == other.backend_tokenizer.to_str():
        return True
    texts = _texts()
    if _ids(tokenizer, texts) != _ids(other, texts):
        return False
    return all(tokenizer.encode(prompt) == other.encode(prompt) for prompt in prompts)


def same_pieces(tokenizer: PreTrainedTokenizerBase, model: bytes) -> bool:
    """Check whether SentencePiece gives a tokenizer's ids to the texts of the comparison.

    `model` is the content of SentencePiece's file.
    """
    processor = require("sentencepiece", "train").SentencePieceProcessor()
    processor.LoadFromSerializedProto(model)
    texts = _texts()
    return _Pieces(processor).ids(texts) == _ids(tokenizer, texts)


def rebuilt(tokenizer: PreTrainedTokenizerBase, backend: Tokenizer) -> PreTrainedTokenizerFast:
    """Wrap another backend with the special tokens and options of a tokenizer.

    The backend alone decides how the result tokenises.

    transformers builds a class such as LlamaTokenizer anew from the file's vocabulary, without the file's normalizer.
    """
    options = ("model_max_length", "padding_side", "truncation_side", "clean_up_tokenization_spaces", "chat_template")
    kept = {name: value for name in options if (value := getattr(tokenizer, name, None)) is not None}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, **tokenizer.special_tokens_map, **kept)
    wrapped.name_or_path = tokenizer.name_or_path
    return wrapped


@cache
def _texts() -> list[str]:
    """Return the texts that tokenizers are compared on.

    They are `TEXTS` and all words of the packaged list, 16 in a line.
    """
    words = load_wordlist("2of12").words
    return [*TEXTS, *(" ".join(words[start : start + 16]) for start in range(0, len(words), 16))]


def _is_file(tokenizer: PreTrainedTokenizerBase, file: Path) -> bool:
    """Check whether a tokenizer is the same as its file in every part.

    Then their ids need no comparison.
    """
    return bool(Tokenizer.from_file(str(file)).to_str() == tokenizer.backend_tokenizer.to_str())


class _Pieces:
    """Tokenises with a SentencePiece model, and gives its merges."""

    def __init__(self, processor: Any) -> None:  # noqa: ANN401 - the library ships no types
        from sentencepiece import sentencepiece_model_pb2

        self._processor = processor
        proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
        proto.ParseFromString(processor.serialized_model_proto())
        self.byte_pairs = proto.trainer_spec.model_type == proto.trainer_spec.BPE
        self.scores = {piece.piece: piece.score for piece in proto.pieces}
        special = (_UNKNOWN, _CONTROL, _BYTE)
        self.merged = [piece.piece for piece in proto.pieces if piece.type not in (*special, _USER_DEFINED)]
        self.user_defined = [piece.piece for piece in proto.pieces if piece.type == _USER_DEFINED]

    @classmethod
    def read(cls, file: Path, needed: bool) -> "_Pieces | None":
        """Read a model from its file.

        Returns None if the file is of another kind (Llama 3's) and is not `needed`.
        """
        library = require("sentencepiece", "train")
        processor = library.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(file.read_bytes())
        except (RuntimeError, ValueError, OSError) as error:
            if not needed:
                return None
            raise UserError(
                f"{file}: expected a SentencePiece model; {one_line(error)}; copy the file again, or put a "
                "tokenizer.json beside it"
            ) from error
        return cls(processor)

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Tokenise texts, each as a text of its own."""
        found: list[list[int]] = self._processor.encode(texts)
        return found

    def merges(self, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
        """List the ways to put a piece together from two, in the order in which SentencePiece merges.

        That is the order of the whole's score. Among pieces with one score SentencePiece takes the leftmost first.
        Llama's runs of spaces all have one score, and grow from the left. So ways with longer left parts come first.
        """
        known = {piece for piece in self.merged if piece in vocabulary}
        ways = [
            (piece[:cut], piece[cut:])
            for piece in self.merged
            if piece in known
            for cut in range(1, len(piece))
            if piece[:cut] in known and piece[cut:] in known
        ]
        return sorted(ways, key=lambda way: (-self.scores[way[0] + way[1]], -len(way[0]), -len(way[1])))


def _candidates(
    tokenizer: PreTrainedTokenizerBase, pieces: _Pieces | None, written: Path | None
) -> Iterator[PreTrainedTokenizerBase]:
    """Yield the tokenizer, then mended ones."""
    yield tokenizer
    if written is not None:
        yield rebuilt(tokenizer, Tokenizer.from_file(str(written)))
    if pieces is None or not pieces.byte_pairs:
        return
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if state["model"]["type"] == "BPE":
        state["model"]["merges"] = [list(merge) for merge in pieces.merges(state["model"]["vocab"])]
        backend = Tokenizer.from_str(json.dumps(state))
        yield rebuilt(tokenizer, backend)
        if pieces.user_defined:
            backend.add_tokens([AddedToken(piece, normalized=True) for piece in pieces.user_defined])
            yield rebuilt(tokenizer, backend)


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return [tokens.ids for tokens in tokenise(tokenizer, texts)]


def _plain_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Tokenise without the space that SentencePiece puts before a space.

    Some files called tokenizer.json leave it out.
    """
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return found


def _ids_of_json(file: Path, texts: list[str]) -> list[list[int]]:
    backend = Tokenizer.from_file(str(file))
    backend.no_truncation()
    backend.no_padding()
    return [encoding.ids for encoding in backend.encode_batch(texts, add_special_tokens=False)]


def _short(ids: list[int]) -> str:
    return str(ids) if len(ids) <= 12 else f"{str(ids[:12])[:-1]}, ...]"


def piece_model(tokenizer: PreTrainedTokenizerBase) -> bytes | None:
    """Write a tokenizer that imitates SentencePiece as the model that it imitates.

    Returns:
        The file's content. None if SentencePiece would give other ids by it, as for byte-level tokenizers.
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
    normalizer.add_dummy_prefix = begins_with_space(tokenizer)
    written: bytes = proto.SerializeToString()
    return written if same_pieces(tokenizer, written) else None


def _pieces(state: dict[str, Any]) -> list[tuple[str, float, int]]:
    """List each token's text, score and kind, by id.

    The piece that is merged first has the highest score.
    """
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


def begins_with_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a text gets a space in front, by the tokenizer's pre-tokenizer or its normalizer."""
    first = tokenizer.convert_ids_to_tokens(tokenizer.encode("a", add_special_tokens=False))[0]
    return adds_space(tokenizer) or str(first).startswith("\u2581")
