"""Does attach make a model look? A Qwen2.5-VL trained on drawn shapes without SEA, with it, and with shuffled labels.

    python -m tests.bench.attach_shapes --out FOLDER --steps 200 --seeds 0 1 2

Its LLM is SmolLM2-135M, frozen; tower and projector begin with random weights (tests/bench/packaged_qwen.py). Labels
are those of a tiny CLIP that learnt the shapes from captions here (tests/support/shape_clip.py), one word for each
patch. A row's runs differ in nothing else: same seed, pictures, texts, order and steps. FOLDER gets results.jsonl, a
line a run, and the table is made of them; finished runs are not repeated.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

import trainer
from sea_pipeline.labels.run import LabelSettings, label_images
from sea_pipeline.labels.store import LabelStore, open_labels
from tests.bench.packaged_qwen import PackagedQwen, Text, packaged_qwen
from tests.support.shape_clip import COLOURS, OTHERS, SHAPES, SIDE, Thing, picture, scene, train
from trainer.attach import Attached
from trainer.measures.blind_control import others, standard_error

ROWS = {"without": None, "attach": "own", "attach, shuffled labels": "other"}
"""Whose labels a picture has."""
SHOWN = ("right_photo_gain", "yes_no_accuracy", "yes_no_accuracy_other", "lm_loss", "label_hit@1", "gap")
EVERY = [(colour, shape) for colour in COLOURS for shape in SHAPES]
DESCRIBE = "Describe the picture."


class Drawing(NamedTuple):
    """A picture's name, and what is on it."""

    name: str
    things: list[Thing]


class Question(NamedTuple):
    """A question about a picture, and whether the answer is yes."""

    name: str
    asked: str
    yes: bool


class World(NamedTuple):
    """Pictures, of which the last ones are held out, and their labels."""

    folder: Path
    train: list[Drawing]
    held_out: list[Drawing]
    labels: LabelStore

    def image(self, name: str) -> Image.Image:
        return Image.open(self.folder / "pictures" / name)


