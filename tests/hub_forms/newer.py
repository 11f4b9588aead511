"""Models of 2024 to 2026 as their folders on the hub are: Llama 3.2, Qwen3, Gemma 3, SmolLM3; SigLIP 2, DINO, PE-Core.

The chat templates are ours; they do what is hard about their authors': they write today's date, and put an empty
thought before the last answer alone.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, pre_tokenizers, processors
from tokenizers.models import BPE

from tests.hub_forms import gemma, sentence_piece, towers
from tests.hub_forms.files import Shapes, random_weights, write_json, write_texts, write_weights
from tests.hub_forms.llama import HEADS, INNER, LAYERS, WIDTH, decoder_shapes, learn_bytes, llama3
from tests.support.initialised import edit

ROPE = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 16,
    "rope_type": "llama3",
}
DATED_CHAT = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}'
    "{%- endif %}{{- '<|start_header_id|>system<|end_header_id|>\n\nToday: ' + date_string + '<|eot_id|>' }}"
    "{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + "
    "message['content'] | trim + '<|eot_id|>' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
THINKING_CHAT = (
    "{%- set last = namespace(user=0) %}{%- for message in messages %}{%- if message.role == 'user' %}"
    "{%- set last.user = loop.index0 %}{%- endif %}{%- endfor %}{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' }}{%- if message.role == 'assistant' and loop.index0 > last.user %}"
    "{{- '<think>\n\n</think>\n\n' }}{%- endif %}{{- message.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- if enable_thinking is defined and "
    "enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)
DATED_THINKING_CHAT = (
    "{%- set today = strftime_now('%d %B %Y') %}{{- '<|im_start|>system\nToday Date: ' + today + '<|im_end|>\n' }}"
    "{%- for message in messages %}{%- if message.role == 'user' %}{{- '<|im_start|>user\n' + message.content + "
    "'<|im_end|>\n' }}{%- elif message.role == 'assistant' %}{% generation %}{{- '<|im_start|>assistant\n"
    "<think>\n\n</think>\n' + message.content.lstrip('\n') + '<|im_end|>\n' }}{% endgeneration %}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
GEMMA3_CHAT = (
    "{{ bos_token }}{%- for message in messages %}{%- set role = 'model' if message['role'] == 'assistant' else "
    "message['role'] %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{%- endif %}"
)


def llama32(folder: Path) -> Path:
    """meta-llama/Llama-3.2-1B-Instruct: Llama 3's tokens, tied embeddings, a scaled rope, a template with the date."""
    llama3(folder)
    for file in folder.glob("model*"):
        file.unlink()
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    edit(folder / "config.json", tie_word_embeddings=True, rope_scaling=ROPE, max_position_embeddings=512, head_dim=8)
    edit(folder / "config.json", transformers_version="4.45.0.dev0")
    edit(folder / "tokenizer_config.json", chat_template=DATED_CHAT)
    shapes = decoder_shapes(vocabulary, shared=2, tied=True)
    write_weights(folder, random_weights(shapes, torch.bfloat16), "safetensors")
    return folder


