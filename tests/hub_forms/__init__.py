"""Tiny folders in the forms that the hub's models have: file names, tokenizers, precision, settings of their time.

They are written file by file, as their authors wrote them, and not by today's transformers.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.hub_forms import gemma, llama, newer, phi3, towers

LLMS: dict[str, Callable[[Path], Path]] = {
    "lmsys/vicuna-7b-v1.5": llama.vicuna,
    "lmsys/vicuna-13b-v1.5": partial(llama.vicuna, shards=3),
    "google/gemma-2b": gemma.gemma,
    "microsoft/Phi-3-mini-4k-instruct": phi3.phi3,
    "meta-llama/Meta-Llama-3-8B-Instruct": llama.llama3,
    "mistralai/Mistral-7B-v0.1": llama.mistral,
}
TOWERS: dict[str, Callable[[Path], Path]] = {
    "openai/clip-vit-large-patch14-336": towers.clip,
    "google/siglip-so400m-patch14-384": towers.siglip,
    "facebook/dinov2-large": towers.dinov2,
    "clip-tower": towers.clip_tower,
    "clip-tower-with-projection": partial(towers.clip_tower, projection=True),
}
NEWER_LLMS: dict[str, Callable[[Path], Path]] = {
    "meta-llama/Llama-3.2-1B-Instruct": newer.llama32,
    "Qwen/Qwen3-0.6B": newer.qwen3,
    "google/gemma-3-1b-it": newer.gemma3,
    "HuggingFaceTB/SmolLM3-3B": newer.smollm3,
}
"""LLMs that no row of the papers' tables has."""
NEWER_TOWERS: dict[str, Callable[[Path], Path]] = {
    "google/siglip2-so400m-patch14-384": newer.siglip2,
    "facebook/dinov2-with-registers-base": newer.dinov2_registers,
    "facebook/dinov3-vits16-pretrain-lvd1689m": newer.dinov3,
    "timm/vit_pe_core_tiny_patch16_384.fb": newer.pe_core,
}


def write_form(root: Path, name: str) -> Path:
    """Writes the folder `root/name`, which a relative path then finds as the hub would the name."""
    return (LLMS | TOWERS | NEWER_LLMS | NEWER_TOWERS)[name](root / name)
