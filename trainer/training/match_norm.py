"""Match the length of visual tokens to the LLM's embeddings, because L_a ignores it and the LLM does not."""

from itertools import islice

import torch

from sea_pipeline.core.parallel import batched
from trainer.data.dataset import Collator, TrainingData
from trainer.losses.embeddings import llm_embeddings
from trainer.model.aligned_llava import AlignedLlava

_SAMPLES = 16
_BATCH = 8


@torch.no_grad()
def match_norm(model: AlignedLlava, data: TrainingData, vocabulary: int) -> float:
    """Scale the projector's last layer so that visual tokens have the mean length of the LLM's embeddings.

    Eq. 9 is a function of cosines, so training on it alone leaves the lengths to chance, and they grow. An LLM that is
    then given tokens three times too long learns slowly. Directions, and so all cosines, do not change.

    Args:
        model: a model trained without L_lm; it is changed in place.
        data: its training data, of which the first samples with images are measured.
        vocabulary: number of the LLM's token ids that are real ones.

    Returns:
        The factor by which the last layer was multiplied.
    """
    wanted = llm_embeddings(model.get_input_embeddings(), vocabulary).float().norm(dim=-1).mean()
    collate, lengths = Collator(data, pad=0, seed=0), []
    with_images = (row for row, images in enumerate(data.rows["images"]) if images)
    for rows in batched(islice(with_images, _SAMPLES), _BATCH):
        batch = collate([data[row] for row in rows])
        features = batch.get("features")
        if features is None:
            features = model.tower_output(batch["pixel_values"].to(model.device))
        lengths.append(model.projected(features.to(model.device)).float().norm(dim=-1).flatten())
    # The last layer is linear, so scaling its weight and bias scales V and keeps all directions.
    factor = float(wanted / torch.cat(lengths).mean())
    projector = model.model.multi_modal_projector
    last = projector.linear_2 if projector.linear_2.weight.requires_grad else projector.linear_1
    for parameter in last.parameters():
        parameter.mul_(factor)
    return factor
