"""Seconds and memory up to the first step on very many conversations: `python -m tests.bench.first_step --bad 50`

The conversations are drawn words, as many and as long as LLaVA-1.5's stage 2; some lose their answers and are left out.
The model is tiny; `--tokenizer` names a folder with a real LLM's tokenizer, since the tests' cuts words into letters.
"""

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import Any

from PIL import Image
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM

from tests.bench.measure import machine
from tests.support.tiny_models import tiny_llm, tiny_vision
from trainer.model.assemble import init_model
from trainer.recipes.recipe import Recipe
from trainer.training import align_trainer
from trainer.training.reporter import TrainReporter
from trainer.training.run import train

IMAGES = 350_000
"""Distinct images; LLaVA-1.5's stage 2 shows 349,000 in its 624,610 rows with one."""


class FirstStepError(BaseException):
    """Raised in place of the first step; no border takes it for an error."""


def main() -> None:
    """Writes the data, trains to the first step, prints seconds and bytes at each line that the run says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=665_298)
    parser.add_argument("--bad", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--words", type=Path, default=Path("wordlists/2of12.txt"))
    given = parser.parse_args()
    console = Console(soft_wrap=True, highlight=False)
    with tempfile.TemporaryDirectory(prefix="first-step-") as scratch:
        root = Path(scratch)
        os.environ["SEA_PIPELINE_CACHE"] = str(root / "cache")
        file = _write(root, given.words.read_text().split(), given.rows, given.bad)
        model = init_model(str(tiny_vision(root / "tower")), str(_llm(root, given.tokenizer)), root / "model")
        recipe = Recipe(
            model=model,
            data={
                "train": str(file),
                "image_root": root / "images",
                "template": "vicuna_v1",
                "held_out": 256,
                "bad_rows": "leave_out" if given.bad else "stop",
                "sampling": "modality_length",
            },
            training_arguments={"per_device_train_batch_size": 16, "max_steps": 2},
        )
        console.print(f"{machine()}: {given.rows:,} rows, {file.stat().st_size / 1e6:,.0f} MB, {given.bad} of them bad")
        memory, begun = Peak(), time.perf_counter()
        console.print(f"{'until':34}seconds  own memory now  own at most  with mapped files at most (MB)")

        def mark(title: str) -> None:
            figures = (memory.now / 1e6, memory.peak / 1e6, memory.resident / 1e6)
            own, peak, resident = (f"{figure:,.0f}" for figure in figures)
            console.print(f"{title:34}{time.perf_counter() - begun:7.0f}{own:>16}{peak:>13}{resident:>27}")
            memory.peak, memory.resident = memory.now, 0

        def stop(*_: Any, **__: Any) -> None:
            mark("evaluated, first step begins")
            raise FirstStepError

        mark("it starts")
        align_trainer.AlignTrainer.training_step = stop  # type: ignore[method-assign,assignment]

        class Marks(TrainReporter):
            def data(self, rows: Mapping[str, int]) -> None:
                mark("rows read")

            def trainable(self, parts: Mapping[str, Any]) -> None:
                mark("model and order of rows made")

        try:
            train(recipe, root / "run", reporter=Marks())
        except FirstStepError:
            memory.stop = True


class Peak(Thread):
    """Looks at this process's memory every 20 milliseconds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.now = self.peak = self.resident = 0
        self.stop = False
        self._look()
        self.start()

    def run(self) -> None:
        while not self.stop:
            self._look()
            time.sleep(0.02)

    def _look(self) -> None:
        lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
        sizes = {line[0]: int(line[1]) * 1024 for line in lines if line[0] in ("RssAnon:", "VmRSS:")}
        self.now = sizes["RssAnon:"]
        self.peak, self.resident = max(self.peak, self.now), max(self.resident, sizes["VmRSS:"])


def _write(root: Path, words: list[str], rows: int, bad: int) -> Path:
    """LLaVA's JSON, one row in sixteen without an image; bad rows lose their answers."""
    images = root / "images"
    draw = random.Random(0)
    chosen = set(draw.sample(range(rows), bad))
    Image.new("RGB", (64, 48), (9, 90, 200)).save(root / "one.jpg")
    for number in range(min(IMAGES, rows)):
        path = images / f"{number // 1000:04d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(root / "one.jpg")

    def row(number: int) -> dict[str, Any]:
        turns = []
        for turn in range(draw.choice((1, 1, 2, 3, 5, 8))):
            start = "<image>\n" if number % 16 and not turn else ""
            question = " ".join(draw.choices(words, k=draw.randint(4, 20)))
            answer = " ".join(draw.choices(words, k=draw.randint(1, 60)))
            turns += [{"from": "human", "value": f"{start}{question}?"}, {"from": "gpt", "value": f"{answer}."}]
        shown = number % min(IMAGES, rows)
        image = {"image": f"{shown // 1000:04d}/{shown:06d}.jpg"} if number % 16 else {}
        return {"id": f"{number:09d}", **image, "conversations": turns[:1] if number in chosen else turns}

    file = root / "conversations.json"
    with file.open("w") as out:
        out.write("[")
        for number in range(rows):
            out.write((",\n" if number else "") + json.dumps(row(number)))
        out.write("]")
    return file


def _llm(root: Path, tokenizer: Path | None) -> Path:
    """A tiny LLM, with another's tokenizer if one is given."""
    if tokenizer is None:
        return tiny_llm(root / "llm")
    folder = Path(shutil.copytree(tokenizer, root / "llm", copy_function=shutil.copyfile))
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
