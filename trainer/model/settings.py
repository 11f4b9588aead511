"""Settings of `sea-pipeline init`. A field's docstring is its option's help; nothing loads torch."""

from pathlib import Path
from typing import Literal

from sea_pipeline.core.settings import Seed, Settings

Projector = Literal["mlp2x_gelu", "linear"]


class InitSettings(Settings):
    """The options of `sea-pipeline init`, which are the arguments of `init_model`."""

    vision: str
    """The vision tower: packaged, the folder or hub name of a CLIP, SigLIP (1 or 2), DINOv2, DINOv3 or PE-Core model,
    or s2: before one of these for three image scales."""
    llm: str
    """The LLM: packaged, a .gguf file, or the folder or hub name of a causal LM."""
    out: Path
    """The new folder to write."""
    projector: Projector = "mlp2x_gelu"
    """The kind of projector. mlp2x_gelu: LLaVA-1.5's two layers. linear: one layer."""
    feature_layer: int | None = None
    """The index of the tower's hidden state to use. Default: -2, or -1 for packaged."""
    seed: Seed = 0
    """The random seed for the projector's weights."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The number format of all weights."""
