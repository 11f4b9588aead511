"""Use the labels of one encoder for several models, whatever the grids of their visual tokens are.

    python examples/label_transfer.py --images photos --labels labels MODEL MODEL MODEL

Photos are labelled once, on the encoder's own grid. Each model (a folder or a name on the hub, of a family in
docs/attach.md) then reads the same photos by its own processor. `attach` transfers the labels to the place of each of
its visual tokens, and gives SEA's loss on them. PaliGemma has no chat template, so it cannot be one of the models.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import trainer
from sea_pipeline import LabelStore, open_labels
from sea_pipeline.inputs.pixels import read_image
from sea_pipeline.inputs.sources import list_samples
from sea_pipeline.labels.run import LabelSettings, label_images
from trainer.attach import Attached
from trainer.attach.families import parts_of


def batch_of(processor: Any, photos: list[Any]) -> dict[str, Any]:  # noqa: ANN401 - any processor of transformers
    """Make what a model takes of photos with a question each, by its own processor."""
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": photo}, {"type": "text", "text": "What is this?"}]}]
        for photo in photos
    ]
    options: dict[str, Any] = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    return dict(processor.apply_chat_template(chats, **options, processor_kwargs={"padding": True}))


def transferred(attached: Attached, name: str, image: int, names: list[str]) -> list[str]:
    """Say how the visual tokens of a photo lie, how many have a label, and the label in the middle of the photo."""
    one, labels = attached.laid(attached.kept(), names)[image], attached.labels
    assert labels is not None
    on_tiles = [attached.labels_on(name, tile) for tile in one.tiles]
    labelled = sum(int((tile.word_ids[:, 0] >= 0).sum()) for tile in on_tiles)
    grids = [f"{tile.grid[0]}x{tile.grid[1]}" for tile in one.tiles]
    (rows, columns), whole = on_tiles[-1].grid, on_tiles[-1]
    word = whole.word_ids[rows // 2 * columns + columns // 2, 0]
    said = grids[0] if len(set(grids)) == 1 else ", ".join(sorted(set(grids)))
    return [
        f"{len(grids)} of {said}" if len(grids) > 1 else said,
        str(one.tokens),
        str(labelled),
        labels.words[word] if word >= 0 else "(none)",
    ]


def show(folder: str, labels: LabelStore, photos: dict[str, Path]) -> None:
    """Load a model, attach the labels to it, take one forward and backward, and print a line for each photo."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    attached = trainer.attach(model, processor, labels=labels, sea={"weight": 1.0})
    names = list(photos)
    model.train()(**batch_of(processor, [read_image(path).image for path in photos.values()]))
    loss = attached.loss(names)
    loss.backward()
    projector = parts_of(model).projector.parameters()
    gradient = float(torch.cat([each.grad.flatten() for each in projector if each.grad is not None]).norm())
    for number, name in enumerate(names):
        print(" | ".join([model.config.model_type, name, *transferred(attached, name, number, names)]))
    print(f"{model.config.model_type}: L_a {float(loss.detach()):.3f}, gradient in the projector {gradient:.3g}")
    attached.detach()


def main() -> None:
    """Label the photos, and show what each model gets."""
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+")
    parser.add_argument("--images", help="a folder of photos; default: sample photos")
    parser.add_argument("--labels", default="labels", help="folder of the labels, made if it does not exist")
    parser.add_argument("--wordlist", default="2of12")
    parser.add_argument("--limit", type=int, default=3, help="use only so many photos")
    given = parser.parse_args()
    label_images(LabelSettings.of(images=given.images, wordlist=given.wordlist, out=given.labels, device="cpu"))
    labels, listing = open_labels(given.labels), list_samples(given.images, limit=given.limit)
    photos = {sample.image_id: Path(listing.root) / sample.uri for sample in listing.samples}
    grid = labels[next(iter(photos))].grid
    print(f"labels: {len(labels.ids)} photos on a grid of {grid[0]}x{grid[1]}, made once")
    print("model | photo | grid | visual tokens | with a label | label in the middle")
    for folder in given.models:
        show(folder, labels, photos)


if __name__ == "__main__":
    main()
