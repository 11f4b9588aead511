"""A Qwen2.5-VL of packaged parts' sizes: SmolLM2-135M's weights as its LLM, and a small tower with random ones."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import transformers as hf
from PIL import Image

from trainer.model.parts import load_llm, quiet

SPECIAL = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
PATCH, MERGE = 8, 2
TOWER: dict[str, Any] = {
    "depth": 4,
    "hidden_size": 192,
    "num_heads": 3,
    "intermediate_size": 512,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "window_size": 64,
    "fullatt_block_indexes": [0, 1, 2, 3],
}


class Text(NamedTuple):
    """What a model is asked about a picture, and what it should say."""

    asked: str
    answer: str


class PackagedQwen(NamedTuple):
    """A model and its processor."""

    model: Any
    processor: Any

    def batch(self, images: Sequence[Image.Image], texts: Sequence[Text]) -> dict[str, Any]:
        """What the model takes, a picture a sample; answers alone have labels."""
        end = self.processor.tokenizer.eos_token
        whole = [f"{PICTURE}{text.asked}\nAnswer: {text.answer}{end}" for text in texts]
        with quiet():
            batch = dict(self.processor(images=list(images), text=whole, padding=True, return_tensors="pt"))
        lengths = [len(self.processor.tokenizer(f" {text.answer}{end}").input_ids) for text in texts]
        labels = torch.full_like(batch["input_ids"], -100)
        for row, (length, valid) in enumerate(zip(lengths, batch["attention_mask"].sum(1).tolist(), strict=True)):
            labels[row, valid - length : valid] = batch["input_ids"][row, valid - length : valid]
        return batch | {"labels": labels}


def packaged_qwen(
    side: int, seed: int = 0, layers: int | None = None, dtype: torch.dtype = torch.bfloat16
) -> PackagedQwen:
    """The model for square pictures of `side` pixels.

    Args:
        side: a multiple of 16; a visual token is 16 x 16 pixels.
        seed: of the tower and the projector.
        layers: of the LLM, from the first on; None is all thirty.
        dtype: of the LLM; tower and projector are in float32.
    """
    packaged = load_llm("packaged", torch.float32)
    llm, words = packaged.model, packaged.tokenizer
    words.add_special_tokens({"additional_special_tokens": SPECIAL})
    words.padding_side = "right"
    heads = llm.config.hidden_size // llm.config.num_attention_heads // 2
    rope = {"rope_type": "default", "rope_theta": llm.config.rope_parameters["rope_theta"]}
    text = {
        name: getattr(llm.config, name)
        for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "rms_norm_eps")
    } | {
        "num_hidden_layers": layers or llm.config.num_hidden_layers,
        "vocab_size": len(words),
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "tie_word_embeddings": True,
        "rope_parameters": rope | {"mrope_section": [heads // 4, heads * 3 // 8, heads * 3 // 8]},
        "max_position_embeddings": llm.config.max_position_embeddings,
    }
    ids = dict(zip(("vision_start", "vision_end", "image", "video"), words.convert_tokens_to_ids(SPECIAL), strict=True))
    config = hf.Qwen2_5_VLConfig(
        text_config=text,
        vision_config=TOWER | {"out_hidden_size": llm.config.hidden_size},
        tie_word_embeddings=True,
        **{f"{name}_token_id": number for name, number in ids.items()},
    )
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        llm.resize_token_embeddings(len(words), mean_resizing=False)
        model = hf.Qwen2_5_VLForConditionalGeneration(config)
    state = {name.removeprefix("model."): each for name, each in llm.model.state_dict().items()}
    missing, unexpected = model.model.language_model.load_state_dict(state, strict=False)
    assert all(name.endswith("_proj.bias") for name in missing), missing
    assert layers or not unexpected, unexpected
    for name, parameter in model.model.language_model.named_parameters():
        if name in missing:  # SmolLM2 has none
            torch.nn.init.zeros_(parameter)
    model.model.language_model.to(dtype)
    model.tie_weights()
    size = {"shortest_edge": side * side, "longest_edge": side * side}
    patches = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2, "size": size}
    videos = hf.Qwen2VLVideoProcessor(**patches)
    return PackagedQwen(model, hf.Qwen2_5_VLProcessor(hf.Qwen2VLImageProcessor(**patches), words, videos))
