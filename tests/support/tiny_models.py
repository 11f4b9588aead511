"""Random models of a few thousand weights, written as transformers writes them, for tests of the trainer."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

from trainer.model.assemble import init_model
from trainer.model.parts import quiet

LAID_OUT = ("mixtral", "hrm_text")
"""Files hold Mixtral's experts one by one, memory stacks them. HRM's linear layers are fused in files alone."""
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SENTENCES = [
    "The picture shows a red square and a green square on a white ground.",
    "What do you see in the image? I see a blue and a yellow patch beside a cyan one.",
    "Which colour is the left half? The left half is magenta, the right half is grey or brown.",
    "a photo of red green blue yellow cyan magenta grey brown",
]
VOCABULARY = 400
"""Rows of the tiny LLMs' embeddings; the tokenizer has fewer ids, as many LLMs' have."""


def tiny_tokenizer(path: Path, *, template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE that holds any text, with bos, eos, unk and pad, saved in `path`."""
    special = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=380, special_tokens=special, initial_alphabet=alphabet, min_frequency=1, show_progress=False
    )
    backend.train_from_iterator(SENTENCES, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special[4:]})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(path)
    return tokenizer


def tiny_llm(path: Path, family: str = "llama", *, template: str | None = None, **settings: Any) -> Path:
    """A causal LM of a `model_type`, of two layers and width 32, with its tokenizer; `settings` go to its config."""
    tokenizer = tiny_tokenizer(path, template=template)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    sizes |= {"head_dim": 8} if family in ("gemma", "gemma3_text") else {}
    if family == "hrm_text":  # it goes through its layers twice then, not eight times
        sizes |= {"H_cycles": 1, "L_cycles": 1}
    return _write(AutoModelForCausalLM, path, family, **(sizes | settings))


def tiny_vision(path: Path, family: str = "clip", **settings: Any) -> Path:
    """A tower of three layers and width 16 for 32 x 32 pixels, patches of 8: a 4 x 4 grid; no image processor."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    sizes |= {"mlp_ratio": 2} if family == "dinov2" else {"intermediate_size": 24}
    kind = family if family == "dinov2" else f"{family}_vision_model"
    return _write(AutoModel, path, kind, **(sizes | settings))


def tiny_model(path: Path, vision: str = "clip", llm: str = "llama", **settings: Any) -> Path:
    """A LLaVA folder of tiny parts; `settings` go to `init_model`. The parts stay beside it."""
    parts = path.parent / f"{path.name}-parts"
    tower = tiny_vision(parts / "vision", vision)
    return init_model(str(tower), str(tiny_llm(parts / "llm", llm)), path, **settings)


def _write(kind: Any, path: Path, model_type: str, **settings: Any) -> Path:
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind.from_config(AutoConfig.for_model(model_type, **settings)).save_pretrained(path)
    return path
