"""LLMs as GGUF files: whole and computed as they were trained, or refused in a line."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig

from tests.support.gguf_files import Value, add, write_gguf
from tests.support.refused import refused
from tests.support.sentence_piece import sentence_piece
from tests.support.tiny_models import tiny_llm
from trainer.model.gguf_check import check_said
from trainer.model.parts import load_llm, load_tokenizer, quiet

pytestmark = pytest.mark.slow
NEUTRAL: dict[str, Value] = {
    "rope__scaling__type": "none", "residual_scale": 1.0, "attention__sliding_window": 0, "attention__causal": True,
    "final_logit_softcapping": 0.0, "rope__scale_linear": 1.0, "attention__key_length": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llm(tmp_path_factory.mktemp("gguf") / "llm")


@pytest.mark.parametrize("tied", [False, True])
def test_a_whole_file_gives_the_logits_of_its_folder(tmp_path: Path, tied: bool) -> None:
    folder = tiny_llm(tmp_path / "llm", tie_word_embeddings=tied)
    ones = {"rope_freqs.weight": np.ones(4, np.float32)}
    with quiet():
        read = load_llm(str(write_gguf(tmp_path / "llm.gguf", folder, tensors=ones, **NEUTRAL)), torch.float32)
        mine = load_llm(str(folder), torch.float32)
    ids = torch.arange(9)[None]
    torch.testing.assert_close(read.model(ids).logits, mine.model(ids).logits)
    assert read.model.config.tie_word_embeddings is tied


@pytest.mark.parametrize("gone", ["layers.1.", "embed_tokens", "up_proj", "model.norm"])
def test_a_file_that_lacks_weights_is_refused(tmp_path: Path, llm: Path, gone: str) -> None:
    file = write_gguf(tmp_path / "llm.gguf", llm, left_out=gone)
    with refused("weights are missing, the first is model.", gone, "copy the file again", start=f"{file}: "), quiet():
        load_llm(str(file), torch.float32)


def test_a_part_of_a_split_file_is_refused(tmp_path: Path) -> None:
    """Those after the first do not even name their architecture."""
    file = tmp_path / "llm-00002-of-00003.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_uint16("split.count", 3)
    _finish(writer)
    first, whole = tmp_path / "llm-00001-of-00003.gguf", tmp_path / "llm.gguf"
    advice = f"is one of 3 parts of a GGUF file; join them with: llama-gguf-split --merge {first} {whole}, and give"
    with refused(advice, start=f"{file}: "):
        load_llm(str(file), torch.float32)


NO_PLACE = "has no place for the weights {}, "
SCALED = "the tensor {} is not all ones"


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        *((f"blk.0.{name}", [1] * 32, NO_PLACE) for name in ("attn_q.bias", "attn_q_norm.weight", "ffn_norm.bias")),
        ("rope_freqs.weight", [1, 1, 2, 8], SCALED),  # Llama 3.1's scaling, which is no key
    ],
)
def test_a_tensor_without_a_place_is_refused(
    tmp_path: Path, llm: Path, name: str, values: list[int], said: str
) -> None:
    file = write_gguf(tmp_path / "llm.gguf", llm, tensors={name: np.array(values, np.float32)})
    with refused(said.format(name), "folder of safetensors", start=f"{file}: "), quiet():
        load_llm(str(file), torch.float32)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope.scaling.type", "linear"),
        ("rope.scaling.type", "yarn"),
        ("rope.scale_linear", 4.0),
        ("attention.sliding_window", 64),
        ("final_logit_softcapping", 30.0),
        ("logit_scale", 0.5),
        ("residual_scale", 0.22),
        ("embedding_scale", 12.0),
        ("attention.scale", 0.1),
        ("attention.clamp_kqv", 8.0),
        ("attention.max_alibi_bias", 8.0),
        ("attention.causal", False),
        ("attention.sliding_window_pattern", [True, False]),
    ],
)
def test_a_key_that_is_left_out_is_refused(tmp_path: Path, llm: Path, key: str, value: Value) -> None:
    file = write_gguf(tmp_path / "llm.gguf", llm, **{key.replace(".", "__"): value})
    with refused("so the LLM would compute otherwise", start=f"{file}: llama.{key} is "), quiet():
        load_llm(str(file), torch.float32)


@pytest.mark.parametrize(
    ("architecture", "said", "key"),
    [
        ("gemma3", {"rope.freq_base": 1e6, "rope.freq_base_swa": 1e4, "attention.sliding_window": 512}, None),
        ("gemma3", {"rope.freq_base": 1e6, "rope.scaling.type": "linear"}, "rope.scaling.type"),
        ("gemma3", {"attention.sliding_window_pattern": 2}, "attention.sliding_window_pattern"),
        ("starcoder2", {"rope.freq_base": 1e4}, None),
        ("starcoder2", {"rope.freq_base": 1e6}, "rope.freq_base"),
        ("stablelm", {"rope.dimension_count": 2}, None),
        ("stablelm", {"rope.dimension_count": 4}, "rope.dimension_count"),
        ("nemotron", {"attention.layer_norm_epsilon": 1e-2}, "attention.layer_norm_epsilon"),
        ("qwen2", {"rope.dimension_count": 8, "attention.layer_norm_rms_epsilon": 1e-6}, None),
    ],
)
def test_other_architectures(tmp_path: Path, architecture: str, said: dict[str, Value], key: str | None) -> None:
    file = tmp_path / "llm.gguf"
    writer = gguf.GGUFWriter(file, architecture)
    sizes: dict[str, Any] = {"block_count": 6, "context_length": 64, "embedding_length": 32, "feed_forward_length": 48}
    sizes |= {"vocab_size": 8, "attention.head_count": 4, "attention.head_count_kv": 2}
    sizes |= {"attention.key_length": 8} if architecture == "gemma3" else {}
    for name, value in (sizes | said).items():
        add(writer, f"{architecture}.{name}", value)
    _finish(writer)
    reader, config = gguf.GGUFReader(file), AutoConfig.from_pretrained(tmp_path, gguf_file=file.name)
    if key is None:
        check_said(file, reader, config)
        return
    with refused("so the LLM would compute otherwise", start=f"{file}: {architecture}.{key} is "):
        check_said(file, reader, config)


@pytest.mark.parametrize("said", [None, True, False])
def test_a_space_that_the_file_has_not_is_refused(tmp_path: Path, said: bool | None) -> None:
    """transformers puts one before each text of such a tokenizer."""
    model: Any = sentence_piece(tmp_path / "tokenizer.model", add_dummy_prefix=said is not False)
    (tmp_path / "tokenizer.model").unlink()  # transformers would read it
    pieces = range(model.get_piece_size())
    writer = gguf.GGUFWriter(tmp_path / "llm.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([model.id_to_piece(one) for one in pieces])
    writer.add_token_scores([model.get_score(one) for one in pieces])
    kinds = {model.is_unknown: 2, model.is_control: 3, model.is_byte: 6}
    writer.add_token_types([next((kind for is_kind, kind in kinds.items() if is_kind(one)), 1) for one in pieces])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if said is not None:
        writer.add_add_space_prefix(said)
    _finish(writer)
    file = tmp_path / "llm.gguf"
    if said is False:
        with refused("add_space_prefix is False, and transformers puts a space", "safetensors", start=f"{file}: "):
            load_tokenizer(str(file))
        return
    assert load_tokenizer(str(file)).encode("A photo", add_special_tokens=False) == model.encode("A photo")


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
