"""A tiny random model of each family and its own processor, made offline; images go in, and a batch comes out."""

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
import transformers as hf
from PIL import Image
from torch import nn
from transformers import PreTrainedTokenizerFast

from tests.support.tiny_models import SENTENCES
from trainer.attach.families import parts_of
from trainer.model.parts import quiet

SPECIAL = {
    "image_token": "<image>", "video_token": "<video>", "boi_token": "<boi>", "eoi_token": "<eoi>",
    "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<image>",
    "vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>", "fake_image_token": "<fake>",
    "global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>",
}  # fmt: skip
WIDTH, VOCABULARY = 32, 512
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}MARK{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Tiny(NamedTuple):
    """A model and its processor."""

    model: Any
    processor: Any
    mark: str
    """What stands for an image in a text."""

    def batch(self, samples: Sequence[tuple[Sequence[Image.Image], str]], **options: Any) -> dict[str, Any]:
        """What the model takes, with labels on every token but those of images and padding."""
        texts = [f"{self.mark * len(images)} {text}" for images, text in samples]
        images = [list(each) for each, _ in samples]
        flat = [image for each in images for image in each]
        nested = type(self.processor).__name__ in {
            "SmolVLMProcessor", "Idefics3Processor", "Gemma3Processor", "LlavaOnevisionProcessor",
        }  # fmt: skip
        given: Any = None if not flat else ([each for each in images if each] if nested else flat)
        if nested and given is not None and type(self.processor).__name__ != "LlavaOnevisionProcessor":
            given = images
        with quiet(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "__array__ implementation")  # PaliGemma's processor
            batch = dict(self.processor(images=given, text=texts, padding=True, return_tensors="pt", **options))
        batch["pixel_values"] = batch["pixel_values"].float() if flat else None
        batch = {name: value for name, value in batch.items() if value is not None}
        labels = batch["input_ids"].clone()
        labels[batch["attention_mask"] == 0] = -100
        labels[labels == self.model.config.image_token_id] = -100
        return batch | {"labels": labels}


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with every family's special tokens, the image's among the last ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(vocab_size=380, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        extra_special_tokens=SPECIAL,
    )  # fmt: skip


def text_settings(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 2048,
        "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3,
    } | more  # fmt: skip


def vision_settings(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 8,
    } | more  # fmt: skip


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def pinpoints(side: int) -> list[list[int]]:
    return [[side * rows, side * columns] for rows, columns in ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1))]


MIXING = ("self_attn.out_proj", "self_attn.o_proj", "attn.proj", "attention.projection_layer")
"""The last layer of a tower's attention, by the names that it has."""


def made_of(kind: Any, config: Any, processor: Any, mark: str = "<image>") -> Tiny:
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config)
        ends = {*parts_of(model).projector.parameters(), *getattr(model, "vision_model", nn.Module()).parameters()}
        for parameter in model.parameters():  # tokens as long as words, and Gemma 3's projector starts at zero
            if parameter in ends and parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        for name, module in model.named_modules():  # a token tells most of its own cell, as a trained tower's does
            if name.endswith(MIXING) and "vision" in name:
                module.weight.data *= 0.1
    processor.chat_template = processor.tokenizer.chat_template = CHAT.replace("MARK", mark)
    return Tiny(model.float().eval(), processor, mark)


def llava(llm: Any = None, tower: Any = None, **image: Any) -> Tiny:
    words = tokenizer()
    config = hf.LlavaConfig(
        vision_config=tower or hf.CLIPVisionConfig(**vision_settings(num_hidden_layers=3)),
        text_config=llm or hf.LlamaConfig(**text_settings()),
        image_token_id=words.image_token_id,
        image_seq_length=16,
    )
    crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    images = hf.CLIPImageProcessor(**(crop | image))
    leading = 1 + getattr(tower, "num_register_tokens", 0)
    processor = hf.LlavaProcessor(
        images, words, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=leading
    )
    return made_of(hf.LlavaForConditionalGeneration, config, processor)


