"""microsoft/Phi-3-mini-4k-instruct as its folder on the hub is, with two layers of width 32."""

from pathlib import Path

import torch

from tests.hub_forms import sentence_piece
from tests.hub_forms.files import random_weights, write_json, write_texts, write_weights
from tests.hub_forms.llama import BOS, INNER, LAYERS, UNK, WIDTH, decoder_config
from tests.hub_forms.sentence_piece import PIECES, described, flags, token

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
    code = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    config = {"architectures": ["Phi3ForCausalLM"], "attention_dropout": 0.0, "auto_map": code, "model_type": "phi3"}
    config |= {"attention_bias": False, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "original_max_position_embeddings": 4096}
    config |= {"eos_token_id": ADDED["<|endoftext|>"], "pad_token_id": ADDED["<|endoftext|>"], "rope_scaling": None}
    config |= {"rope_theta": 10000.0, "sliding_window": 2047, "torch_dtype": "bfloat16"}
    config |= {"_name_or_path": folder.name, "transformers_version": "4.40.2"}
    write_json(folder / "config.json", decoder_config(ROWS, **config))
    ends = [ADDED["<|endoftext|>"], ADDED["<|assistant|>"], ADDED["<|end|>"]]
    ids = {"bos_token_id": 1, "eos_token_id": ends, "pad_token_id": ends[0], "transformers_version": "4.40.2"}
    write_json(folder / "generation_config.json", {"_from_model_config": True, **ids})
    names = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"}
    write_json(folder / "special_tokens_map.json", {name: flags(token(one)) for name, one in names.items()})
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
