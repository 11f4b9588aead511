"""Tell by sampled values whether a teacher's targets are of the image processing and of the LLM that a run has.

They are no hashes: libraries and precisions round differently, and an LLM that trains stays near what it was.
"""

import numpy as np
import torch
from PIL import Image

from sea_pipeline.core.errors import UserError
from trainer.model.load import ModelFolder
from trainer.model.tensor_files import LLM, read_weights
from trainer.targets.store import TargetStore

_COUNT = 256
_PICTURE = (40, 61, 3)
_PARTS = {"pixels": ("image processing", 0.05), "embeddings": ("LLM", 0.5)}
"""What each sample is of, and the relative distance up to which two count as the same. Two LLMs are 1 or more apart."""


def teacher_samples(folder: ModelFolder) -> dict[str, list[float]]:
    """Sample the pixels that a folder's image processor makes of a drawn picture, and its LLM's input embeddings."""
    levels = np.arange(np.prod(_PICTURE)) ** 2 // 7 % 256
    picture = Image.fromarray(levels.astype(np.uint8).reshape(_PICTURE))
    pixels = folder.processor.image_processor(picture, return_tensors="pt")["pixel_values"].flatten()
    samples = {"pixels": pixels[torch.linspace(0, len(pixels) - 1, _COUNT).long()]}
    text = folder.config.text_config
    for entry in read_weights(folder.path):
        if entry.name.startswith(f"{LLM}model.") and entry.read().shape == (text.vocab_size, text.hidden_size):
            rows = torch.arange(min(_COUNT, text.vocab_size))
            samples["embeddings"] = entry.read()[rows, rows % text.hidden_size]
    return {name: [float(f"{value:.4g}") for value in values.float().tolist()] for name, values in samples.items()}


def refuse_another_teacher(store: TargetStore, folder: ModelFolder) -> None:
    """Refuse targets of other image processing or of another LLM than a model folder has.

    Another projector is none of these. Targets of older versions do not say what they are of.
    """
    if not store.samples:
        return
    own = teacher_samples(folder)
    for name, (what, near) in _PARTS.items():
        if name in own and name in store.samples:
            ours, theirs = np.array(own[name]), store.samples[name]
            if ours.shape != theirs.shape or np.linalg.norm(ours - theirs) > near * np.linalg.norm(ours):
                raise UserError(
                    f"{store.path}: expected targets of the {what} that {folder.path} has; found those of another; "
                    f"run sea-pipeline teacher with --model {folder.path}"
                )
