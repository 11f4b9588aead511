"""LLMs alone, made into GGUF files by llama.cpp's own converter, beside the exports that it was given."""

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import pytest
import torch
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sea_pipeline.core.errors import UserError
from tests.readers.by_transformers import WORDS
from tests.readers.table import LLAMA_CPP, LOGITS, NAMES, PROMPTS, TURNS, cells
from tests.support.exported import Case, Reader, grid_case, make_model
from tests.support.gguf_files import PLACES
from trainer.export.run import ExportSettings, export_model
from trainer.model.parts import load_llm
from trainer.model.sentence_piece import TEXTS, piece_model
from trainer.model.tokenise import tokenise

CONVERTER = Path(sys.prefix) / "llama.cpp" / "convert_hf_to_gguf.py"
"""Where `make .venv` puts it."""
pytestmark = pytest.mark.processes
CASES = {llm: grid_case("clip", llm) for llm in ("llama", "mistral", "gemma")}
CASES["qwen2"] = Case("clip", "qwen2", {}, speech="vicuna")
"""Of SentencePiece's kind: others are known to the converter by a hash of their ids, see `test_unknown_pieces`."""


class Converted(NamedTuple):
    root: Path
    refused: dict[str, str]

    def read(self, name: str) -> Any:
        return gguf.GGUFReader(self.root / name / "llm.gguf")

    def tokenizer(self, name: str) -> PreTrainedTokenizerBase:
        return PreTrainedTokenizerFast.from_pretrained(self.root / name / "llm")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    if not CONVERTER.is_file():
        pytest.skip("llama.cpp's converter is not there: `make .venv` installs it")
    root = tmp_path_factory.mktemp("llama-cpp")
    for name, case in {**CASES, "byte-level": grid_case("clip", "qwen2")}.items():
        model = make_model(root / name, case)
        export_model(ExportSettings.of(source=model, out=root / name / "llm", kind="llm"))
    folders = sorted(root.glob("*/llm"))
    with Reader("by_llama_cpp.py", CONVERTER, root / "refused.json", *folders, cwd=root) as reader:
        reader.wait()
    refused = json.loads((root / "refused.json").read_text())
    return Converted(root, {Path(folder).parent.name: why for folder, why in refused.items()})


def check_names(name: str, converted: Converted) -> None:
    """Every tensor is there, as llama.cpp has it: Llama's rotated halves interleaved, one added to Gemma's norms."""
    found = {tensor.name: torch.tensor(tensor.data) for tensor in converted.read(name).tensors}
    expected = {}
    for key, value in load_file(converted.root / name / "llm" / "model.safetensors").items():
        layer, _, part = re.sub(r"^model\.layers\.(\d+)\.", r"blk.\1.|", key).rpartition("|")
        module, _, kind = part.rpartition(".")
        if module in ("self_attn.q_proj", "self_attn.k_proj") and name in ("llama", "mistral"):
            value = value.unflatten(0, (-1, 2, 4)).transpose(1, 2).flatten(0, 2)  # heads of 8
        expected[f"{layer}{PLACES[module]}.{kind}"] = value + (name == "gemma" and "norm" in module)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value.float(), atol=1e-6, rtol=0)


def check_logits(name: str, converted: Converted) -> None:
    """`init --llm` reads the file back; transformers has no Gemma of the first version in GGUF."""
    file = str(converted.root / name / "llm.gguf")
    if name == "gemma":
        with pytest.raises(UserError, match="architecture gemma is not supported"):
            load_llm(file, torch.float32)
        return
    read, mine = load_llm(file, torch.float32), load_llm(str(converted.root / name / "llm"), torch.float32)
    ids = torch.tensor([mine.tokenizer(WORDS)["input_ids"]])
    assert read.tokenizer(WORDS)["input_ids"] == ids[0].tolist()
    with torch.no_grad():
        torch.testing.assert_close(read.model(ids).logits, mine.model(ids).logits, atol=1e-4, rtol=0)


