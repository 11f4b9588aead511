"""Where the harnesses are, and results in their form: shortened from what runs of the two smoke tasks left."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

HARNESSES = Path(sys.prefix) / "harness"
"""Where `make .venv` puts them."""
with_harnesses = pytest.mark.skipif(
    not HARNESSES.is_dir(), reason="the harnesses are not there: `make .venv` installs them"
)


def lmms_file(
    folder: Path,
    scores: Mapping[str, Mapping[str, float]],
    *,
    model: str = "exports/x",
    day: int = 20261121,
    samples: tuple[int, int] = (500, 500),
) -> Path:
    """lmms-eval's, of metrics by task; `samples` are how many there are, and how many were asked."""
    results = {
        task: {
            "alias": task,
            **{f"{name},none": value for name, value in metrics.items()},
            **{f"{name}_stderr,none": 0.015 for name in metrics},
            **{f"{name}_stderr_clt,none": 0.015 for name in metrics},
            **{f"{name}_stderr_clustered,none": "N/A" for name in metrics},
        }
        for task, metrics in scores.items()
    }
    content = {
        "results": results,
        "group_subtasks": {task: [] for task in scores},
        "configs": {task: {"task": task, "output_type": "generate_until"} for task in scores},
        "versions": dict.fromkeys(scores, "Yaml"),
        "n-samples": {task: {"original": samples[0], "effective": samples[1]} for task in scores},
        "config": {"model": "llava_hf", "model_args": f"pretrained={model}", "limit": None},
        "date": f"{day}_042647",
        "usage": {},
        "model_source": "llava_hf",
        "model_name": model,
        "model_name_sanitized": model.replace("/", "__"),
    }
    return _write(folder / model.replace("/", "__") / f"{day}_042647_results.json", content)


def lm_file(
    folder: Path,
    score: float,
    *,
    group: str = "mmlu",
    subtasks: Mapping[str, tuple[int, int]] | None = None,
    model: str = "exports/x-llm",
) -> Path:
    """lm-eval's, of a group of tasks, each with how many samples there are, and how many were asked."""
    members = subtasks or {"mmlu_stem": (100, 100), "mmlu_other": (200, 200)}
    results: dict[str, dict[str, Any]] = {
        task: {"name": task, "alias": f" - {task}", "sample_len": asked, "acc,none": 0.25, "acc_stderr,none": 0.01}
        for task, (_, asked) in members.items()
    }
    asked = sum(asked for _, asked in members.values())
    whole = {"name": group, "alias": group, "sample_len": asked, "acc,none": score, "acc_stderr,none": 0.004}
    content = {
        "results": {**results, group: {**whole, "sample_count": {"acc,none": asked}}},
        "groups": {group: whole},
        "group_subtasks": {group: list(members)},
        "configs": {task: {"task": task, "output_type": "multiple_choice"} for task in members},
        "versions": {group: "2", **dict.fromkeys(members, 1)},
        "n-samples": {task: {"original": all_, "effective": asked} for task, (all_, asked) in members.items()},
        "config": {"model": "hf", "model_args": {"pretrained": model}, "limit": None},
        "date": 1795292693.957642,
        "model_source": "hf",
        "model_name": model,
        "model_name_sanitized": model.replace("/", "__"),
    }
    return _write(folder / model.replace("/", "__") / "results_2026-11-21T20-25-10.434205.json", content)


def _write(path: Path, content: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))
    return path
