"""Train a LLaVA's projector on captions with L_lm and SEA's L_a, in a loop of your own.

python examples/own_loop.py MODEL DATA.json IMAGES LABELS

MODEL is a LLaVA folder, such as `sea-pipeline init` writes. LABELS are of the same images, on the tower's own grid.
`trainer.attach` does the same for many families of models; this script shows the parts.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import AutoProcessor, LlavaForConditionalGeneration

from sea_pipeline import LabelStore, open_labels
from trainer import losses, sampling, words


def train(
    model_folder: Path, data: Path, images: Path, labels: Path, *, steps: int = 100, batch: int = 8, seed: int = 0
) -> list[tuple[float, float]]:
    """Train the projector, and return L_lm and L_a of each step."""
    processor = AutoProcessor.from_pretrained(model_folder)
    model = LlavaForConditionalGeneration.from_pretrained(model_folder).requires_grad_(False)
    projector = model.model.multi_modal_projector.requires_grad_(True)
    made: list[torch.Tensor] = []
    projector.register_forward_hook(lambda module, given, visual: made.append(visual))  # (images, patches, d)
    store = open_labels(labels)
    embeddings = model.get_input_embeddings().weight
    assert isinstance(embeddings, torch.Tensor)
    table = words.llm_word_table(embeddings, processor.tokenizer, store.words, "space")  # Eq. 8
    log_scale = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.AdamW([*projector.parameters(), log_scale], lr=1e-3, weight_decay=0)
    rows = [row for row in json.loads(data.read_text("utf-8")) if row.get("image") in store]
    order, curve = np.random.default_rng(seed), []
    for step in range(steps):
        numbers = order.choice(len(rows), min(batch, len(rows)), replace=False)
        chosen = [rows[number] for number in numbers]
        pictures = [ImageOps.exif_transpose(Image.open(images / row["image"])).convert("RGB") for row in chosen]
        captions = [f"<image>{row['conversations'][-1]['value']}\n" for row in chosen]
        inputs = processor(images=pictures, text=captions, padding=True, return_tensors="pt")
        untrained = (inputs["attention_mask"] == 0) | (inputs["input_ids"] == model.config.image_token_id)
        made.clear()
        l_lm = model(**inputs, labels=inputs["input_ids"].masked_fill(untrained, -100)).loss
        l_a = sea(made[0], [row["image"] for row in chosen], numbers.tolist(), store, table, log_scale, (seed, step))
        (l_lm + l_a).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            log_scale.clamp_(max=math.log(losses.MAX_SCALE))
        curve.append((l_lm.item(), l_a.item()))
    return curve


def sea(
    visual: torch.Tensor,
    ids: list[str],
    numbers: list[int],
    store: LabelStore,
    table: torch.Tensor,
    log_scale: torch.Tensor,
    at: tuple[int, int],
) -> torch.Tensor:
    """Compute L_a of a batch: draw patches and words, keep one patch for each word, and contrast them."""
    found = [store[image_id] for image_id in ids]
    random = [sampling.generator(*at, number) for number in numbers]
    drawn = [
        sampling.draw(one.word_ids, one.scores, one.grid, chance) for one, chance in zip(found, random, strict=True)
    ]
    patches = np.concatenate([i * visual.shape[1] + one.patches for i, one in enumerate(drawn)])  # Eq. 7
    named = np.concatenate([one.words for one in drawn])
    kept = sampling.one_patch_per_word(named, np.random.default_rng(at))
    return losses.sea(visual.flatten(0, 1)[patches[kept]], table[named[kept]], log_scale)  # Eq. 9


if __name__ == "__main__":
    for number, (language, alignment) in enumerate(train(*map(Path, sys.argv[1:5]))):
        print(f"step {number + 1}: L_lm {language:.3f}, L_a {alignment:.3f}")
