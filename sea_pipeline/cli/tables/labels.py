"""Print labels, output folders and forecasts in a terminal."""

import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal
from rich.table import Column, Table
from rich.text import Text

from sea_pipeline.cli import terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from sea_pipeline.execution.dispatch import StageRun
    from sea_pipeline.labels.forecast import Forecast
    from sea_pipeline.labels.statistics import Statistics
    from sea_pipeline.labels.store import Labels
    from sea_pipeline.output.ledger import Ledger
    from sea_pipeline.output.records import Commit

_MOST_BAD = 20


def stage_table(run: "StageRun", kind: str, done_to: str) -> None:
    """Print the table at the end of a command that works shard by shard.

    `kind` names what was made, and `done_to` says what was done to images.
    """
    report, ledger = run.report, run.ledger
    done = ledger.done()
    rows = {
        kind: str(ledger.root),
        "input": run.listing.origin + (f" (ids: {run.listing.ids})" if run.listing.ids != "paths" else ""),
        "images": f"{done.images:,} {done_to}, {done.bad:,} bad",
        "shards": f"{done.shards:,} of {ledger.dataset.shards:,} done",
        "on disk": f"{decimal(done.bytes)}, {decimal(done.bytes // max(1, done.images))} per image",
    }
    if report.images or report.bad:
        wall = report.wall_seconds
        time = wall * report.workers * report.at_once
        shares = {part: spent / time for part, spent in report.seconds.items() if part != "decode"}
        shares["waiting for images, and the rest"] = max(0, 1 - sum(shares.values()))
        rows["this run"] = (
            f"{terminal.counted(report.images, 'image')} in {wall:.1f} s, {report.images / wall:.1f} images/s "
            f"on {run.device}"
            + (f" with {run.backend}" if run.backend else "")
            + (f", {report.workers} workers" if report.workers > 1 else "")
        )
        rows["time"] = ", ".join(f"{part} {share:.0%}" for part, share in shares.items() if share >= 0.005)
    elif not report.failed:
        rows["this run"] = "nothing was left to do"
    if run.listing.notes:
        rows["left out"] = "; ".join(f"{what}: {count:,}" for what, count in run.listing.notes.items())
    for shard, reason in report.failed.items():
        rows[f"shard {shard} failed"] = f"{reason} (see {ledger.root / 'logs'}; run the same command to try again)"
    if done.bad:
        rows["bad images"] = f"listed by: sea-pipeline status {ledger.root}"
    terminal.print_table(rows)


def status_tables(ledger: "Ledger", commits: "Sequence[Commit]") -> None:
    """Print the tables of `status`, given the valid commits."""
    from sea_pipeline.output.folder import QUARANTINE, FolderProgress

    done, planned, complete = FolderProgress.of(commits), ledger.dataset, ledger.is_complete(commits)
    crops = planned.fields.get("crops", {}).get("per_image")
    terminal.print_table(
        {
            "folder": str(ledger.root),
            "holds": f"{planned.kind}, " + ("finished" if complete else f"not finished; {ledger.finishing}"),
            "input": planned.source,
            "shards": f"{done.shards:,} of {planned.shards:,} done"
            + (f", the last at {done.last}" if done.last else ""),
            "images": f"{done.images:,} done, {done.bad:,} bad, of {planned.images:,} planned"
            + (f" (photos, and up to {terminal.counted(crops, 'crop')} of each)" if crops else ""),
            "on disk": decimal(done.bytes),
        }
        | _pace_rows(ledger, commits, complete=complete)
    )
    if done.bad:
        terminal.output.print()
        table = terminal.plain_table("bad image", "stage", "reason")
        for bad in islice(ledger.quarantined(commits), _MOST_BAD):
            table.add_row(bad["image_id"], bad["stage"], bad["message"])
        terminal.output.print(table)
        if done.bad > _MOST_BAD:
            terminal.output.print(f"… and {done.bad - _MOST_BAD:,} more in {ledger.root / QUARANTINE}")


def _pace_rows(ledger: "Ledger", commits: "Sequence[Commit]", *, complete: bool) -> dict[str, str]:
    from sea_pipeline.output.status import failing_shards, throughput

    speed, rows = throughput(ledger, datetime.datetime.now(datetime.UTC), commits), {}
    if speed.images_per_second and not complete:
        left = None if speed.seconds_left is None else datetime.timedelta(seconds=round(speed.seconds_left))
        quiet = datetime.timedelta(seconds=round(speed.seconds_since or 0))
        state = f"about {left} left" if left is not None else f"nothing finished for {quiet}: does it still run?"
        rows["rate"] = f"{speed.images_per_second:.1f} images/s of the latest shards, {state}"
    return rows | {f"shard {shard} fails": line for shard, line in failing_shards(ledger).items()}