def read_pieces(fields: Any, *, space: bool) -> SentencePieceProcessor:
    """SentencePiece, whose way of merging by scores llama.cpp has, from the file's own tokens."""
    told = {key: fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "scores", "token_type", "model")}
    assert told["model"] == "llama"
    proto = sentencepiece_model_pb2.ModelProto()
    for piece, score, kind in zip(told["tokens"], told["scores"], told["token_type"], strict=True):
        proto.pieces.add(piece=piece, score=score, type=kind)
    proto.trainer_spec.model_type, proto.trainer_spec.byte_fallback = proto.trainer_spec.BPE, True
    proto.normalizer_spec.name, proto.normalizer_spec.remove_extra_whitespaces = "identity", False
    proto.normalizer_spec.add_dummy_prefix = space
    return SentencePieceProcessor(model_proto=proto.SerializeToString())


def check_prompts(name: str, converted: Converted) -> None:
    """The ids of texts alone are those of training."""
    fields = converted.read(name).fields
    read, tokenizer = read_pieces(fields, space=adds_space(fields)), converted.tokenizer(name)
    for text in (WORDS, *TEXTS[:40]):
        assert [read.encode(text)] == [one.ids for one in tokenise(tokenizer, [text])]
    assert tokenizer.encode("a")[0] == tokenizer.bos_token_id
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True
    for kind in ("bos", "eos"):
        assert fields[f"tokenizer.ggml.{kind}_token_id"].contents() == getattr(tokenizer, f"{kind}_token_id")
    rows = json.loads((converted.root / name / "llm" / "config.json").read_text())["vocab_size"]
    assert read.vocab_size() == rows, "as many as the embeddings have rows"


def adds_space(fields: Any) -> bool:
    """Whether llama.cpp puts a space before a text; it does unless the file says otherwise."""
    space = fields.get("tokenizer.ggml.add_space_prefix")
    return True if space is None else bool(space.contents())


def encode_chat(fields: Any, text: str, *, space: bool) -> list[int]:
    """As llama.cpp encodes a rendered chat: what follows a special token is a text of its own, with its own space."""
    read, tokens = read_pieces(fields, space=space), fields["tokenizer.ggml.tokens"].contents()
    marks = sorted((one for one in tokens if one.startswith("<") and one in text and len(one) > 2), key=len)
    parts = re.split("|".join(f"({re.escape(mark)})" for mark in reversed(marks)), text)
    return [one for part in parts if part for one in ([tokens.index(part)] if part in marks else read.encode(part))]


CHAT = [
    {"role": "user", "content": "Is it red?"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "Sure?"},
]


@pytest.mark.parametrize(
    ("name", "turns", "space"),
    [("llama", 1, True), ("qwen2", 1, True), ("gemma", 3, False), ("mistral", 0, True)],
)
def test_the_ids_of_a_chat(name: str, turns: int, space: bool, converted: Converted) -> None:
    """Vicuna's are training's up to the second turn, Mistral's from the first token on only without the space."""
    fields, tokenizer = converted.read(name).fields, converted.tokenizer(name)
    assert adds_space(fields) is space
    same = []
    for count in (1, 3):
        text = tokenizer.apply_chat_template(CHAT[:count], tokenize=False, add_generation_prompt=True)
        bos = [] if text.startswith(tokenizer.bos_token) else [tokenizer.bos_token_id]
        ids = tokenizer.apply_chat_template(CHAT[:count], add_generation_prompt=True, return_dict=True)["input_ids"]
        same += [count] if bos + encode_chat(fields, text, space=space) == ids else []
        if name == "mistral":
            assert bos + encode_chat(fields, text, space=False) == ids
    assert max(same, default=0) == turns


def check_template(name: str, converted: Converted) -> None:
    template = converted.read(name).fields["tokenizer.chat_template"].contents()
    assert template == (converted.root / name / "llm" / "chat_template.jinja").read_text()


CHECKS = {NAMES: check_names, LOGITS: check_logits, PROMPTS: check_prompts, TURNS: check_template}


@pytest.mark.parametrize("check", [*(check for _, check in cells(LLAMA_CPP)), PROMPTS, TURNS])
@pytest.mark.parametrize("name", CASES)
def test_llama_cpp(name: str, check: str, converted: Converted) -> None:
    assert converted.refused.keys() == {"byte-level"}
    CHECKS[check](name, converted)


def test_unknown_pieces(converted: Converted) -> None:
    assert "BPE pre-tokenizer was not recognized" in converted.refused["byte-level"]
    tokenizer = converted.tokenizer("byte-level")
    assert piece_model(tokenizer) is None
    assert not (converted.root / "byte-level" / "llm" / "tokenizer.model").exists()
