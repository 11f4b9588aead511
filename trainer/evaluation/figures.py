"""Draw figures of what visual tokens are nearest to, such as SEA's Figure 1 and BASIC's 2, 7 and 8."""

import re
from pathlib import Path

import torch

from sea_pipeline.report.figures import Kind, Panel, patches_figure, save_figure
from trainer.evaluation.evaluator import Evaluator, ShownImage
from trainer.evaluation.nearest_by_layer import LayerTokens
from trainer.model.aligned_llava import AlignedLlava

IMAGES = 8
"""Default number of images."""
_SUFFIXES = (".pdf", ".png")
_LAYERS = 6
"""Number of panels in a figure of layers."""


def save_figures(
    evaluator: Evaluator, model: AlignedLlava, layers: LayerTokens | None, folder: Path, limit: int | None = None
) -> list[Path]:
    """Draw the first images of the data, at most `limit` (default `IMAGES`), each as PDF and as PNG.

    Args:
        evaluator: the evaluator with the samples. If it has labels, `NAME.words` shows the list's nearest word on each
            patch, with a box around hits.
        model: the model; its mode is not changed.
        layers: result of `look_at_layers` for the same images. `NAME.layers` shows the nearest tokens at six layers.
        folder: folder of the files; created if it does not exist.
        limit: most images; None means `IMAGES`.

    Returns:
        The paths of the files.

    Raises:
        UserError: an image cannot be read, a file cannot be written.
    """
    images = evaluator.first_images(limit or IMAGES)
    grid = evaluator.data.grid
    table = evaluator.word_table(evaluator.embeddings(model))
    saved = []
    for position, shown in enumerate(images):
        photo, box = evaluator.data.image(shown.image_id, evaluator.data.rows[shown.row]["id"])
        drawn: dict[str, list[Panel]] = {}
        if table is not None and shown == next(evaluator.images([shown.row])):
            drawn["words"] = [_words(evaluator, model, shown, table)]
        if layers is not None and position < len(layers.images):
            drawn["layers"] = _layers(layers, position)
        for what, panels in drawn.items():
            figure = patches_figure(photo, box, grid, panels, min(3, len(panels)))
            name = f"{position:02d}-{re.sub(r'[^0-9A-Za-z_.-]+', '_', shown.image_id)}.{what}"
            for suffix in _SUFFIXES:
                saved.append(folder / (name + suffix))
                save_figure(figure, saved[-1])
    return saved


def _words(evaluator: Evaluator, model: AlignedLlava, shown: ShownImage, table: torch.Tensor) -> Panel:
    nearest = evaluator.nearest_words(model, shown.row, table)
    labels = evaluator.words([shown])[0].tolist()
    names = [{evaluator.word(word) for word in row if word >= 0} for row in labels]
    kinds: list[Kind] = [
        "none" if not own else "hit" if word in own else "miss" for word, own in zip(nearest, names, strict=True)
    ]
    hits, labelled = kinds.count("hit"), len(kinds) - kinds.count("none")
    return Panel(f"{hits} of {labelled} patches hit", nearest, kinds)


def _layers(layers: LayerTokens, position: int) -> list[Panel]:
    texts = layers.by_layer(position)
    last = len(texts) - 1
    chosen = sorted({round(step * last / (_LAYERS - 1)) for step in range(_LAYERS)})
    return [
        Panel(f"layer {number}" if number else "layer 0, the projector", [text.strip() for text in texts[number]])
        for number in chosen
    ]
