"""CLIP-L/336, SigLIP-SO400M/384 and DINOv2-L as their folders on the hub are, with three layers of width 16.

All give 4 x 4 patches, unless said otherwise.
"""

from pathlib import Path
from typing import Any

import torch

from tests.hub_forms import sentence_piece
from tests.hub_forms.files import Shapes, random_weights, write_json, write_texts, write_weights

WIDTH, INNER, LAYERS, HEADS = 16, 24, 3, 2
TEXT_WIDTH, WORDS, PLACES = 12, 40, 7
"""Of the text towers that lie beside the vision towers."""
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_NONE = """
    architectures bad_words_ids bos_token_id cross_attention_hidden_size decoder_start_token_id eos_token_id
    finetuning_task forced_bos_token_id pad_token_id prefix problem_type sep_token_id task_specific_params
    tokenizer_class torch_dtype
"""
_FALSE = """
    add_cross_attention do_sample early_stopping is_decoder is_encoder_decoder output_attentions
    output_hidden_states output_scores remove_invalid_values return_dict_in_generate tie_encoder_decoder torchscript
    use_bfloat16
"""
_OF_EVERY_MODEL: dict[str, Any] = {
    **dict.fromkeys(_NONE.split()),
    **dict.fromkeys(_FALSE.split(), False),
    "_name_or_path": "",
    "chunk_size_feed_forward": 0,
    "diversity_penalty": 0.0,
    "encoder_no_repeat_ngram_size": 0,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "length_penalty": 1.0,
    "max_length": 20,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "pruned_heads": {},
    "repetition_penalty": 1.0,
    "return_dict": True,
    "temperature": 1.0,
    "tie_word_embeddings": True,
    "top_k": 50,
    "top_p": 1.0,
    "transformers_version": "4.21.3",
    "typical_p": 1.0,
}
"""What configurations of 2022 say in each of their parts."""