def llava_next(side: int = 32) -> Tiny:
    words = tokenizer()
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**vision_settings(image_size=side, num_hidden_layers=3)),
        text_config=hf.LlamaConfig(**text_settings()),
        image_token_id=words.image_token_id,
        image_grid_pinpoints=pinpoints(side),
        image_seq_length=16,
    )
    images = hf.LlavaNextImageProcessor(
        size={"shortest_edge": side}, crop_size=square(side), image_grid_pinpoints=pinpoints(side)
    )
    processor = hf.LlavaNextProcessor(
        images, words, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return made_of(hf.LlavaNextForConditionalGeneration, config, processor)


def llava_onevision(most: int = 9, side: int = 32) -> Tiny:
    words = tokenizer()
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**vision_settings(image_size=side)),
        text_config=hf.Qwen2Config(**text_settings()),
        image_token_id=words.image_token_id,
        video_token_id=words.video_token_id,
        image_grid_pinpoints=pinpoints(side),
        vision_aspect_ratio=f"anyres_max_{most}",
    )
    images = hf.LlavaOnevisionImageProcessor(size=square(side), image_grid_pinpoints=pinpoints(side))
    processor = hf.LlavaOnevisionProcessor(
        images, words, hf.LlavaOnevisionVideoProcessor(size=square(side)), num_image_tokens=16,
        vision_feature_select_strategy="full", vision_aspect_ratio=f"anyres_max_{most}",
    )  # fmt: skip
    return made_of(hf.LlavaOnevisionForConditionalGeneration, config, processor)


def _qwen(version: str, patch: int = 4, window: int = 16, images: Any = None) -> Tiny:
    words = tokenizer()
    ids = {
        "image_token_id": words.image_token_id,
        "video_token_id": words.video_token_id,
        "vision_start_token_id": words.vision_start_token_id,
        "vision_end_token_id": words.vision_end_token_id,
    }
    names = {"2": "Qwen2VL", "2.5": "Qwen2_5_VL", "3": "Qwen3VL"}
    name = names[version]
    vision: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": patch, "spatial_merge_size": 2}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    text = text_settings(rope_parameters=rope)
    if version == "2":
        vision |= {"embed_dim": 16, "hidden_size": WIDTH, "mlp_ratio": 2}
    elif version == "2.5":
        vision |= {"hidden_size": 16, "out_hidden_size": WIDTH, "intermediate_size": 24, "window_size": window}
        vision |= {"fullatt_block_indexes": [1]}
    else:
        vision |= {"hidden_size": 16, "out_hidden_size": WIDTH, "intermediate_size": 24, "num_position_embeddings": 64}
        vision |= {"deepstack_visual_indexes": [0]}
    config = getattr(hf, f"{name}Config")(text_config=text, vision_config=vision, **ids)
    size = {"shortest_edge": 8 * 8, "longest_edge": 64 * 64}
    patches = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "size": size}
    videos = hf.Qwen3VLVideoProcessor if version == "3" else hf.Qwen2VLVideoProcessor
    kinds = {"2": hf.Qwen2VLProcessor, "2.5": hf.Qwen2_5_VLProcessor, "3": hf.Qwen3VLProcessor}
    processor = kinds[version](images or hf.Qwen2VLImageProcessor(**patches), words, videos(**patches))
    mark = "<|vision_start|><image><|vision_end|>"
    return made_of(getattr(hf, f"{name}ForConditionalGeneration"), config, processor, mark)


def qwen2_vl() -> Tiny:
    return _qwen("2")


def qwen2_5_vl(patch: int = 4, window: int = 16, images: Any = None) -> Tiny:
    return _qwen("2.5", patch, window, images)


def qwen3_vl() -> Tiny:
    return _qwen("3")


def idefics3(side: int = 32) -> Tiny:
    words = tokenizer()
    config = hf.Idefics3Config(
        vision_config=vision_settings(image_size=side),
        text_config=hf.LlamaConfig(**text_settings()),
        image_token_id=words.image_token_id,
        scale_factor=2,
        pad_token_id=3,
    )
    images = hf.Idefics3ImageProcessor(size={"longest_edge": 3 * side}, max_image_size={"longest_edge": side})
    return made_of(hf.Idefics3ForConditionalGeneration, config, hf.Idefics3Processor(images, words, image_seq_len=4))


