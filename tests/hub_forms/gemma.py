"""google/gemma-2b as its folder on the hub is, with two layers of width 32."""

from pathlib import Path

import torch

from tests.hub_forms import sentence_piece
from tests.hub_forms.files import random_weights, write_json, write_texts, write_weights
from tests.hub_forms.llama import INNER, LAYERS, WIDTH, decoder_shapes
from tests.hub_forms.sentence_piece import described, flags, token

HEADS, HEAD = 2, 24
"""Of the attention, which is wider than the model, as Gemma-7B's is."""
TURNS = ("<start_of_turn>", "<end_of_turn>")
SYMBOLS = ("<mask>", *(f"<unused{n}>" for n in range(4)), *TURNS, *("\n" * n for n in range(1, 4)))
SYMBOLS += ("\u2581" * 2, "\u2581" * 3, "<table>", "</table>")


def gemma(folder: Path) -> Path:
    """bfloat16 safetensors without a head, as it is tied; SentencePiece without a space in front; a GGUF beside."""
    model = sentence_piece.train(prefix=False, ids=(3, 2, 1, 0), symbols="|".join(SYMBOLS))
    sentence_piece.write_model(folder, model)
    named = [token(one) for one in ("<pad>", "<eos>", "<bos>", "<unk>")]
    added = named + [token(one, special=one in ("<mask>", *TURNS)) for one in SYMBOLS]
    write_json(folder / "tokenizer.json", sentence_piece.tokenizer_json(model, added, split=True, bos=True))
    config = {"architectures": ["GemmaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0}
    config |= {"bos_token_id": 2, "eos_token_id": 1, "head_dim": HEAD, "hidden_act": "gelu", "hidden_size": WIDTH}
    config |= {"initializer_range": 0.02, "intermediate_size": INNER, "max_position_embeddings": 8192}
    config |= {"model_type": "gemma", "num_attention_heads": HEADS, "num_hidden_layers": LAYERS}
    config |= {"num_key_value_heads": 1, "pad_token_id": 0, "rms_norm_eps": 1e-06, "rope_scaling": None}
    config |= {"rope_theta": 10000.0, "torch_dtype": "bfloat16", "transformers_version": "4.38.0.dev0"}
    write_json(folder / "config.json", config | {"use_cache": True, "vocab_size": sentence_piece.PIECES})
    ids = {"_from_model_config": True, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    write_json(folder / "generation_config.json", ids | {"transformers_version": "4.38.0.dev0"})
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    spelled = {name: flags(token(one)) for name, one in names.items()}
    write_json(folder / "special_tokens_map.json", {"additional_special_tokens": list(TURNS), **spelled})
    first = len(named) + SYMBOLS.index(TURNS[0])
    decoder = {str(number): described(one) for number, one in enumerate(named)}
    decoder |= {str(first + number): described(token(one)) for number, one in enumerate(TURNS)}
    said = {"add_bos_token": True, "add_eos_token": False, "added_tokens_decoder": decoder, **names}
    said |= {"additional_special_tokens": list(TURNS), "clean_up_tokenization_spaces": False, "legacy": None}
    said |= {"model_max_length": 10**30, "sp_model_kwargs": {}, "spaces_between_special_tokens": False}
    said |= {"tokenizer_class": "GemmaTokenizer", "use_default_system_prompt": False}
    write_json(folder / "tokenizer_config.json", said)
    shapes = decoder_shapes(sentence_piece.PIECES, heads=HEADS, shared=1, head=HEAD, tied=True)
    write_weights(folder, random_weights(shapes, torch.bfloat16, norm=0.0), "safetensors", 2)
    write_texts(folder, "README.md", ".gitattributes")
    (folder / "gemma-2b.gguf").write_bytes(b"GGUF of another program")
    return folder
