"""Three families at the sizes of their published models' images, with weights of a few thousand numbers.

`python -m tests.trainer.attach.real_grids FOLDER` writes them below FOLDER, for examples/label_transfer.py.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers as hf

from tests.trainer.attach.families import Tiny, made_of, qwen2_5_vl, text_settings, tokenizer, vision_settings


def llava() -> Tiny:
    """LLaVA-1.5: 336 pixels in patches of 14, a centre crop."""
    words = tokenizer()
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**vision_settings(image_size=336, patch_size=14, num_hidden_layers=3)),
        text_config=hf.LlamaConfig(**text_settings()),
        image_token_id=words.image_token_id,
        image_seq_length=576,
    )
    images = hf.CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    named: dict[str, Any] = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return made_of(hf.LlavaForConditionalGeneration, config, hf.LlavaProcessor(images, words, patch_size=14, **named))


def qwen() -> Tiny:
    """Qwen2.5-VL: patches of 14 merged 2 x 2, each image at its own size."""
    patches = {"patch_size": 14, "merge_size": 2, "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}}
    return qwen2_5_vl(14, 112, hf.Qwen2VLImageProcessor(**patches))


def smolvlm() -> Tiny:
    """SmolVLM: tiles of 512 pixels in patches of 16, shuffled 4 x 4, and the whole image."""
    words = tokenizer()
    config = hf.SmolVLMConfig(
        vision_config=vision_settings(image_size=512, patch_size=16),
        text_config=hf.LlamaConfig(**text_settings()),
        image_token_id=words.image_token_id,
        scale_factor=4,
        pad_token_id=3,
    )
    sizes = {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}}
    videos = hf.SmolVLMVideoProcessor(**sizes)
    processor = hf.SmolVLMProcessor(hf.SmolVLMImageProcessor(**sizes), words, videos, image_seq_len=64)
    return made_of(hf.SmolVLMForConditionalGeneration, config, processor)


MADE: dict[str, Callable[[], Tiny]] = {each.__name__: each for each in (llava, qwen, smolvlm)}


def save(made: Tiny, folder: Path) -> Path:
    """As transformers saves them."""
    made.model.save_pretrained(folder)
    made.processor.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    for name, make in MADE.items():
        save(make(), Path(sys.argv[1]) / name)
