"""The command that shows labels and their statistics."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sea_pipeline.cli.app import print_json
from sea_pipeline.cli.command import command
from sea_pipeline.cli.own_options import LabelsFolder, json_option, local_output
from sea_pipeline.core.errors import UserError

if TYPE_CHECKING:
    from sea_pipeline.labels.store import LabelStore


@command
def inspect(
    labels: LabelsFolder,
    image: Annotated[
        str | None,
        typer.Argument(help="The id of an image, to show its words instead of the statistics.", show_default=False),
    ] = None,
    save: Annotated[
        Path | None,
        local_output("A .png, .pdf or .svg file for a figure: SEA's Figure 6, or the image with its words."),
    ] = None,
    as_json: Annotated[
        bool,
        json_option(
            "Print JSON: `images`, `patches`, `words_used`, `most_frequent`, …; for an image `grid`, and the "
            "`words` and `scores` of every patch."
        ),
    ] = False,
) -> None:
    """Show statistics of a folder of labels, or the words of one image.

    It reads finished labels. The statistics are SEA's Figure 6, the share of the
    word list that is used, and the most frequent words.

    Example: sea-pipeline inspect runs/labels/x chelsea.png --save chelsea.pdf
    """
    from sea_pipeline import open_labels
    from sea_pipeline.report import figures
    from sea_pipeline.storage.paths import place
    from sea_pipeline.storage.results import check_result

    if save is not None:
        figures.check_figure(save)
        check_result(save, figures.FIGURE, [place(labels)])
    store = open_labels(labels, verify=image is None)  # one image's own pages have checksums
    if image is None:
        _show_statistics(store, save, as_json)
    else:
        _show_image(store, labels, image, save, as_json)


def _show_image(store: "LabelStore", labels: str, image: str, save: Path | None, as_json: bool) -> None:
    from sea_pipeline.cli import terminal
    from sea_pipeline.cli.tables import labels as label_tables
    from sea_pipeline.labels import statistics
    from sea_pipeline.report import figures

    for bad in store.quarantine() if image not in store else ():
        if bad["image_id"] == image:
            raise UserError(f"{labels}: {image!r} was not labelled: {bad['stage']}: {bad['message']}")
    try:
        found = store[image]
    except KeyError as missing:
        raise UserError(f"{labels}: {missing}") from None
    if save is not None:
        figure = figures.labels_figure(figures.photo_of(store, image), found, store.words)
        if lacking := figures.save_figure(figure, save):
            terminal.warning(f"{save}: the font has no {' '.join(lacking)}; they are boxes there")
    if as_json:
        print_json(statistics.labels_to_json(image, found, store.words))
    else:
        label_tables.image_tables(image, found, store.words)


def _show_statistics(store: "LabelStore", save: Path | None, as_json: bool) -> None:
    from sea_pipeline.cli import terminal
    from sea_pipeline.cli.tables import labels as label_tables
    from sea_pipeline.labels import statistics
    from sea_pipeline.report import figures

    with terminal.progress("counting", len(store)) as advance:
        stats = statistics.statistics(store, advance)
    if save is not None:
        figures.save_figure(figures.statistics_figure(stats), save)
    if as_json:
        print_json(stats.to_json(store.words))
    else:
        label_tables.statistics_tables(stats, store.words)