def statistics_tables(stats: "Statistics", words: tuple[str, ...], *, histograms: bool = True) -> None:
    """Print the tables of `inspect LABELS`, with SEA's Figure 6 if `histograms`, and the most frequent words."""
    if not stats.images:
        terminal.output.print("no image was labelled")
        return
    labelled = stats.labelled_patches / max(1, stats.patches)
    terminal.print_table(
        {
            "images": f"{stats.images:,}"
            + (f" ({stats.images - stats.crops:,} photos, {stats.crops:,} crops of them)" if stats.crops else ""),
            "patches": f"{stats.patches:,}, {labelled:.1%} of them with a label",
            "labels": f"{stats.labels:,}, {stats.labels / max(1, stats.patches):.2f} per patch",
            "words used": f"{stats.words_used:,} of {len(words):,}, {stats.share_used:.1%} of the list",
            "words below zero": f"{stats.share_below_zero:.1%} of the list have a mean similarity below 0",
        }
    )
    if histograms:
        _figure_6(stats)
    terminal.output.print()
    table = terminal.plain_table("word", numbers=("labels", "best label of"), title="most frequent words")
    for word in stats.most_frequent():
        table.add_row(words[word], f"{stats.word_uses[word]:,}", f"{stats.best_uses[word]:,} patches")
    terminal.output.print(table)


def _figure_6(stats: "Statistics") -> None:
    import numpy as np

    from sea_pipeline.labels.statistics import BIN_WIDTH

    tops = np.linspace(-1, 1, 21)
    counts, _ = np.histogram(stats.mean_similarity, tops)
    starts = np.arange(len(stats.score_bins)) * BIN_WIDTH
    _histogram("scores of the labels (SEA Fig. 6a)", starts, stats.score_bins, BIN_WIDTH)
    _histogram("mean similarity of every word of the list (SEA Fig. 6b)", tops, counts, 2 * BIN_WIDTH)


def _histogram(title: str, starts: "npt.NDArray[Any]", counts: "npt.NDArray[Any]", width: float) -> None:
    table = terminal.plain_table("", "", Column(min_width=1), title=title, show_header=False)
    terminal.output.print()
    filled = counts.nonzero()[0]
    for position in range(filled[0], filled[-1] + 1) if len(filled) else []:
        bar = "█" * round(40 * counts[position] / counts.max()) or ("▏" if counts[position] else "")
        table.add_row(
            f"{starts[position] + 0.0:5.2f} to {starts[position] + width:5.2f}",
            f"{counts[position]:,}",
            Text(bar, style="cyan"),
        )
    terminal.output.print(table)


def image_tables(image_id: str, labels: "Labels", words: tuple[str, ...]) -> None:
    """Print the tables of `inspect LABELS IMAGE`.

    They show the image's words, and the best word of each patch in its place.
    """
    from sea_pipeline.labels.statistics import image_words

    top = "  ".join(f"{words[word]} {total:.1f}" for word, total in image_words(labels))
    x0, y0, x1, y1 = labels.crop_box
    rows, columns = labels.grid
    terminal.print_table(
        {
            "image": image_id,
            "grid": f"{rows} rows x {columns} columns",
            "covers": f"left {x0:.0%}, top {y0:.0%}, right {x1:.0%}, bottom {y1:.0%} of the image",
            "words": f"{top}  (scores summed over patches)",
        }
    )
    table = Table(
        title="best word of each patch",
        title_justify="left",
        show_header=False,
        padding=(0, 1, 0, 0),
        box=None,
    )
    room = max(1, min(14, terminal.output.width // columns - 1))
    for row in labels.word_ids[:, 0].reshape(rows, columns):
        table.add_row(*(words[word][:room] if word >= 0 else "·" for word in row))
    terminal.output.print(table)


def forecast_tables(found: "Forecast") -> None:
    """Print what was measured, what all images would take, and the hours by number of workers."""
    words = found.words_seconds
    embedded = f", {words:,.0f} s of them to embed words, which are kept now" if words > 1 else ""
    parts = ", ".join(f"{part} {1000 * spent:,.1f}" for part, spent in found.seconds_per_image.items())
    terminal.print_table(
        {
            "measured": f"{found.measured:,} images on {found.device}, {found.images_per_second:,.1f} images/s"
            + (f"; {found.bad:,} of them bad" if found.bad else ""),
            "ms per image": f"{parts} (decoding runs beside the others, summed over its threads)",
            "starting": f"{found.start_seconds:,.0f} s for each worker{embedded}",
            "memory": f"{decimal(found.memory_bytes)} for each worker",
            "planned": f"{terminal.counted(found.planned, 'image')} in {terminal.counted(found.shards, 'shard')}",
            "on disk": f"{decimal(round(found.bytes))}, {decimal(round(found.bytes_per_image))} per image",
        }
    )
    terminal.output.print()
    costs = any(share.cost is not None for share in found.shares)
    table = terminal.plain_table(numbers=("workers", "hours", *(["cost"] if costs else [])))
    for share in found.shares:
        cost = [] if share.cost is None else [f"{share.cost:,.2f}"]
        table.add_row(f"{share.workers:,}", f"{share.hours:,.2f}", *cost)
    terminal.output.print(table)
