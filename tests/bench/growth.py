"""How time and memory grow: with images, words, patches, processes. `python -m tests.bench.growth [--save FIGURE.png]`

Each measurement is a process of its own: its CPU seconds and its peak memory, so that what else the machine does counts
little. Of each curve t = a + b·size^c is fitted, a being what the program costs before its work; c is its exponent.
Images are links to small drawn pictures, and the encoder the tests' mean colours: the pipeline is what is measured.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from sea_pipeline import open_labels
from sea_pipeline.encoders.base import Preprocess
from sea_pipeline.execution.cluster_settings import WorkerSettings
from sea_pipeline.execution.local import run
from sea_pipeline.execution.stage import ShardResult
from sea_pipeline.inputs.sources import list_samples
from sea_pipeline.inputs.wordlists import WordList
from sea_pipeline.labels import run as label_run
from sea_pipeline.labels.format import KIND, WORDS, LabelRow, ShardWriter, packed, write_mean_similarity
from sea_pipeline.labels.run import LabelSettings, label_images
from sea_pipeline.labels.stage import LabelStage
from sea_pipeline.output.begin import open_or_create
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.status import status_to_json
from sea_pipeline.search.exact import WordSearch
from sea_pipeline.storage.paths import place
from sea_pipeline.storage.publish import publish
from tests.support import world

_TOP_N = 3


class Colours(world.ColourEncoder):
    """The tiny world's encoder on a square grid, a cell each 16 pixels."""

    def __init__(self, side: int) -> None:
        super().__init__(str(side))
        self.grid = (side, side)
        self.preprocess = Preprocess(size=16 * side)

    def patches(self, pixels: Any) -> Any:
        side = self.grid[0]
        cells = pixels.view(len(pixels), side, 16, side, 16, 3).float().mean((2, 4)).flatten(1, 2) / 127.5 - 1
        return cells / cells.norm(dim=-1, keepdim=True).clamp(min=1e-6)


class Constant:
    """Every image the same labels of four patches, so that a finished folder of any size takes a minute."""

    device, backend, at_once = "cpu", "constant", 1

    def process(self, samples: Any, source: Any, target: Path, footer: Any, advance: Callable[[int], None]) -> Any:
        words, scores = np.zeros((4, _TOP_N), np.int32), np.zeros((4, _TOP_N), np.float32)
        box = (0.0, 0.0, 1.0, 1.0)
        with ShardWriter(target, 4, _TOP_N) as writer:
            hashes = [hashlib.sha256(source.read(sample.uri)).digest() for sample in samples]
            for sample, sha256 in zip(samples, hashes, strict=True):
                writer.add(LabelRow(sample.image_id, sample.uri, sha256, 48, 48, box, words, scores))
            writer.set_footer({**footer, "patches": 4 * len(samples), "patch_sum": packed(np.zeros(3))})
        advance(len(samples))
        return ShardResult(len(samples), [], {}, hashes[0].hex())

    def finish(self, ledger: Ledger) -> list[Any]:
        with publish(ledger.root / "words.parquet", ledger.root) as scratch:
            write_mean_similarity(scratch, tuple(world.COLOURS), np.zeros(len(world.COLOURS), np.float32))
        return [ledger.root / "words.parquet"]


def links(folder: Path, count: int) -> Path:
    """Names for eight drawn pictures, 1,000 a subfolder."""
    pictures = sorted(world.draw_folder(folder / "drawn", 8).rglob("*.png"))
    for number in range(count):
        path = folder / "images" / f"{number // 1000:04d}" / f"{number:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(pictures[number % len(pictures)])
    return folder / "images"


def plan(folder: Path, count: int) -> None:
    """Lists the images and begins a folder, as `label` does."""
    listing = list_samples(str(folder / "images"))
    fields = LabelStage.fields(Colours(2), WordList("colours", tuple(world.COLOURS)), _TOP_N)
    open_or_create(folder / "labels", KIND, fields, listing, 2048, {WORDS: _word_text()})


def finish(folder: Path, count: int) -> None:
    """Writes every shard of it, so that it is a finished folder."""
    run(Ledger.open(place(folder / "labels")), Constant(), max_bad=0)


def status(folder: Path, count: int) -> None:
    """What `status` does."""
    status_to_json(Ledger.open(place(folder / "labels")))


def go_on(folder: Path, count: int) -> None:
    """The same command on the finished folder."""
    plan(folder, count)
    assert Ledger.open(place(folder / "labels")).complete


