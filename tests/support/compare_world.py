"""A folder of drawn photos with captions and questions for `tests.bench.compare`, and its parts as tiny ones.

Also a program: `python -m tests.support.compare_world [EVENT STEP] -- OPTION …` compares, and kills itself where it is
told to.
"""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.bench.compare import __main__ as compare
from tests.bench.compare import prepare
from tests.support.tiny_models import tiny_model
from tests.support.tiny_runs import colours, kill_at
from tests.support.world import COLOURS, draw, word_file

TRAIN, HELD_OUT = 10, 4


def make_captioned(root: Path) -> Path:
    """Draws and writes everything below `root`."""
    random = np.random.default_rng(0)
    records: list[dict[str, Any]] = []
    questions = []
    for number in range(TRAIN + HELD_OUT):
        cells = [[str(random.choice(list(COLOURS))) for _ in range(4)] for _ in range(4)]
        image = f"{number:02d}.png"
        draw(root / "photos" / image, cells, size=(48, 48))
        answer = f"a {cells[0][0]} and a {cells[1][1]} patch"
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": answer}]
        records.append({"id": f"s{number}", "image": image, "conversations": turns})
        colour = str(random.choice(list(COLOURS)))
        label = "yes" if any(colour in row for row in cells) else "no"
        questions.append({"image": image, "question": f"Is there {colour}?", "label": label, "object": colour})
    (root / "train.json").write_text(json.dumps(records[:TRAIN]))
    (root / "heldout.json").write_text(json.dumps(records[TRAIN:]))
    (root / "train-yesno.json").write_text(json.dumps(questions[:TRAIN]))
    (root / "heldout-yesno.json").write_text(json.dumps(questions[TRAIN:]))
    _write_answered(root, records)
    return root


def _write_answered(root: Path, records: list[dict[str, Any]]) -> None:
    """The folder of questions that people answered, with the same photos."""
    (root / "vqa").mkdir()
    (root / "vqa" / "photos").symlink_to(root / "photos")
    (root / "vqa" / "train.json").write_text(json.dumps(records[:TRAIN]))
    (root / "vqa" / "heldout.json").write_text(json.dumps(records[TRAIN:]))
    asked = {one["image"]: [{"question": "What is it?", "answers": ["patch"] * 9 + ["a"]}] for one in records[TRAIN:]}
    (root / "vqa" / "heldout-questions.json").write_text(json.dumps({"vqa": asked}))


def tiny_rows(file: Path) -> Path:
    """Writes every row of captions.yaml in so few steps that a second holds it, with a checkpoint each."""
    rows = yaml.safe_load(compare.CAPTIONS.read_text())
    few = {"max_steps": 4, "save_steps": 1, "logging_steps": 1, "per_device_train_batch_size": 4}
    for row in rows.values():
        shutil.copy(compare.CAPTIONS.parent / row["recipe"], file.parent)
        row["set"] = row.get("set", []) + [
            f"stages.{stage}.training_arguments.{name}={value}"
            for stage in _stages(rows, row)
            for name, value in few.items()
        ]
    file.write_text(yaml.safe_dump(rows, sort_keys=False))
    return file


def _stages(rows: dict[str, Any], row: dict[str, Any]) -> list[str]:
    above = rows[row["after"]]["set"] if "after" in row and "set" in rows[row["after"]] else []
    stages = ["align", "language", *(["questions"] if "questions" in row["recipe"] else [])]
    return [stage for stage in stages if f"stages.{stage}=null" not in [*above, *row.get("set", [])]]


@contextmanager
def tiny_parts(root: Path) -> Iterator[None]:
    """Tiny parts in place of the packaged ones, and colours in place of words."""

    def init(vision: str, llm: str, out: Path, *, seed: int, dtype: str) -> Path:
        return tiny_model(out.absolute(), seed=seed, dtype=dtype)

    with colours(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "init_model", init)
        patch.setattr(prepare, "WORDS", str(word_file(root / "colours.txt")))
        patch.setattr(prepare, "TOP_N", 3)
        yield


def compared(root: Path, options: Sequence[str]) -> int:
    """Runs the comparison with tiny parts, in this process; the exit code."""
    with tiny_parts(root), pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(sys, "argv", ["compare", *options])
        return compare.main()


def main() -> None:
    kill, options = sys.argv[1 : sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1 :]
    if kill:
        kill_at(kill[0], int(kill[1]))
    sys.exit(compared(Path.cwd(), options))


if __name__ == "__main__":
    main()
