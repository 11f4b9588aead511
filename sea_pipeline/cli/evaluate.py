"""The command that measures a model."""

from inspect import Parameter
from typing import Annotated

from sea_pipeline.cli.app import print_json
from sea_pipeline.cli.command import command_with
from sea_pipeline.cli.own_options import json_option


def options() -> list[Parameter]:
    """Make the options from `EvaluateSettings`."""
    from sea_pipeline.cli.options import options_of
    from trainer.evaluation.settings import EvaluateSettings

    return options_of(
        EvaluateSettings, arguments={"model": None}, in_range=("limit_images", "new_tokens", "batch_size")
    )


@command_with(options)
def evaluate(
    *,
    as_json: Annotated[
        bool, json_option("Print JSON: the metrics by name, and `layers`, `lens`, `replace`, `figures` if asked for.")
    ] = False,
    **asked: object,
) -> None:
    """Measure a model's language loss, and how near its visual tokens are to words.

    It reads a model, conversations about images and, for the words of patches,
    labels. It prints the metrics. --layers and --replace are the analyses of
    BASIC's section 3 (Fig. 2 and 3).

    Example: sea-pipeline evaluate runs/train/x/model --data heldout.json --image-root photos --labels runs/labels/mine
    """
    from sea_pipeline.cli import terminal
    from sea_pipeline.cli.options import settings_of
    from sea_pipeline.cli.tables import training as training_tables
    from trainer.evaluation.checks import check_evaluate
    from trainer.evaluation.settings import EvaluateSettings

    settings = settings_of(EvaluateSettings, asked)
    check_evaluate(settings)
    from trainer.evaluation.run import evaluate_model  # late, to report mistakes in the settings at once

    found = evaluate_model(settings, reporter=terminal.Terminal())
    if as_json:
        print_json(found)
        return
    training_tables.metrics_table({str(settings.model): training_tables.plain_metrics(found)})
    if settings.layers:
        training_tables.layers_table(found["layers"])
    if settings.lens:
        training_tables.lens_table(found["lens"])
    if settings.replace:
        training_tables.replace_tables(found["replace"])
    if settings.out:
        terminal.output.print(f"\nWhat was found of each image is in {settings.out}")
    if settings.save_figures:
        terminal.output.print(f"\n{len(found['figures'])} figures are in {settings.save_figures}")
