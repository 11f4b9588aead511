"""Drawn shapes with captions, and a tiny CLIP that is trained on them with open_clip's own parts.

Also a program: `python -m tests.support.shape_clip FOLDER [STEPS]` trains, and prints how good the labels of each path
and sign are.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from sea_pipeline import LabelStore, open_labels
from sea_pipeline.cli.tables.probe import probe_tables
from sea_pipeline.labels.run import LabelSettings, label_images
from sea_pipeline.labels.sign_probe import ProbeSettings, probe_encoders, signed
from tests.support.tiny_clip import HALF, TEXT, save_model

SIDE, PATCH = 64, 8
COLOURS = {"red": (220, 30, 30), "green": (30, 190, 50), "blue": (40, 60, 230), "yellow": (240, 220, 30)}
SHAPES = ("circle", "square", "triangle", "cross")
OTHERS = ("table", "engine", "window", "music", "winter", "carpet", "bottle", "garden", "mirror", "ladder", "thunder")
"""Words that no caption has."""
CONFIG: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {
        "image_size": SIDE, "patch_size": PATCH, "width": 64, "layers": 2, "head_width": 16, "mlp_ratio": 2.0,
    },
    "text_cfg": TEXT | {"context_length": 20, "width": 64, "heads": 4, "layers": 1},
}  # fmt: skip


class Thing(NamedTuple):
    """A coloured shape; its centre and half its size in pixels."""

    colour: str
    shape: str
    x: int
    y: int
    half: int


def inside(thing: Thing) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which pixels a shape covers: (SIDE, SIDE)."""
    y, x = np.mgrid[:SIDE, :SIDE]
    right, down = abs(x - thing.x) / thing.half, (y - thing.y) / thing.half
    covered: np.ndarray[Any, np.dtype[np.bool_]] = {
        "circle": right**2 + down**2 <= 1,
        "square": np.maximum(right, abs(down)) <= 0.9,
        "triangle": (abs(down) <= 1) & (right <= (down + 1) / 2),
        "cross": (np.maximum(right, abs(down)) <= 1) & (np.minimum(right, abs(down)) <= 0.35),
    }[thing.shape]
    return covered


def scene(random: np.random.Generator) -> list[Thing]:
    """One to three things in different quarters of the picture."""
    quarters = random.permutation(4)[: random.integers(1, 4)]
    things = []
    for quarter in quarters:
        half = int(random.integers(11, 16))
        x, y = (int(random.integers(half, SIDE // 2 - half + 1)) + SIDE // 2 * int(at) for at in divmod(quarter, 2))
        things.append(Thing(str(random.choice(list(COLOURS))), str(random.choice(SHAPES)), x, y, half))
    return things


def picture(things: list[Thing], random: np.random.Generator) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 (SIDE, SIDE, 3) before a noisy grey wall."""
    values = random.normal(random.uniform(90, 160), 6, (SIDE, SIDE, 3))
    for thing in things:
        values[inside(thing)] = COLOURS[thing.colour] + random.normal(0, 6, 3)
    return values.clip(0, 255).astype(np.uint8)


def caption(things: list[Thing], random: np.random.Generator) -> str:
    """All of them, each as `a red circle`, `red` or `a circle`."""
    forms = ("a {colour} {shape}", "a {colour} {shape}", "{colour}", "a {shape}")
    return " and ".join(str(random.choice(forms)).format(**thing._asdict()) for thing in things)


def train(folder: Path, steps: int, batch: int = 64, seed: int = 0) -> Path:
    """Trains from nothing, with Adam and one cycle of the rate, and saves the model as open_clip does."""
    import open_clip

    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    model = open_clip.CLIP(**CONFIG).train()
    loss = open_clip.ClipLoss()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for _ in range(steps):
        scenes = [scene(random) for _ in range(batch)]
        images = np.stack([picture(things, random) for things in scenes])
        texts = open_clip.tokenize([caption(things, random) for things in scenes], CONFIG["text_cfg"]["context_length"])
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        value = loss(*model(pixels, texts))
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        rate.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6)
    return save_model(folder, model, CONFIG, HALF)


def draw(folder: Path, count: int, seed: int = 1) -> list[list[Thing]]:
    """Pictures, `captions.json` and the word list `words.txt`; gives what is on each picture."""
    random = np.random.default_rng(seed)
    scenes = [scene(random) for _ in range(count)]
    rows = []
    (folder / "photos").mkdir(parents=True)
    for number, things in enumerate(scenes):
        name = f"{number:03d}.png"
        Image.fromarray(picture(things, random)).save(folder / "photos" / name)
        turns = [{"from": "gpt", "value": " and ".join(f"a {one.colour} {one.shape}" for one in things)}]
        rows.append({"image": name, "conversations": turns})
    (folder / "captions.json").write_text(json.dumps(rows))
    (folder / "words.txt").write_text("\n".join([*COLOURS, *SHAPES, *OTHERS]))
    return scenes


def patches_of(thing: Thing) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The patches of which a shape covers the half or more."""
    cells = inside(thing).reshape(SIDE // PATCH, PATCH, SIDE // PATCH, PATCH).mean((1, 3))
    return np.flatnonzero(cells.ravel() >= 0.5)


def right_words(store: LabelStore, scenes: list[list[Thing]]) -> tuple[float, float]:
    """The share of the shapes' patches whose best word is the shape's name or colour, and its chance level.

    By chance, the words are those of the first thing on the next picture.
    """
    right, chance = [], []
    for number, things in enumerate(scenes):
        best = store[f"{number:03d}.png"].word_ids[:, 0]
        other = scenes[(number + 1) % len(scenes)][0]
        words = [store.words[word] if word >= 0 else "" for thing in things for word in best[patches_of(thing)]]
        owners = [thing for thing in things for _ in patches_of(thing)]
        right += [word in (thing.colour, thing.shape) for word, thing in zip(words, owners, strict=True)]
        chance += [word in (other.colour, other.shape) for word in words]
    return float(np.mean(right)), float(np.mean(chance))


def probe_settings(folder: Path, spec: str) -> ProbeSettings:
    """One word for each patch of the pictures that `draw` made."""
    data, words = folder / "captions.json", str(folder / "words.txt")
    given = {"data": data, "image_root": folder / "photos", "wordlist": words, "encoder": (spec,)}
    return ProbeSettings.of(**given, top_n=1, device="cpu")


def labels_of(folder: Path, spec: str) -> LabelStore:
    """The same words as labels."""
    out = folder / f"labels-{spec.rpartition('#')[2]}"
    images, words = str(folder / "photos"), str(folder / "words.txt")
    label_images(LabelSettings.of(images=images, wordlist=words, encoder=spec, top_n=1, out=out, device="cpu"))
    return open_labels(out)


def main() -> None:
    folder, steps = Path(sys.argv[1]), int((sys.argv[2:] or ["150"])[0])
    torch.set_num_threads(1)
    begun = time.process_time()
    spec = f"open_clip:{train(folder / 'clip', steps)}"
    print(f"{steps} steps in {time.process_time() - begun:.0f} s of one CPU")
    scenes = draw(folder, 100)
    findings = probe_encoders(probe_settings(folder, spec))
    probe_tables(findings)
    for one in findings.probed:
        right, chance = right_words(labels_of(folder, signed(one.spec, one.sign)), scenes)
        print(f"{signed(one.spec, one.sign)}: {right:.1%} of the shapes' patches have its word, chance {chance:.1%}")


if __name__ == "__main__":
    main()
