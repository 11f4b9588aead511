"""What rows on real captions read beside the photos: models of packaged parts, labels, and labels of other photos."""

import csv
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from sea_pipeline.labels.run import LabelSettings, label_images
from trainer.evaluation.questions import SHORT
from trainer.measures.blind_control import others
from trainer.model.assemble import init_model

VISION, ENCODER, LLM = "packaged@224", "packaged@224", "packaged"
WORDS = "2of12"
TOP_N = 10


class Captioned(NamedTuple):
    """A folder of photos with captions and questions, all in LLaVA's form."""

    root: Path

    @property
    def photos(self) -> Path:
        """Where the photos are."""
        return self.root / "photos"

    @property
    def train(self) -> Path:
        """A caption of each photo that is trained on."""
        return self.root / "train.json"

    @property
    def heldout(self) -> Path:
        """A caption of each photo that is held out."""
        return self.root / "heldout.json"

    @property
    def questions(self) -> Path:
        """Yes/no questions about photos that are held out."""
        return self.root / "heldout-yesno.json"

    @property
    def answered(self) -> Path:
        """Photos with questions that people answered, for stage 2: a folder of the same form but for its names."""
        return self.root / "vqa"


def prepare(data: Captioned, out: Path, seeds: list[int], *, device: str = "auto") -> None:
    """Makes what is missing below `out`: `labels`, `shuffled`, and a start `models/seed-N` for each seed.

    Args:
        data: photos and captions.
        out: the comparison's folder.
        seeds: of the projectors.
        device: of the labelling.
    """
    out.mkdir(parents=True, exist_ok=True)
    label(out / "labels", str(data.photos), data.photos, device)
    shuffled_list(data.train, out / "shuffled.csv")
    label(out / "shuffled", str(out / "shuffled.csv"), data.photos, device)
    for seed in seeds:
        if not (out / "models" / f"seed-{seed}").is_dir():
            print(f"making models/seed-{seed}", flush=True)
            init_model(VISION, LLM, out / "models" / f"seed-{seed}", seed=seed, dtype="bfloat16")


def conversations(data: Captioned, out: Path) -> None:
    """Writes stage 2's data: the conversations of `vqa/train.json`, and yes/no questions as conversations.

    Args:
        data: photos, whose paths start at its root in the file.
        out: the file.
    """
    records = json.loads((data.answered / "train.json").read_text("utf-8"))
    found = [{**record, "image": f"vqa/photos/{record['image']}"} for record in records]
    by_photo: dict[str, list[dict[str, str]]] = defaultdict(list)
    for one in json.loads((data.root / "train-yesno.json").read_text("utf-8")):
        turns = by_photo[one["image"]]
        start = "" if turns else "<image>\n"
        turns.append({"from": "human", "value": f"{start}{one['question']}\n{SHORT}"})
        turns.append({"from": "gpt", "value": one["label"].capitalize()})
    found += [
        {"id": f"yesno-{image}", "image": f"photos/{image}", "conversations": turns}
        for image, turns in by_photo.items()
    ]
    text = json.dumps(found)
    if not (out.is_file() and out.read_text("utf-8") == text):
        out.write_text(text, "utf-8")


def label(out: Path, images: str, root: Path, device: str) -> None:
    """Labels photos for the tower's grid, unless that is done; a folder that came complete needs no encoder."""
    if (out / "manifest.json").is_file():
        return
    print(f"labelling {images}", flush=True)
    label_images(
        LabelSettings.of(
            images=images,
            image_root=root if images.endswith(".csv") else None,
            wordlist=WORDS,
            encoder=ENCODER,
            top_n=TOP_N,
            out=out,
            device=device,
        )
    )


def shuffled_list(train: Path, out: Path) -> None:
    """Writes a list for `label` in which every photo that is trained on names another one's file.

    The other one is the next in the order of the ids' hashes, the same for every seed: no photo has its own labels,
    every photo's labels are somebody's, and within a photo they stay as they were. What is lost is the tie between
    patches and words, and that alone.
    """
    names = {record["image"] for record in json.loads(train.read_text("utf-8")) if "image" in record}
    lines = [("image_id", "path"), *sorted(others(names).items())]
    text = io.StringIO(newline="")
    csv.writer(text).writerows(lines)
    if not (out.is_file() and out.read_bytes() == text.getvalue().encode()):
        out.write_bytes(text.getvalue().encode())
