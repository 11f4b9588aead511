"""Tiny LLMs as GGUF files, written with gguf's own writer as llama.cpp's converter writes them."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

Value = str | bool | float | list[Any]
PLACES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
}  # fmt: skip
"""GGUF's names of tensors, by transformers'."""


def place(name: str) -> str:
    """GGUF's name of a tensor."""
    module, _, kind = name.rpartition(".")
    layer = module.removeprefix("model.layers.").split(".", 1)
    return f"{PLACES[module]}.{kind}" if module in PLACES else f"blk.{layer[0]}.{PLACES[layer[1]]}.{kind}"


def write_gguf(
    file: Path,
    folder: Path,
    *,
    left_out: str | None = None,
    tensors: dict[str, np.ndarray[Any, Any]] | None = None,
    **keys: Value,
) -> Path:
    """A GGUF file of a Llama's folder in float32.

    Without the tensors whose names hold `left_out`, with other tensors, and with keys after the architecture's name,
    whose dots are written `__`.
    """
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    for key, value in keys.items():
        add(writer, f"llama.{key.replace('__', '.')}", value)
    backend = tokenizer.backend_tokenizer
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3 if word in tokenizer.all_special_tokens else 1 for word in words])
    merges = json.loads(backend.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    for name, value in load_file(folder / "model.safetensors").items():
        if left_out is None or left_out not in name:
            writer.add_tensor(place(name), _rotated(name, value.float()).numpy())
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def add(writer: gguf.GGUFWriter, key: str, value: Value) -> None:
    """Writes a key in the type that the converter has for such a value."""
    kinds: dict[type, Any] = {
        bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
        list: writer.add_array,
    }  # fmt: skip
    kinds[type(value)](key, value)


def _rotated(name: str, value: torch.Tensor) -> torch.Tensor:
    """Llama's rotated halves, interleaved as llama.cpp has them; heads are of 8."""
    if ".q_proj." in name or ".k_proj." in name:
        return value.unflatten(0, (-1, 2, 4)).transpose(1, 2).flatten(0, 2).contiguous()
    return value.contiguous()
