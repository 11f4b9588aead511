"""Folders of runs with planted views, for the report's tests."""

import json
import os
import time
from pathlib import Path
from typing import Any

from sea_pipeline.report.run import find_inputs
from sea_pipeline.report.runs import RunInput, kept_views
from sea_pipeline.storage.hashing import fingerprint_of

ROWS, COLUMNS, LAYERS = 2, 3, 2


def run_folder(
    path: Path,
    *,
    lines: list[dict[str, Any]] | None = None,
    half: str = "",
    views: dict[str, Any] | None = None,
    age: float = 0,
    **recipe: Any,
) -> Path:
    """A finished run without a model; `half` is a line that a kill cut, `age` seconds since it began."""
    path.mkdir(parents=True)
    whole = {"name": path.name, "model": "start", "data": {"train": "samples"}, "loss": {"sea": {"weight": 0.0}}}
    record = {"recipe": whole | recipe, "fields": {"model": {"weights": "w"}, "labels": None}}
    record["fields"]["recipe"] = {"loss": record["recipe"]["loss"]}
    record["fingerprint"] = fingerprint_of(record["fields"])
    (path / "run.json").write_text(json.dumps(record))
    summary = {
        "name": path.name,
        "start": {"label_hit@10": 0.0},
        "end": {"label_hit@10": 0.5},
        "steps": 3,
        "seconds": 1.0,
    }
    (path / "summary.json").write_text(json.dumps(summary))
    logged = lines or [{"step": step, "seconds": 1.0, "loss": 3.0 - step} for step in range(3)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in logged) + half)
    if views is not None:
        (path / "views.json").write_text(json.dumps(planted_views(path.parent) | views))
    then = time.time() - age
    os.utime(path / "run.json", (then, then))
    return path


def opened_runs(paths: list[Path]) -> list[RunInput]:
    """Runs with the views that they have kept."""
    _, runs = find_inputs(paths)
    for run in runs:
        run.views = kept_views(run.path)
    return runs


def planted_views(folder: Path, word: str = "cat", name: str = "one.png") -> dict[str, Any]:
    """Views of a photo of 2 x 3 patches: after training the first patch bears `word`, a hit; every other misses.

    The token of patch p at layer l is "t{l}{p}"; patch 4 has no label, patch 5 all the attention.
    """
    texts = [word, "dog", *(f" t{layer}{patch}" for layer in range(LAYERS + 1) for patch in range(6))]
    image = {
        "image": name,
        "file": str(folder / name),
        "answer": "A cat.",
        "box": [0, 0, 1, 1],
        "labels": [[0, 1], [1], [1], [1], [], [1]],
        "before": {"nearest": [1, 0, 0, 0, 0, 0], "cosine": [0.1] * 6},
        "after": {"nearest": [0, 0, 0, 0, 0, 0], "cosine": [0.75] * 6},
        "layers": [[2 + 6 * layer + patch for patch in range(6)] for layer in range(LAYERS + 1)],
        "describing": ["100000", "110000", "000000"],
        "degree": [0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
        "generated": {"visual": "A cat on a mat.", "replaced": "cat cat", "control": "dog", "control_of": "two.png"},
    }
    summary = [{"layer": layer, "special": 0.0, "distinct_tokens": 6} for layer in range(LAYERS + 1)]
    shares = {"word_share": 0.1, "word_gain": 0.0, "contextual_share": 0.5, "contextual_gain": 0.4}
    lens = [{"layer": layer, "matched_layer": 1.0, **shares} for layer in range(LAYERS + 1)]
    return {
        "key": "k", "held_out": True, "grid": [ROWS, COLUMNS], "labelled": True, "texts": texts, "summary": summary,
        "lens": lens,
        "replace": {"prompt": "Describe.", "images": 1, "scored": 1, "visual": 1.0, "replaced": 1.0},
        "notes": {}, "images": [image],
    }  # fmt: skip