def clip(folder: Path, *, side: int = 32, patch: int = 8) -> Path:
    """openai/clip-vit-large-patch14-336: the whole CLIP in float32 as .bin, settings of 2022, TensorFlow's file."""
    vision = {"hidden_size": WIDTH, "image_size": side, "intermediate_size": INNER, "num_attention_heads": HEADS}
    vision |= {"num_hidden_layers": LAYERS, "patch_size": patch, "projection_dim": TEXT_WIDTH}
    text = {"hidden_size": TEXT_WIDTH, "intermediate_size": INNER, "num_attention_heads": HEADS}
    text |= {"num_hidden_layers": 1, "projection_dim": TEXT_WIDTH}
    both = {"attention_dropout": 0.0, "dropout": 0.0, "hidden_act": "quick_gelu", "initializer_factor": 1.0}
    both |= {"initializer_range": 0.02, "layer_norm_eps": 1e-05}
    config = {"_commit_hash": None, "architectures": ["CLIPModel"], "initializer_factor": 1.0}
    config |= {"logit_scale_init_value": 2.6592, "model_type": "clip", "projection_dim": TEXT_WIDTH}
    size = {"max_position_embeddings": PLACES, "vocab_size": WORDS, "bos_token_id": 0, "eos_token_id": 2}
    parts = {
        "text_config": {**_OF_EVERY_MODEL, **both, **text, **size, "model_type": "clip_text_model", "pad_token_id": 1},
        "text_config_dict": text | size,
        "vision_config": {**_OF_EVERY_MODEL, **both, **vision, "model_type": "clip_vision_model", "num_channels": 3},
        "vision_config_dict": vision,
    }
    write_json(folder / "config.json", config | parts | {"torch_dtype": "float32", "transformers_version": None})
    preprocessor = {"crop_size": side, "do_center_crop": True, "do_normalize": True, "do_resize": True}
    preprocessor |= {"feature_extractor_type": "CLIPFeatureExtractor", "image_mean": MEAN, "image_std": STD}
    write_json(folder / "preprocessor_config.json", preprocessor | {"resample": 3, "size": side})
    weights = random_weights(clip_shapes(side, patch), torch.float32)
    weights["logit_scale"] = torch.tensor(4.6)
    weights["text_model.embeddings.position_ids"] = torch.arange(PLACES).unsqueeze(0)
    weights["vision_model.embeddings.position_ids"] = torch.arange((side // patch) ** 2 + 1).unsqueeze(0)
    write_weights(folder, weights, "bin")
    (folder / "tf_model.h5").write_bytes(b"\x89HDF\r\n\x1a\nof TensorFlow")
    write_json(folder / "vocab.json", {"a": 0, "b": 1})
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", "errors": "replace"})
    write_json(folder / "special_tokens_map.json", {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"})
    write_texts(folder, "README.md", "merges.txt", ".gitattributes")
    return folder


def clip_tower(folder: Path, *, projection: bool = False) -> Path:
    """CLIP's vision tower alone in safetensors, with its projection or without; a preprocessor of 2023."""
    name = "CLIPVisionModelWithProjection" if projection else "CLIPVisionModel"
    config = {"architectures": [name], "attention_dropout": 0.0, "dropout": 0.0, "hidden_act": "quick_gelu"}
    config |= {"hidden_size": WIDTH, "image_size": 32, "initializer_factor": 1.0, "initializer_range": 0.02}
    config |= {"intermediate_size": INNER, "layer_norm_eps": 1e-05, "model_type": "clip_vision_model"}
    config |= {"num_attention_heads": HEADS, "num_channels": 3, "num_hidden_layers": LAYERS, "patch_size": 8}
    config |= {"projection_dim": TEXT_WIDTH, "torch_dtype": "float16", "transformers_version": "4.39.0"}
    write_json(folder / "config.json", config)
    square = {"height": 32, "width": 32}
    preprocessor = {"crop_size": square, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True}
    preprocessor |= {"do_rescale": True, "do_resize": True, "image_mean": MEAN, "image_std": STD, "resample": 3}
    preprocessor |= {"image_processor_type": "CLIPImageProcessor", "rescale_factor": 1 / 255}
    write_json(folder / "preprocessor_config.json", preprocessor | {"size": {"shortest_edge": 32}})
    shapes = {name: shape for name, shape in clip_shapes().items() if name.startswith("vision_model")}
    shapes |= {"visual_projection.weight": (TEXT_WIDTH, WIDTH)} if projection else {}
    write_weights(folder, random_weights(shapes, torch.float16))
    return folder


def siglip(folder: Path) -> Path:
    """google/siglip-so400m-patch14-384: the whole SigLIP in float32; patches leave a rest, as 14 of 384."""
    vision = {"hidden_size": WIDTH, "image_size": 36, "intermediate_size": INNER, "num_attention_heads": HEADS}
    vision |= {"model_type": "siglip_vision_model", "num_hidden_layers": LAYERS, "patch_size": 8}
    text = {"hidden_size": WIDTH, "intermediate_size": INNER, "model_type": "siglip_text_model"}
    text |= {"num_attention_heads": HEADS, "num_hidden_layers": 1, "vocab_size": WORDS}
    text |= {"max_position_embeddings": PLACES}
    config = {"architectures": ["SiglipModel"], "initializer_factor": 1.0, "model_type": "siglip"}
    config |= {"text_config": text, "torch_dtype": "float32", "transformers_version": "4.37.0.dev0"}
    write_json(folder / "config.json", config | {"vision_config": vision})
    preprocessor = {"do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3}
    preprocessor |= {"image_processor_type": "SiglipImageProcessor", "image_std": [0.5] * 3, "resample": 3}
    preprocessor |= {"processor_class": "SiglipProcessor", "rescale_factor": 1 / 255}
    write_json(folder / "preprocessor_config.json", preprocessor | {"size": {"height": 36, "width": 36}})
    shapes = _clip_layers("vision_model.", LAYERS, WIDTH) | _clip_layers("text_model.", 1, WIDTH)
    shapes |= {
        "logit_bias": (1,),
        "logit_scale": (1,),
        "text_model.embeddings.position_embedding.weight": (PLACES, WIDTH),
        "text_model.embeddings.token_embedding.weight": (WORDS, WIDTH),
        **affine("text_model.final_layer_norm", WIDTH),
        **affine("text_model.head", WIDTH, WIDTH),
        **affine("vision_model.embeddings.patch_embedding", WIDTH, 3, 8, 8),
        "vision_model.embeddings.position_embedding.weight": (16, WIDTH),
        "vision_model.head.attention.in_proj_bias": (3 * WIDTH,),
        "vision_model.head.attention.in_proj_weight": (3 * WIDTH, WIDTH),
        **affine("vision_model.head.attention.out_proj", WIDTH, WIDTH),
        **affine("vision_model.head.layernorm", WIDTH),
        **affine("vision_model.head.mlp.fc1", INNER, WIDTH),
        **affine("vision_model.head.mlp.fc2", WIDTH, INNER),
        "vision_model.head.probe": (1, 1, WIDTH),
        **affine("vision_model.post_layernorm", WIDTH),
    }
    write_weights(folder, random_weights(shapes, torch.float32))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "SiglipTokenizer", "model_max_length": 64})
    (folder / "spiece.model").write_bytes(sentence_piece.train())
    write_texts(folder, "README.md", ".gitattributes")
    return folder


def dinov2(folder: Path) -> Path:
    """facebook/dinov2-large: trained on 7 x 7 patches, shown 4 x 4, as 518 and 224 pixels are 37 and 16 patches."""
    config = {"apply_layernorm": True, "architectures": ["Dinov2Model"], "attention_probs_dropout_prob": 0.0}
    config |= {"drop_path_rate": 0.0, "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "hidden_size": WIDTH}
    config |= {"image_size": 56, "initializer_range": 0.02, "layer_norm_eps": 1e-06, "layerscale_value": 1.0}
    config |= {"mlp_ratio": 2, "model_type": "dinov2", "num_attention_heads": HEADS, "num_channels": 3}
    config |= {"num_hidden_layers": LAYERS, "out_features": [f"stage{LAYERS}"], "out_indices": [LAYERS]}
    config |= {"patch_size": 8, "qkv_bias": True, "reshape_hidden_states": True, "use_swiglu_ffn": False}
    config |= {"stage_names": ["stem", *(f"stage{layer + 1}" for layer in range(LAYERS))]}
    write_json(folder / "config.json", config | {"torch_dtype": "float32", "transformers_version": "4.32.0.dev0"})
    preprocessor = {"crop_size": {"height": 32, "width": 32}, "do_center_crop": True, "do_convert_rgb": True}
    preprocessor |= {"do_normalize": True, "do_rescale": True, "do_resize": True, **IMAGENET, "resample": 3}
    preprocessor |= {"image_processor_type": "BitImageProcessor", "rescale_factor": 1 / 255}
    write_json(folder / "preprocessor_config.json", preprocessor | {"size": {"shortest_edge": 36}})
    weights = random_weights(dinov2_shapes(), torch.float32)
    write_weights(folder, weights, "bin")
    write_weights(folder, weights, "safetensors")
    write_texts(folder, "README.md", ".gitattributes")
    return folder


def dinov2_shapes(registers: int = 0) -> Shapes:
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.mask_token": (1, WIDTH),
        **({"embeddings.register_tokens": (1, registers, WIDTH)} if registers else {}),
        "embeddings.position_embeddings": (1, 50, WIDTH),
        **affine("embeddings.patch_embeddings.projection", WIDTH, 3, 8, 8),
        **affine("layernorm", WIDTH),
    }
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}."
        for part in ("query", "key", "value"):
            shapes |= affine(f"{name}attention.attention.{part}", WIDTH, WIDTH)
        shapes |= affine(f"{name}attention.output.dense", WIDTH, WIDTH)
        shapes |= affine(f"{name}mlp.fc1", 2 * WIDTH, WIDTH) | affine(f"{name}mlp.fc2", WIDTH, 2 * WIDTH)
        shapes |= affine(f"{name}norm1", WIDTH) | affine(f"{name}norm2", WIDTH)
        shapes |= {f"{name}layer_scale{one}.lambda1": (WIDTH,) for one in (1, 2)}
    return shapes


def clip_shapes(side: int = 32, patch: int = 8) -> Shapes:
    """CLIP's tensors by the names of its file; `pre_layrnorm` is spelled so there."""
    return {
        "logit_scale": (),
        **_clip_layers("text_model.", 1, TEXT_WIDTH),
        "text_model.embeddings.position_embedding.weight": (PLACES, TEXT_WIDTH),
        "text_model.embeddings.token_embedding.weight": (WORDS, TEXT_WIDTH),
        **affine("text_model.final_layer_norm", TEXT_WIDTH),
        "text_projection.weight": (TEXT_WIDTH, TEXT_WIDTH),
        **_clip_layers("vision_model.", LAYERS, WIDTH),
        "vision_model.embeddings.class_embedding": (WIDTH,),
        "vision_model.embeddings.patch_embedding.weight": (WIDTH, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": ((side // patch) ** 2 + 1, WIDTH),
        **affine("vision_model.post_layernorm", WIDTH),
        **affine("vision_model.pre_layrnorm", WIDTH),
        "visual_projection.weight": (TEXT_WIDTH, WIDTH),
    }


def _clip_layers(prefix: str, layers: int, width: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(layers):
        name = f"{prefix}encoder.layers.{layer}."
        for part in ("k_proj", "out_proj", "q_proj", "v_proj"):
            shapes |= affine(f"{name}self_attn.{part}", width, width)
        shapes |= affine(f"{name}layer_norm1", width) | affine(f"{name}layer_norm2", width)
        shapes |= affine(f"{name}mlp.fc1", INNER, width) | affine(f"{name}mlp.fc2", width, INNER)
    return shapes


def affine(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
