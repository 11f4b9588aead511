"""The command that makes the HTML report."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from inspect import Parameter
from typing import TYPE_CHECKING, Annotated, Any

from sea_pipeline.cli import completion
from sea_pipeline.cli.app import print_json
from sea_pipeline.cli.command import command_with
from sea_pipeline.cli.needs import TRAINING, refuse_missing
from sea_pipeline.cli.own_options import json_option
from sea_pipeline.core.device_names import check_device_name
from sea_pipeline.core.errors import UserError
from sea_pipeline.core.own_trainer import take_own_trainer

if TYPE_CHECKING:
    from sea_pipeline.report.runs import RunInput
    from sea_pipeline.report.settings import ReportSettings


def options() -> list[Parameter]:
    """Make the options from `ReportSettings`."""
    from sea_pipeline.cli.options import options_of
    from sea_pipeline.report.settings import ReportSettings

    return options_of(
        ReportSettings,
        arguments={"folders": "LABELS|RUN…"},
        in_range=("images", "limit"),
        offered={"folders": completion.labels_and_runs},
    )


@command_with(options)
def report(
    *,
    as_json: Annotated[bool, json_option("Print JSON: `out`, `photos`, `gone`, `runs`, `bytes`.")] = False,
    **asked: object,
) -> None:
    """Write one HTML file that shows labels and runs.

    Any browser opens the file, without a network. The model of each run looks at
    some photos on --device, which takes minutes. What it finds is kept in the
    run's folder as views.json, so that the next report has it at once.

    Example: sea-pipeline report runs/labels/x runs/train/baseline runs/train/sea --out report.html
    """
    from sea_pipeline.cli.options import settings_of
    from sea_pipeline.report.settings import ReportSettings

    made = make_report(settings_of(ReportSettings, asked))
    if as_json:
        print_json(made)
    else:
        tell_report(made)


def make_report(settings: "ReportSettings", names: Sequence[str] = ()) -> dict[str, Any]:
    """Make the report as the command does.

    Args:
        settings: the settings.
        names: the names of the runs in their order; runs without one are named after their folders.

    Returns:
        `out`, the numbers of `photos`, of those that are `gone`, and of `runs`, and the file's `bytes`.

    Raises:
        UserError: see `find_inputs` and `write_report`; or the device does not exist.
    """
    from sea_pipeline.cli import terminal
    from sea_pipeline.report.run import check_out, find_inputs, write_report

    _check_device(settings.device)
    store, runs = find_inputs(settings.folders)
    check_out(settings.out, store, runs)
    for run, name in zip(runs, names, strict=False):
        run.name = name
    for run in runs:
        _look(run, settings.images, settings.device)
    made = write_report(store, runs, settings, reporter=terminal.Terminal())
    return {"out": str(settings.out), "runs": len(runs), **made}


def _check_device(spec: str) -> None:
    check_device_name(spec)
    if spec.startswith("cuda"):
        with suppress(ImportError):  # without torch no model looks at photos, and the report says so
            from sea_pipeline.core.devices import resolve_device

            resolve_device(spec)


def tell_report(made: Mapping[str, Any]) -> None:
    """Print the result of `make_report`."""
    from rich.filesize import decimal

    from sea_pipeline.cli import terminal

    gone = f", {made['gone']:,} of them gone" if made["gone"] else ""
    what = [terminal.counted(made["photos"], "photo") + gone] if made["photos"] else []
    what += [terminal.counted(made["runs"], "run")] if made["runs"] else []
    what += [decimal(made["bytes"])]
    terminal.output.print(f"\nThe report is {made['out']} ({', '.join(what)}); open it in a browser.")


def _look(run: "RunInput", images: int, device: str) -> None:
    """Set a run's views, computed if possible, else read from its folder, else None with the reason."""
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
