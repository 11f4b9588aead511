"""What a person sees in the terminal: progress on stderr, tables on stdout."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from sea_pipeline.analysis import BIN_WIDTH, Statistics, image_words
from sea_pipeline.store import Labels

if TYPE_CHECKING:  # it brings torch
    from sea_pipeline.label_run import LabelRun

output = Console(highlight=False, soft_wrap=True)
messages = Console(stderr=True, highlight=False, soft_wrap=True)


class _Rate(ProgressColumn):
    """Images per second since the start, not of the last seconds: shards and threads make those jump."""

    def render(self, task: Task) -> Text:
        done = task.completed - task.fields["already"]
        return Text(f"{done / task.elapsed:.1f}/s" if task.elapsed and done > 0 else "", style="cyan")


@contextmanager
def progress(what: str, total: int, already: int) -> Iterator[Callable[[int], None]]:
    """A progress bar with rate and time left; silent where stderr is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=messages, transient=True, disable=not messages.is_terminal) as bars:
        task = bars.add_task(what, total=total, completed=already, already=already)
        yield lambda passed: bars.advance(task, passed)


def error(message: str) -> None:
    """One line on stderr."""
    messages.print(f"[bold red]error:[/] {escape(' '.join(message.split()))}")


def facts(rows: Mapping[str, str], title: str | None = None) -> None:
    """A table of names and values."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, escape(value))
    output.print(table)


def label_table(run: "LabelRun") -> None:
    """The table at the end of `label`."""
    report, ledger = run.report, run.ledger
    commits = list(ledger.commits())
    images, bad = sum(commit.rows for commit in commits), sum(commit.bad for commit in commits)
    size = sum(commit.files[0].bytes for commit in commits)
    rows = {
        "labels": str(ledger.root),
        "input": run.listing.origin,
        "images": f"{images:,} labelled, {bad:,} bad",
        "shards": f"{len(commits):,} of {ledger.dataset.shards:,} done",
        "disk": f"{size / 1e6:.1f} MB, {size / max(1, images) / 1e3:.1f} kB an image",
    }
    if report.images:
        computing = {part: spent for part, spent in report.parts.items() if part != "decode"}
        shares = ", ".join(f"{part} {spent / report.seconds:.0%}" for part, spent in computing.items())
        rows["this run"] = (
            f"{report.images:,} images in {report.seconds:.1f} s, {report.images / report.seconds:.1f} images/s on "
            f"{run.device} with {run.backend} ({shares}; decoding runs beside them)"
        )
    else:
        rows["this run"] = "nothing was left to do"
    for what, count in run.listing.notes.items():
        rows.setdefault("left out", "")
        rows["left out"] += f"{'; ' if rows['left out'] else ''}{count:,} {what}"
    for shard, reason in report.failed.items():
        rows[f"shard {shard} failed"] = f"{reason} (see {ledger.root / 'logs'})"
    if bad:
        rows["bad images"] = f"listed with their reasons by: sea-pipeline inspect {ledger.root}"
    facts(rows)


def statistics_tables(stats: Statistics, words: tuple[str, ...]) -> None:
    """The tables of `inspect LABELS`: SEA's Figure 6 and the most frequent words."""
    labelled = stats.labelled_patches / max(1, stats.patches)
    facts(
        {
            "images": f"{stats.images:,}",
            "patches": f"{stats.patches:,}, {labelled:.1%} of them with a label",
            "labels": f"{stats.labels:,}, {stats.labels / max(1, stats.patches):.2f} a patch",
            "words used": f"{stats.words_used:,} of {len(words):,}, {stats.share_used:.1%} of the list",
            "words below zero": f"{stats.share_below_zero:.1%} of the list have a mean similarity below 0",
        }
    )
    tops = np.linspace(-1, 1, 21)
    counts, _ = np.histogram(stats.mean_similarity, tops)
    _histogram(
        "scores of the labels (SEA Fig. 6a)",
        np.arange(len(stats.score_bins)) * BIN_WIDTH,
        stats.score_bins,
        BIN_WIDTH,
    )
    _histogram("mean similarity of every word of the list (SEA Fig. 6b)", tops, counts, 2 * BIN_WIDTH)
    output.print()
    table = Table(title="most frequent words", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("word", "labels", "best label of"):
        table.add_column(column, justify="left" if column == "word" else "right")
    for word in np.argsort(-stats.word_uses, kind="stable")[:15]:
        if stats.word_uses[word]:
            table.add_row(escape(words[word]), f"{stats.word_uses[word]:,}", f"{stats.first_uses[word]:,} patches")
    output.print(table)


def _histogram(title: str, starts: npt.NDArray[Any], counts: npt.NDArray[Any], width: float) -> None:
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    output.print()
    filled = np.flatnonzero(counts)
    for place in range(filled[0], filled[-1] + 1) if len(filled) else []:
        bar = "█" * round(40 * counts[place] / counts.max()) or "▏"
        table.add_row(
            f"{starts[place] + 0.0:5.2f} to {starts[place] + width:5.2f}", f"{counts[place]:,}", f"[cyan]{bar}[/]"
        )
    output.print(table)


def image_tables(image_id: str, labels: Labels, words: tuple[str, ...]) -> None:
    """The tables of `inspect LABELS IMAGE`: the image's words, and the best word of every patch in its place."""
    top = "  ".join(f"{words[word]} {total:.1f}" for word, total in image_words(labels))
    x0, y0, x1, y1 = labels.crop_box
    rows, columns = labels.grid
    facts(
        {
            "image": image_id,
            "grid": f"{rows} x {columns} over x {x0:.0%} to {x1:.0%}, y {y0:.0%} to {y1:.0%} of the picture",
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
    room = max(4, min(14, output.width // columns - 1))
    for row in labels.word_ids[:, 0].reshape(rows, columns):
        table.add_row(*(escape(words[word][:room]) if word >= 0 else "·" for word in row))
    output.print(table)