def smolvlm() -> Tiny:
    pytest.importorskip("num2words", reason="SmolVLM's processor needs it")
    words = tokenizer()
    config = hf.SmolVLMConfig(
        vision_config=vision_settings(),
        text_config=hf.LlamaConfig(**text_settings()),
        image_token_id=words.image_token_id,
        scale_factor=2,
        pad_token_id=3,
    )
    sizes = {"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 32}}
    processor = hf.SmolVLMProcessor(
        hf.SmolVLMImageProcessor(**sizes), words, hf.SmolVLMVideoProcessor(**sizes), image_seq_len=4
    )
    return made_of(hf.SmolVLMForConditionalGeneration, config, processor)


def gemma3(side: int = 32) -> Tiny:
    words = tokenizer()
    config = hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(**vision_settings(image_size=side)),
        text_config=hf.Gemma3TextConfig(**text_settings(sliding_window=64, query_pre_attn_scalar=8)),
        image_token_id=words.image_token_id,
        boi_token_index=words.boi_token_id,
        eoi_token_index=words.eoi_token_id,
        mm_tokens_per_image=4,
    )
    processor = hf.Gemma3Processor(hf.Gemma3ImageProcessor(size=square(side)), words, image_seq_length=4)
    return made_of(hf.Gemma3ForConditionalGeneration, config, processor, "<boi>")


SCAN = {
    "do_pan_and_scan": True, "pan_and_scan_min_crop_size": 16, "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}  # fmt: skip
"""Pan and scan for small pictures."""


def paligemma(side: int = 32) -> Tiny:
    words = tokenizer()
    images = hf.SiglipImageProcessor(size=square(side))
    images.image_seq_length = 16
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(
            **vision_settings(image_size=side, projection_dim=WIDTH, vision_use_head=False)
        ),
        text_config=hf.GemmaConfig(**text_settings(vocab_size=2048)),
        image_token_id=words.image_token_id,
        projection_dim=WIDTH,
    )
    return made_of(hf.PaliGemmaForConditionalGeneration, config, hf.PaliGemmaProcessor(images, words))


def internvl(side: int = 32) -> Tiny:
    words = tokenizer()
    config = hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(**vision_settings(image_size=[side, side], patch_size=[8, 8])),
        text_config=hf.Qwen2Config(**text_settings()),
        image_token_id=words.image_token_id,
        image_seq_length=4,
    )
    images = hf.GotOcr2ImageProcessor(size=square(side), crop_to_patches=True, max_patches=6)
    processor = hf.InternVLProcessor(images, words, hf.InternVLVideoProcessor(size=square(side)), image_seq_length=4)
    return made_of(hf.InternVLForConditionalGeneration, config, processor)


def llama4(side: int = 32) -> Tiny:
    words = tokenizer()
    words.add_special_tokens({
        "additional_special_tokens": [
            "<|image|>", "<|image_start|>", "<|image_end|>", "<|patch|>", "<|tile_x_separator|>",
            "<|tile_y_separator|>",
        ]
    })  # fmt: skip
    text = text_settings(intermediate_size_mlp=48, num_local_experts=2, attention_chunk_size=2048)
    config = hf.Llama4Config(
        vision_config=hf.Llama4VisionConfig(
            **vision_settings(image_size=side, vision_output_dim=16, projector_input_dim=16, projector_output_dim=16,
                              intermediate_size=64, pixel_shuffle_ratio=0.5)
        ),
        text_config=hf.Llama4TextConfig(**text),
        image_token_index=words.convert_tokens_to_ids("<|patch|>"),
    )  # fmt: skip
    images = hf.Llama4ImageProcessor(size=square(side), max_patches=6)
    processor = hf.Llama4Processor(images, words, patch_size=8)
    return made_of(hf.Llama4ForConditionalGeneration, config, processor, "<|image|>")


MAKERS: dict[str, Callable[[], Tiny]] = {
    each.__name__: each
    for each in (
        llava, llava_next, llava_onevision, qwen2_vl, qwen2_5_vl, qwen3_vl, smolvlm, idefics3, gemma3, paligemma,
        internvl, llama4,
    )
}  # fmt: skip


@cache
def _kept(name: str) -> Tiny:
    return MAKERS[name]()


def tiny(name: str) -> Tiny:
    """The family's model as it was made: gradients are taken off it, and so is what a failed test left on it."""
    made = _kept(name)
    made.model.zero_grad(set_to_none=True)
    return made
