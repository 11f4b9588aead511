"""The command that makes the HTML report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sea_pipeline.cli import completion
from sea_pipeline.cli.app import print_json
from sea_pipeline.cli.command import command
from sea_pipeline.cli.needs import TRAINING, refuse_missing
from sea_pipeline.cli.options import local_output
from sea_pipeline.core.errors import UserError
from sea_pipeline.core.own_trainer import take_own_trainer

if TYPE_CHECKING:
    from sea_pipeline.report.runs import RunInput


@command
def report(
    folders: Annotated[
        list[str],
        typer.Argument(
            help="A folder of labels, runs, or both; several runs are shown side by side.",
            metavar="LABELS|RUN…",
            autocompletion=completion.labels_and_runs,
        ),
    ],
    out: Annotated[Path, local_output("The HTML file.")] = Path("report.html"),
    images: Annotated[
        int, typer.Option(min=0, help="Held-out photos of each run that its model looks at; 0: only what is there.")
    ] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N photos of the labels.")] = None,
    words: Annotated[int, typer.Option(help="Words of a patch that are kept.")] = 5,
    thumbnail: Annotated[int, typer.Option(help="Longer side of a photo in the report, pixels.")] = 320,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda or cuda:N; for runs.", autocompletion=completion.devices)
    ] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: `out`, `photos`, `gone`, `runs`, `bytes`.")
    ] = False,
) -> None:
    """Make one HTML file that shows labels and runs in any browser, with no network.

    What a run's model makes of photos takes minutes; it is kept in the run's folder as views.json.

    Example: sea-pipeline report runs/labels/x runs/train/baseline runs/train/sea --out report.html
    """
    made = make_report(folders, out, images=images, device=device, limit=limit, words=words, thumbnail=thumbnail)
    if as_json:
        print_json(made)
    else:
        tell_report(made)


def make_report(
    folders: Sequence[str | Path],
    out: Path,
    *,
    images: int,
    names: Sequence[str] = (),
    device: str = "auto",
    **settings: int | None,
) -> dict[str, Any]:
    """The command as a function; `names` is what the runs are called, in their order, where that is not their folders.

    Returns:
        `out`, the numbers of `photos`, of those that are `gone`, and of `runs`, and the file's `bytes`.

    Raises:
        UserError: see `find_inputs` and `write_report`.
    """
    from sea_pipeline.cli import terminal
    from sea_pipeline.report.run import ReportSettings, check_out, find_inputs, write_report

    asked = ReportSettings.of(out=out, **settings)
    store, runs = find_inputs(folders)
    check_out(asked.out)
    for run, name in zip(runs, names, strict=False):
        run.name = name
    for run in runs:
        _look(run, images, device)
    made = write_report(store, runs, asked, reporter=terminal.Terminal())
    return {"out": str(out), "runs": len(runs), **made}


def tell_report(made: Mapping[str, Any]) -> None:
    """Prints what `make_report` returns."""
    from rich.filesize import decimal

    from sea_pipeline.cli import terminal

    gone = f", {made['gone']:,} of them gone" if made["gone"] else ""
    what = [terminal.counted(made["photos"], "photo") + gone] if made["photos"] else []
    what += [terminal.counted(made["runs"], "run")] if made["runs"] else []
    what += [decimal(made["bytes"])]
    terminal.output.print(f"\nThe report is {made['out']} ({', '.join(what)}); open it in a browser.")


def _look(run: "RunInput", images: int, device: str) -> None:
    """Gives a run its views: computed where they can be, else those that lie in its folder, else none and why."""
    from sea_pipeline.cli import terminal
    from sea_pipeline.report.runs import kept_views

    if images:
        try:
            refuse_missing("views", [TRAINING])
            take_own_trainer()
            from trainer.training.report_views import ViewSettings, run_views

            run.views = run_views(run.path, ViewSettings(images=images, device=device), reporter=terminal.Terminal())
            return
        except (ImportError, UserError) as problem:
            run.note = str(problem)
    run.views = kept_views(run.path)
    if run.note:
        shown = "shown as they were made" if run.views is not None else "left out"
        terminal.say(f"{run.path}: views cannot be made now ({run.note}); they are {shown}")
