"""Trains the rows of a comparison with several seeds each and prints the README's table: mean ± sd of held-out metrics.

    python -m tests.bench.compare tests/bench/sea.yaml --data photos.json --images photos --seeds 0 1 2 [--only ROW …]

Run it from the folder that the runs shall go to. A row names a recipe of `jobs/` and what is set over it; what is
finished is not trained again, and rows that begin with the same stage share it.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import yaml

from sea_pipeline.errors import UserError
from trainer.recipe_file import read_recipes
from trainer.recipe_names import builtin_recipes
from trainer.stages import train_stages
from trainer.train import TrainRun

COLUMNS = {
    "lm_loss": 3,
    "label_hit@1": 3,
    "label_hit@10": 3,
    "tacs": 3,
    "gap": 2,
    "meaningful": 3,
    "meaningful_chance": 3,
    "distinct_tokens": 0,
}
"""Metrics, and the digits shown."""


def trained(row: dict[str, Any], common: list[str], seed: int) -> TrainRun:
    """The last stage of a row with one seed."""
    overrides = [*common, *row.get("set", []), f"seed={seed}"]
    return list(train_stages(read_recipes(builtin_recipes()[row["recipe"]], overrides)).values())[-1]


def line(name: str, runs: list[TrainRun]) -> str:
    """One row of the table."""
    cells = [name, str(len(runs))]
    for metric, digits in COLUMNS.items():
        values = [run.summary["end"][metric] for run in runs if metric in run.summary["end"]]
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.{digits}f}{spread}" if values else "")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=[])
    asked = parser.parse_args()
    rows = {name: row for name, row in yaml.safe_load(asked.rows.read_text()).items() if name in (asked.only or [name])}
    common = [f"data.train={asked.data}", f"data.image_root={asked.images}"]
    finished: dict[str, list[TrainRun]] = {name: [] for name in rows}
    for seed in asked.seeds:
        for name, row in rows.items():
            try:
                finished[name].append(trained(row, common, seed))
            except UserError as error:  # the other rows are still worth their time
                print(f"{name}, seed {seed}: {error}", flush=True)
            else:
                print(f"seed {seed}: {line(name, finished[name][-1:])}", flush=True)
    print(f"\n| trained | seeds | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 2)}")
    for name, runs in finished.items():
        if runs:
            print(line(name, runs))


if __name__ == "__main__":
    main()