def make_world(folder: Path, count: int, held_out: int, clip_steps: int) -> World:
    """Draws, trains the encoder, and labels everything."""
    random = np.random.default_rng(7)
    drawings = [
        Drawing(f"{number:05d}.png", sorted(scene(random), key=lambda thing: (thing.y * 2 // SIDE, thing.x)))
        for number in range(count + held_out)
    ]
    pictures, words = folder / "pictures", folder / "words.txt"
    if not (folder / "labels" / "manifest.json").exists():
        pictures.mkdir(parents=True, exist_ok=True)
        for drawing in drawings:
            Image.fromarray(picture(drawing.things, random)).save(pictures / drawing.name)
        words.write_text("\n".join([*COLOURS, *SHAPES, *OTHERS]))
        given = {"images": str(pictures), "wordlist": str(words), "top_n": 1, "device": "cpu"}
        spec = f"open_clip:{train(folder / 'clip', clip_steps)}#vv+"
        label_images(LabelSettings.of(**given, encoder=spec, out=folder / "labels"))
    return World(folder, drawings[:count], drawings[count:], open_labels(folder / "labels"))


def caption(drawing: Drawing) -> Text:
    return Text(DESCRIBE, " and ".join(f"a {one.colour} {one.shape}" for one in drawing.things))


def question(drawing: Drawing, random: np.random.Generator, yes: bool) -> Question:
    """About a thing that is there, or about one that is not."""
    there = [(one.colour, one.shape) for one in drawing.things]
    chosen = there if yes else [each for each in EVERY if each not in there]
    colour, shape = chosen[int(random.integers(len(chosen)))]
    return Question(drawing.name, f"Is there a {colour} {shape}?", yes)


def batches(world: World, steps: int, size: int, seed: int) -> Iterator[tuple[list[str], list[Text]]]:
    """Each step's pictures with their texts: a caption, or a question that is as often answered by yes as by no."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(world.train))
    for step in range(steps):
        rows = [world.train[at] for at in order.take(range(step * size, (step + 1) * size), mode="wrap")]
        texts = []
        for number, drawing in enumerate(rows):
            asked = question(drawing, random, bool(number % 4 < 2))
            texts.append(caption(drawing) if number % 2 else Text(asked.asked, ("No", "Yes")[asked.yes]))
        yield [drawing.name for drawing in rows], texts


def trained(world: World, row: str, seed: int, steps: int, size: int, layers: int | None) -> dict[str, Any]:
    """Trains tower and projector, and measures on the pictures held out."""
    made = packaged_qwen(SIDE, seed, layers)
    made.model.requires_grad_(False)
    made.model.model.visual.requires_grad_(True)
    attached = trainer.attach(made.model, made.processor, labels=world.labels, sea={"weight": 1.0}, seed=seed)
    other = others(drawing.name for drawing in world.train)
    weights = [each for each in made.model.parameters() if each.requires_grad]
    groups = [{"params": weights}, {"params": attached.parameters(), "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=steps, pct_start=0.1)
    curves: dict[str, list[float]] = {"loss_lm": [], "loss_sea": []}
    begun = time.process_time()
    made.model.train()
    for names, texts in batches(world, steps, size, seed):
        loss = made.model(**made.batch([world.image(name) for name in names], texts)).loss
        curves["loss_lm"].append(float(loss.detach()))
        if ROWS[row] is not None:
            shown = names if ROWS[row] == "own" else [other[name] for name in names]
            loss = loss + attached.loss(shown)
            curves["loss_sea"].append(float(attached.terms["sea"].detach()))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        rate.step()
    seconds = time.process_time() - begun
    found = measured(world, made, attached)
    attached.detach()
    return {"row": row, "seed": seed, "steps": steps, "cpu_seconds": seconds, "curves": curves, **found}


def measured(world: World, made: PackagedQwen, attached: Attached, size: int = 32) -> dict[str, float]:
    """Captions and questions of the pictures held out."""

    def captions() -> Iterator[dict[str, Any]]:
        for some in _parts(world.held_out, size):
            names = [drawing.name for drawing in some]
            batch = made.batch([world.image(name) for name in names], [caption(drawing) for drawing in some])
            yield batch | {"image_ids": [[name] for name in names]}

    found = attached.metrics(captions())
    random = np.random.default_rng(3)
    asked = [
        question(drawing, random, yes) for drawing in world.held_out for _ in drawing.things for yes in (True, False)
    ]
    other = others(drawing.name for drawing in world.held_out)
    for name, swapped in (("yes_no_accuracy", {}), ("yes_no_accuracy_other", other)):
        right = np.concatenate([_answers(world, made, some, swapped) for some in _parts(asked, size)])
        found[name] = float(right.mean())
        found[f"{name}_se"] = standard_error((right - right.mean()) / len(right), [one.name for one in asked]) or 0.0
    return found


@torch.no_grad()
def _answers(
    world: World, made: PackagedQwen, asked: Sequence[Question], swapped: dict[str, str]
) -> np.ndarray[Any, Any]:
    """Whether the likelier one of the two words is right."""
    images = [world.image(swapped.get(one.name, one.name)) for one in asked]
    batch = made.batch(images, [Text(one.asked, "Yes") for one in asked])
    made.model.eval()
    logits = made.model(**{name: each for name, each in batch.items() if name != "labels"}).logits
    places = (batch["labels"] != -100).int().argmax(1) - 1
    yes, no = (made.processor.tokenizer(f" {word}").input_ids[0] for word in ("Yes", "No"))
    last = logits[torch.arange(len(asked)), places]
    says = last[:, yes] > last[:, no]
    return (says == torch.tensor([one.yes for one in asked])).numpy().astype(float)


def _parts(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def table_of(runs: Sequence[dict[str, Any]]) -> Table:
    """Means over seeds, each with its standard error over drawings of a run and its standard deviation over seeds."""
    table = Table("row", "seeds", *SHOWN, box=None, title="mean ± standard error over drawings (± sd over seeds)")
    for row in ROWS:
        some = [run for run in runs if run["row"] == row]
        cells = []
        for name in SHOWN:
            values = [run[name] for run in some if name in run]
            error = np.mean([run.get(f"{name}_se", np.nan) for run in some]) if some else np.nan
            said = f"{np.mean(values):.3f}" if values else ""
            said += f" ± {error:.3f}" if values and np.isfinite(error) else ""
            cells.append(said + (f" (± {np.std(values, ddof=1):.3f})" if len(values) > 1 else ""))
        if some:
            table.add_row(row, str(len(some)), *cells)
    return table


def main(given: Sequence[str] | None = None) -> None:
    """Runs what is missing in FOLDER, and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.attach_shapes")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--clip-steps", type=int, default=150)
    parser.add_argument("--layers", type=int, help="of the LLM, for a first look")
    asked = parser.parse_args(given)
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    world = make_world(asked.out, asked.steps * asked.batch, asked.held_out, asked.clip_steps)
    written = asked.out / "results.jsonl"

    def runs() -> list[dict[str, Any]]:
        return [json.loads(line) for line in written.read_text().splitlines()] if written.exists() else []

    for seed in asked.seeds:
        for row in asked.rows:
            if any((run["row"], run["seed"], run["steps"]) == (row, seed, asked.steps) for run in runs()):
                continue
            result = trained(world, row, seed, asked.steps, asked.batch, asked.layers)
            with written.open("a") as file:
                file.write(json.dumps(result) + "\n")
            said = {name: round(result[name], 4) for name in SHOWN if name in result}
            print(f"seed {seed}, {row}, {result['cpu_seconds']:.0f} s of one CPU: {said}", file=sys.stderr, flush=True)
    Console(width=200).print(table_of([run for run in runs() if run["seed"] in asked.seeds]))


if __name__ == "__main__":
    main()