def open_one(folder: Path, count: int) -> None:
    """Opens the finished folder without hashing, and reads the middle image."""
    store = open_labels(folder / "labels", verify=False)
    store[store.ids[count // 2]]


def label(folder: Path, count: int) -> None:
    """Labels every image."""
    _label(folder, 3)


def patches(folder: Path, count: int) -> None:
    """Labels 128 images, each on a grid of `count` patches."""
    _label(folder, round(count**0.5))


def processes(folder: Path, count: int) -> None:
    """Labels 4,000 images by `count` workers; the CPU seconds of all of them."""
    os.environ["DASK_DISTRIBUTED__WORKER__PRELOAD"] = json.dumps(
        ["tests.support.worker_world"]
    )  # before dask is imported
    label_run.load_encoder = lambda spec, device, options: world.ColourEncoder()  # type: ignore[assignment]
    label_images(_settings(folder, crew=WorkerSettings.of(workers=count)))


def _label(folder: Path, side: int) -> None:
    label_run.load_encoder = lambda spec, device, options: Colours(side)  # type: ignore[assignment]
    label_images(_settings(folder))


def _settings(folder: Path, **more: Any) -> LabelSettings:
    asked = {"images": str(folder / "images"), "wordlist": str(folder / "words.txt"), "top_n": _TOP_N, "device": "cpu"}
    return LabelSettings.of(**asked, out=folder / "labelled", shard_size=512, **more)


def words(folder: Path, count: int, backend: Any = "torch") -> None:
    """Searches the words of 784 patches among `count`, at MiniLM's width."""
    generator = torch.Generator().manual_seed(0)
    vectors, queries = (
        torch.nn.functional.normalize(torch.randn(rows, 384, generator=generator), dim=-1) for rows in (count, 784)
    )
    WordSearch(vectors, top_n=10, sign=1, backend=backend)(queries)


def words_int8(folder: Path, count: int) -> None:
    """The same by the 8-bit backend."""
    words(folder, count, "int8")


class Curve(NamedTuple):
    """What is measured at which sizes; `images` of that size are linked before the first step of a folder."""

    axis: str
    steps: tuple[Callable[[Path, int], None], ...]
    sizes: tuple[int, ...]
    images: Callable[[int], int] = lambda size: 0


CURVES = [
    Curve("images", (plan, finish, status, go_on, open_one), (1_000, 10_000, 100_000, 1_000_000), lambda size: size),
    Curve("images", (label,), (1_000, 10_000, 100_000), lambda size: size),
    Curve("words", (words, words_int8), (10_000, 100_000, 1_000_000)),
    Curve("patches", (patches,), (49, 196, 729, 2_916), lambda size: 128),
    Curve("processes", (processes,), (1, 2, 4, 8), lambda size: 4_000),
]


class Point(NamedTuple):
    """One process: the CPU seconds of it and its children, and its own peak memory in MB."""

    size: int
    seconds: float
    memory: float


def measured(curve: Curve, most: int) -> dict[str, list[Point]]:
    """The points of each step of a curve, at the sizes up to `most`."""
    found: dict[str, list[Point]] = {step.__name__: [] for step in curve.steps}
    for size in (size for size in curve.sizes if size <= most):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            (folder / "words.txt").write_bytes(_word_text())
            if count := curve.images(size):
                links(folder, count)
            for step in curve.steps:
                line = [sys.executable, "-m", "tests.bench.growth", "--point", step.__name__, str(size), str(folder)]
                done = subprocess.run(line, check=True, capture_output=True, text=True)
                found[step.__name__].append(Point(size, *json.loads(done.stdout.splitlines()[-1])))
                print(step.__name__, *found[step.__name__][-1], flush=True)
    return found


def point(step: str, size: int, folder: Path) -> None:
    """Measures one step in this process, and prints [CPU seconds, MB]."""
    globals()[step](folder, size)
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    spent = own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime
    print(json.dumps([round(spent, 3), round(own.ru_maxrss / 1e3, 1)]))


def exponent(sizes: Iterable[float], values: Iterable[float]) -> float:
    """c of the best fit of a + b·size^c with a, b >= 0, by relative error; 0 if nothing grows by more than a fifth."""
    size, value = np.array(list(sizes), float), np.array(list(values), float)
    if value.max() < 1.2 * value.min():
        return 0.0

    def error(power: float) -> float:
        columns = np.stack([np.ones_like(size), (size / size.max()) ** power], 1) / value[:, None]
        (a, b), *_ = np.linalg.lstsq(columns, np.ones_like(value))
        if a < 0:
            a, b = 0.0, float(columns[:, 1].sum() / (columns[:, 1] ** 2).sum())
        return float(((columns @ [a, max(b, 0.0)] - 1) ** 2).sum())

    return min((round(power, 2) for power in np.arange(0.05, 2.5, 0.01)), key=error)


def _word_text() -> bytes:
    return ("\n".join(world.COLOURS) + "\n").encode()


def _figure(found: dict[tuple[str, str], list[Point]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    axes_names = list(dict.fromkeys(axis for axis, _ in found))
    figure, rows = plt.subplots(
        2, len(axes_names), figsize=(4 * len(axes_names), 7), layout="constrained", squeeze=False
    )
    for column, axis in enumerate(axes_names):
        for row, (name, field) in enumerate((("CPU seconds", "seconds"), ("peak memory, MB", "memory"))):
            place_ = rows[row][column]
            for (of, step), points in found.items():
                if of == axis:
                    place_.loglog([p.size for p in points], [getattr(p, field) for p in points], "o-", label=step)
            place_.set(xlabel=axis, ylabel=name)
            place_.legend(fontsize="small")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=1_000_000, help="the largest size")
    parser.add_argument("--only", help="one axis: images, words, patches or processes")
    parser.add_argument("--save", type=Path, help="a figure of all curves")
    parser.add_argument("--point", nargs=3, metavar=("STEP", "SIZE", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.point:
        return point(asked.point[0], int(asked.point[1]), Path(asked.point[2]))
    os.environ["SEA_PIPELINE_CACHE"] = tempfile.mkdtemp()
    curves = [curve for curve in CURVES if asked.only in (None, curve.axis)]
    found = {(curve.axis, step): points for curve in curves for step, points in measured(curve, asked.most).items()}
    table = Table("size of", "step", "sizes", "CPU seconds", "exponent", "peak MB", "exponent", box=None)
    for (axis, step), points in found.items():
        sizes, spent, memory = zip(*points, strict=True)
        table.add_row(
            axis, step, f"{min(sizes):,} to {max(sizes):,}", ", ".join(f"{value:.2f}" for value in spent),
            f"{exponent(sizes, spent):.2f}", ", ".join(f"{value:,.0f}" for value in memory),
            f"{exponent(sizes, memory):.2f}",
        )  # fmt: skip
    Console(width=160).print(table)
    if asked.save:
        _figure(found, asked.save)


if __name__ == "__main__":
    main()
