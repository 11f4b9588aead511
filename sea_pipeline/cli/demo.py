"""The command that shows everything on sample photos."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from sea_pipeline.cli.app import print_json
from sea_pipeline.cli.command import command
from sea_pipeline.cli.own_options import json_option, local_output

if TYPE_CHECKING:
    from sea_pipeline.execution.dispatch import StageRun

_PHOTOS = 3
"""The number of photos in the report that each model reads, the third is the README's cat. More would take minutes."""
_SHOWN = ("lm_loss", "right_photo_gain", "label_hit@1", "label_hit@10")
"""Metrics of the table at the end; `--json` has all of them."""


@command
def demo(
    out: Annotated[Path, local_output("The output folder.")] = Path("runs/demo"),
    as_json: Annotated[
        bool, json_option("Print JSON: `labels`, `models` and `metrics` by name, and `report`.")
    ] = False,
) -> None:
    """Run the whole pipeline on the sample photos with the packaged models.

    It trains without and with SEA, and writes an HTML report. It downloads nothing, and takes under four minutes on
    two cores.

    Example: sea-pipeline demo --out runs/demo
    """
    from sea_pipeline.cli import terminal

    terminal.say("Four steps: words for every patch of eleven sample photos; a small model that is trained on them")
    terminal.say("without SEA, and one with it; a report. Nothing is downloaded. Under four minutes on two cores.")
    from sea_pipeline.cli.report import make_report, tell_report
    from sea_pipeline.cli.tables import training as training_tables
    from sea_pipeline.labels.run import LabelSettings, label_images
    from sea_pipeline.report.settings import ReportSettings

    terminal.say("1 of 4: words for every patch of the sample photos")
    done = label_images(LabelSettings(out=out / "labels"), terminal.bars())
    if not as_json:
        _tell_labels(done)
    metrics, last = _trained(out)
    if not as_json:
        terminal.output.print("\nOn the photos they were trained on (eleven are too few to hold any out):")
        training_tables.metrics_table({title: _shown(values) for title, values in metrics.items()})
        terminal.output.print(f"The models are in {out / 'demo'} and {out / 'demo-baseline'}.")
    terminal.say("4 of 4: what both models make of the photos")
    shown = tuple(map(str, (out / "labels", *last.values())))
    made = make_report(ReportSettings(folders=shown, out=out / "report.html", images=_PHOTOS), list(last))
    if as_json:
        models = {title: str(run / "model") for title, run in last.items()}
        print_json({"labels": str(out / "labels"), "metrics": metrics, "report": made["out"], "models": models})
    else:
        tell_report(made)
        terminal.output.print("Its page Tokens shows what SEA did to the model.")


def _tell_labels(done: "StageRun") -> None:
    """Print how the labelling went, and what the labels are."""
    from sea_pipeline import open_labels
    from sea_pipeline.cli.tables import labels as label_tables
    from sea_pipeline.labels import statistics

    label_tables.stage_table(done, "labels", "labelled")
    store = open_labels(done.ledger.root)
    label_tables.statistics_tables(statistics.statistics(store), store.words, histograms=False)


def _trained(out: Path) -> tuple[dict[str, dict[str, float]], dict[str, Path]]:
    """Train without SEA and with it, and return metrics and the last run's folder of each."""
    from sea_pipeline.cli import terminal
    from sea_pipeline.cli.tables import training as training_tables
    from trainer.recipes.files import read_recipes
    from trainer.recipes.names import builtin_recipes
    from trainer.training.run import train_stages

    metrics, last = dict[str, dict[str, float]](), dict[str, Path]()
    for step, title, name in ((2, "without SEA", "demo-baseline"), (3, "with SEA", "demo")):
        terminal.say(f"{step} of 4: a model that is trained {title}")
        recipes = read_recipes(builtin_recipes()[name], [f"labels.path={out / 'labels'}"])
        runs = train_stages(recipes, out / name, reporter=training_tables.train_reporter())
        metrics |= {} if metrics else {"start": next(iter(runs.values())).summary["start"]}
        metrics[title] = list(runs.values())[-1].summary["end"]
        last[title] = list(runs.values())[-1].out
    return metrics, last


def _shown(values: dict[str, float]) -> dict[str, float]:
    names = [name for shown in _SHOWN for name in (shown, f"{shown}_se")]
    return {name: values[name] for name in names if name in values}