def _chatml(folder: Path, template: str, *, bos: str | None) -> int:
    """Byte-level BPE with the marks of ChatML and of thoughts, no BOS in front; how many ids it has."""
    made = Tokenizer(BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    learn_bytes(made)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] + ([bos] if bos else [])
    made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    made.add_tokens([AddedToken(name, normalized=False, special=False) for name in ("<think>", "</think>")])
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    said: dict[str, Any] = {"bos_token": bos, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    said |= {"chat_template": template, "clean_up_tokenization_spaces": False, "model_max_length": 131072}
    write_json(folder / "tokenizer_config.json", said | {"tokenizer_class": "PreTrainedTokenizerFast"})
    write_texts(folder, "README.md", "LICENSE", ".gitattributes")
    return int(made.get_vocab_size())


def _decoder_config(kind: str, name: str, rows: int, folder: Path, **said: Any) -> None:
    ids = {"bos_token_id": None, "eos_token_id": said.pop("eos_token_id")}
    config: dict[str, Any] = {"architectures": [name], "model_type": kind, "hidden_size": WIDTH, "vocab_size": rows}
    config |= {"intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, **ids}
    config |= {"rms_norm_eps": 1e-6, "torch_dtype": "bfloat16", "use_cache": True, "initializer_range": 0.02}
    write_json(folder / "config.json", config | said)
    write_json(folder / "generation_config.json", {**ids, "do_sample": True, "temperature": 0.6, "top_p": 0.95})


def _with_qk_norms(shapes: Shapes, head: int) -> dict[str, tuple[int, ...]]:
    norms = {f"model.layers.{layer}.self_attn.{one}_norm.weight": (head,) for layer in range(LAYERS) for one in "qk"}
    return {**shapes, **norms}


def qwen3(folder: Path) -> Path:
    """Qwen/Qwen3-0.6B: norms of queries and keys, heads wider than the model, tied, a vocabulary with spare rows."""
    count, head = _chatml(folder, THINKING_CHAT, bos=None), 16
    rows = -(-(count + 40) // 64) * 64
    more = {"head_dim": head, "num_key_value_heads": 2, "rope_theta": 1000000, "rope_scaling": None}
    more |= {"sliding_window": None, "use_sliding_window": False, "max_window_layers": LAYERS, "hidden_act": "silu"}
    more |= {"tie_word_embeddings": True, "attention_bias": False, "max_position_embeddings": 512}
    end = _id(folder, "<|im_end|>")
    _decoder_config("qwen3", "Qwen3ForCausalLM", rows, folder, eos_token_id=end, **more)
    shapes = _with_qk_norms(decoder_shapes(rows, shared=2, head=head, tied=True), head)
    write_weights(folder, random_weights(shapes, torch.bfloat16))
    return folder


def smollm3(folder: Path) -> Path:
    """HuggingFaceTB/SmolLM3-3B: every second layer here is without positions; its template marks its answers."""
    count = _chatml(folder, DATED_THINKING_CHAT, bos="<|begin_of_text|>")
    more = {"num_key_value_heads": 2, "rope_theta": 5000000.0, "rope_scaling": None, "no_rope_layers": [1, 0]}
    more |= {"no_rope_layer_interval": 2, "layer_types": ["full_attention"] * LAYERS, "hidden_act": "silu"}
    more |= {"use_sliding_window": False, "sliding_window": None, "tie_word_embeddings": True, "pad_token_id": 500}
    more |= {"attention_bias": False, "mlp_bias": False, "max_position_embeddings": 512, "max_window_layers": 28}
    end = _id(folder, "<|im_end|>")
    _decoder_config("smollm3", "SmolLM3ForCausalLM", count, folder, eos_token_id=end, **more)
    write_weights(folder, random_weights(decoder_shapes(count, shared=2, tied=True), torch.bfloat16))
    return folder


def gemma3(folder: Path) -> Path:
    """google/gemma-3-1b-it: SentencePiece with one id more than the vocabulary has rows; windows in most layers."""
    gemma.gemma(folder)
    for file in (*folder.glob("model*"), *folder.glob("*.gguf")):
        file.unlink()
    spelled = json.loads((folder / "tokenizer.json").read_text())
    image = {"id": sentence_piece.PIECES, "content": "<image_soft_token>", "special": True, "normalized": False}
    spelled["added_tokens"].append(image | {"single_word": False, "lstrip": False, "rstrip": False})
    write_json(folder / "tokenizer.json", spelled)
    edit(folder / "tokenizer_config.json", chat_template=GEMMA3_CHAT)
    more: dict[str, Any] = {"head_dim": 16, "num_key_value_heads": 1, "query_pre_attn_scalar": 16, "sliding_window": 8}
    more |= {"rope_local_base_freq": 10000, "rope_theta": 1000000, "rope_scaling": None, "sliding_window_pattern": 2}
    more |= {"hidden_activation": "gelu_pytorch_tanh", "final_logit_softcapping": None, "pad_token_id": 0}
    more |= {"attn_logit_softcapping": None, "cache_implementation": "hybrid", "max_position_embeddings": 512}
    end = [1, _id(folder, "<end_of_turn>")]
    _decoder_config("gemma3_text", "Gemma3ForCausalLM", sentence_piece.PIECES, folder, eos_token_id=end, **more)
    edit(folder / "config.json", bos_token_id=2)
    shapes = _with_qk_norms(decoder_shapes(sentence_piece.PIECES, shared=1, head=16, tied=True), 16)
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.{one}_feedforward_layernorm.weight": (WIDTH,) for one in ("pre", "post")}
    write_weights(folder, random_weights(shapes, torch.bfloat16, norm=0.0))
    return folder


def _id(folder: Path, token: str) -> int:
    found: int = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(token)
    return found


# Towers: width 16, three layers, 4 x 4 patches of 8 pixels, as in towers.py


def siglip2(folder: Path) -> Path:
    """google/siglip2-so400m-patch14-384: a SigLIP by its type; its text tower has Gemma's tokenizer."""
    towers.siglip(folder)
    edit(folder / "preprocessor_config.json", processor_class="SiglipProcessor")
    edit(folder / "tokenizer_config.json", tokenizer_class="GemmaTokenizer")
    edit(folder / "config.json", transformers_version="4.49.0.dev0")
    return folder


def naflex(folder: Path) -> Path:
    """google/siglip2-so400m-patch16-naflex: grids of any shape."""
    towers.siglip(folder)
    said = json.loads((folder / "config.json").read_text())
    said["vision_config"] |= {"model_type": "siglip2_vision_model", "num_patches": 16}
    said["text_config"]["model_type"] = "siglip2_text_model"
    write_json(folder / "config.json", said | {"model_type": "siglip2"})
    return folder


def dinov2_registers(folder: Path) -> Path:
    """facebook/dinov2-with-registers-base: CLS, four registers, patches."""
    towers.dinov2(folder)
    said = json.loads((folder / "config.json").read_text())
    said |= {"model_type": "dinov2_with_registers", "architectures": ["Dinov2WithRegistersModel"]}
    write_json(folder / "config.json", said | {"num_register_tokens": 4, "interpolate_antialias": True})
    for file in (*folder.glob("model*"), *folder.glob("pytorch_model*")):
        file.unlink()
    write_weights(folder, random_weights(towers.dinov2_shapes(registers=4), torch.float32))
    return folder


def dinov3(folder: Path) -> Path:
    """facebook/dinov3-vits16-pretrain-lvd1689m: CLS, four registers, patches; the image is squeezed, not cut."""
    width, inner = towers.WIDTH, towers.INNER
    config: dict[str, Any] = {"architectures": ["DINOv3ViTModel"], "attention_dropout": 0.0, "drop_path_rate": 0.0}
    config |= {"hidden_act": "gelu", "hidden_size": width, "image_size": 32, "initializer_range": 0.02}
    config |= {"intermediate_size": inner, "key_bias": False, "layer_norm_eps": 1e-05, "layerscale_value": 1.0}
    config |= {"mlp_bias": True, "model_type": "dinov3_vit", "num_attention_heads": towers.HEADS, "num_channels": 3}
    config |= {"num_hidden_layers": towers.LAYERS, "num_register_tokens": 4, "patch_size": 8, "proj_bias": True}
    config |= {"pos_embed_jitter": None, "pos_embed_rescale": 2.0, "pos_embed_shift": None, "query_bias": True}
    config |= {"rope_theta": 100.0, "torch_dtype": "float32", "use_gated_mlp": False, "value_bias": True}
    write_json(folder / "config.json", config | {"transformers_version": "4.56.0.dev0"})
    preprocessor = {"crop_size": None, "do_center_crop": None, "do_normalize": True, "do_rescale": True}
    preprocessor |= {"do_resize": True, "image_processor_type": "DINOv3ViTImageProcessorFast", **towers.IMAGENET}
    preprocessor |= {"resample": 2, "rescale_factor": 1 / 255, "size": {"height": 32, "width": 32}}
    write_json(folder / "preprocessor_config.json", preprocessor)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.mask_token": (1, 1, width),
        "embeddings.register_tokens": (1, 4, width),
        **towers.affine("embeddings.patch_embeddings", width, 3, 8, 8),
        **towers.affine("norm", width),
    }
    for layer in range(towers.LAYERS):
        name = f"layer.{layer}."
        for part in ("q_proj", "v_proj", "o_proj"):
            shapes |= towers.affine(f"{name}attention.{part}", width, width)
        shapes |= {f"{name}attention.k_proj.weight": (width, width)}
        shapes |= towers.affine(f"{name}mlp.up_proj", inner, width) | towers.affine(
            f"{name}mlp.down_proj", width, inner
        )
        shapes |= towers.affine(f"{name}norm1", width) | towers.affine(f"{name}norm2", width)
        shapes |= {f"{name}layer_scale{one}.lambda1": (width,) for one in (1, 2)}
    write_weights(folder, random_weights(shapes, torch.float32))
    write_texts(folder, "README.md", "LICENSE.md", ".gitattributes")
    return folder


PE_SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "ref_feat_shape": [4, 4]}


def pe_core(folder: Path) -> Path:
    """timm/vit_pe_core_tiny_patch16_384.fb: timm's config and names, CLS in front, no model_type."""
    import timm

    sizes = PE_SIZES | {"attn_pool_num_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = timm.create_model("vit_pe_core_tiny_patch16_384", pretrained=False, num_classes=0, **sizes)
    state = {name: torch.randn_like(value) * 0.2 for name, value in made.state_dict().items()}
    write_weights(folder, {name: value + ("norm" in name and "weight" in name) for name, value in state.items()})
    shutil.copy(folder / "model.safetensors", folder / "open_clip_model.safetensors")
    said = {"architecture": "vit_pe_core_tiny_patch16_384", "num_classes": 0, "num_features": 16, "model_args": sizes}
    pixels = {"input_size": [3, 32, 32], "fixed_input_size": True, "interpolation": "bicubic", "crop_pct": 1.0}
    pixels |= {"crop_mode": "center", "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 0, "tag": "fb"}
    write_json(folder / "config.json", said | {"global_pool": "map", "pretrained_cfg": pixels})
    write_texts(folder, "README.md", ".gitattributes")
    return folder
