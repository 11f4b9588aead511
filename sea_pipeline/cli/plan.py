"""The command that says what labelling many images would take."""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import Parameter
from typing import Annotated

from sea_pipeline.cli.app import print_json
from sea_pipeline.cli.command import command_with
from sea_pipeline.cli.own_options import json_option
from sea_pipeline.core.errors import UserError


def options() -> list[Parameter]:
    """Make the options from the `ForecastSettings` that affect the time and disk space of an image."""
    from sea_pipeline.cli.options import options_of
    from sea_pipeline.labels.settings import ForecastSettings

    return options_of(
        ForecastSettings,
        absent=("id_column", "streaming", "out", "crops", "limit", "extend", "max_bad", "retry_bad", "probe", "crew"),
        first=("planned", "images", "image_root", "measure", "workers", "price"),
        spelled={"planned": "--images", "images": "--sample"},
        in_range=("planned",),
    )


@command_with(options)
def plan(
    *,
    as_json: Annotated[
        bool,
        json_option(
            "Print JSON: `images_per_second`, `seconds_per_image` by part, `start_seconds`, `words_seconds`, "
            "`bytes`, `memory_bytes`, `shards`, `shares` (`workers`, `hours`, `cost`), …"
        ),
    ] = False,
    **asked: object,
) -> None:
    """Forecast what labelling many images would take.

    It labels a few images here, and computes hours and cost for 1 to N workers,
    disk space and memory. A worker is a process like this one, with the same
    device and as many cores of its own. Only embedded words are kept, in a
    cache.

    Example: sea-pipeline plan --images 558128 --sample photos --encoder open_clip:ViT-L-14-336-quickgelu/openai
    """
    from sea_pipeline.cli import terminal
    from sea_pipeline.cli.options import settings_of
    from sea_pipeline.cli.tables.labels import forecast_tables
    from sea_pipeline.labels.checks import check_label
    from sea_pipeline.labels.settings import ForecastSettings

    settings = settings_of(ForecastSettings, asked)
    with _as_sample(settings.images):
        check_label(settings)
        from sea_pipeline.labels.forecast import forecast  # late, to report mistakes in the settings at once

        found = forecast(settings, terminal.Terminal())
    if as_json:
        print_json(found.to_json())
    else:
        forecast_tables(found)


@contextmanager
def _as_sample(images: str | None) -> Iterator[None]:
    """Name `--sample` in each error of the block that names what `label` has as `--images`."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(f"--images {images}", f"--sample {images}")) from error
