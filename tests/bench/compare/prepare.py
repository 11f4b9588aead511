"""What rows on real captions read beside the photos: models of packaged parts, labels, and labels of other photos."""

import csv
import json
from pathlib import Path
from typing import NamedTuple

from sea_pipeline.label_run import LabelSettings, label_images
from trainer.controls import others
from trainer.init import init_model

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


def prepare(data: Captioned, out: Path, seeds: list[int], *, device: str = "auto") -> None:
    """Makes what is missing below `out`: `labels`, `shuffled`, and a start `models/seed-N` for each seed.

    Args:
        data: photos and captions.
        out: the comparison's folder.
        seeds: of the projectors.
        device: of the labelling.
    """
    label(out / "labels", str(data.photos), data.photos, device)
    shuffled_list(data.train, out / "shuffled.csv")
    label(out / "shuffled", str(out / "shuffled.csv"), data.photos, device)
    for seed in seeds:
        if not (out / "models" / f"seed-{seed}").is_dir():
            print(f"making models/seed-{seed}", flush=True)
            init_model(VISION, LLM, out / "models" / f"seed-{seed}", seed=seed, dtype="bfloat16")


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
    text = "".join(f"{line}\r\n" for line in map(_csv, lines))
    if not (out.is_file() and out.read_bytes() == text.encode()):
        out.write_bytes(text.encode())


def _csv(cells: tuple[str, str]) -> str:
    from io import StringIO

    line = StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()
