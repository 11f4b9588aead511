"""microsoft/Phi-3-mini-4k-instruct as its folder on the hub is, with two layers of width 32."""

from pathlib import Path

import torch

from tests.hub_forms import sentence_piece
from tests.hub_forms.files import random_weights, write_json, write_texts, write_weights
from tests.hub_forms.llama import BOS, HEADS, INNER, LAYERS, UNK, WIDTH
from tests.hub_forms.sentence_piece import PIECES, described, token

ROWS = 640
"""Of the embeddings; fewer ids have tokens."""
CHAT = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
NAMES = ["endoftext", "assistant", *(f"placeholder{n}" for n in range(1, 5)), "system", "end", "placeholder5"]
NAMES += ["placeholder6", "user"]
ADDED = {f"<|{name}|>": PIECES + number for number, name in enumerate(NAMES)}
"""Ids of the tokens that the SentencePiece model lacks."""
CODE = "raise RuntimeError('code of the folder was run')\n"


def phi3(folder: Path) -> Path:
    """bfloat16 safetensors with fused projections; code in the folder though transformers has the model; added tokens.

    Of the added tokens, all but the first swallow the spaces behind them. Turns end with `<|end|>`, chats with the EOS.
    """
    model = sentence_piece.train()
    sentence_piece.write_model(folder, model)
    added = [UNK, BOS, token("</s>", rstrip=True, special=False)]
    added += [token(name, rstrip=number > PIECES) for name, number in ADDED.items()]
    write_json(folder / "tokenizer.json", sentence_piece.tokenizer_json(model, added, split=False, bos=False))
    write_json(folder / "added_tokens.json", ADDED)
    write_json(folder / "config.json", _config(folder.name))
    ends = [ADDED["<|endoftext|>"], ADDED["<|assistant|>"], ADDED["<|end|>"]]
    ids = {"bos_token_id": 1, "eos_token_id": ends, "pad_token_id": ends[0], "transformers_version": "4.40.2"}
    write_json(folder / "generation_config.json", {"_from_model_config": True, **ids})
    names = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"}
    flags = {name: described(token(one)) for name, one in names.items()}
    for one in flags.values():
        del one["special"]
    write_json(folder / "special_tokens_map.json", flags)
    numbers = [*range(3), *ADDED.values()]
    decoder = {str(number): described(one) for number, one in zip(numbers, added, strict=True)}
    said = {"add_bos_token": False, "add_eos_token": False, "added_tokens_decoder": decoder, **names}
    said |= {"chat_template": CHAT, "clean_up_tokenization_spaces": False, "legacy": False, "model_max_length": 4096}
    said |= {"padding_side": "left", "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer"}
    write_json(folder / "tokenizer_config.json", said | {"use_default_system_prompt": False})
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (ROWS, WIDTH)}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        shapes |= {
            f"{name}input_layernorm.weight": (WIDTH,),
            f"{name}mlp.down_proj.weight": (WIDTH, INNER),
            f"{name}mlp.gate_up_proj.weight": (2 * INNER, WIDTH),
            f"{name}post_attention_layernorm.weight": (WIDTH,),
            f"{name}self_attn.o_proj.weight": (WIDTH, WIDTH),
            f"{name}self_attn.qkv_proj.weight": (3 * WIDTH, WIDTH),
        }
    shapes |= {"model.norm.weight": (WIDTH,), "lm_head.weight": (ROWS, WIDTH)}
    write_weights(folder, random_weights(shapes, torch.bfloat16), "safetensors", 2)
    write_texts(folder, "README.md", "LICENSE", "NOTICE.md", "SECURITY.md", "sample_finetune.py", ".gitattributes")
    for file in ("configuration_phi3.py", "modeling_phi3.py"):
        (folder / file).write_text(CODE)
    return folder


def _config(name: str) -> dict[str, object]:
    return {
        "_name_or_path": name,
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_phi3.Phi3Config",
            "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
        },
        "bos_token_id": 1,
        "embd_pdrop": 0.0,
        "eos_token_id": ADDED["<|endoftext|>"],
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": INNER,
        "max_position_embeddings": 4096,
        "model_type": "phi3",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": HEADS,
        "original_max_position_embeddings": 4096,
        "pad_token_id": ADDED["<|endoftext|>"],
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "sliding_window": 2047,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.2",
        "use_cache": True,
        "vocab_size": ROWS,
    }
