"""The report: labels and runs as one HTML file that opens in any browser, without a network.

Numbers become compact JSON here (`labels`, `runs`), which `page` puts into a template with its style and scripts.
What a run's model makes of images comes from its `views.json`, which the trainer writes: no model runs here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.extras import require
from sea_pipeline.core.progress import Reporter
from sea_pipeline.labels.store import LabelStore, open_labels
from sea_pipeline.output.folder import is_ours
from sea_pipeline.report.labels import labels_data
from sea_pipeline.report.page import render
from sea_pipeline.report.runs import RunInput, kept_views, runs_data
from sea_pipeline.report.settings import ReportSettings
from sea_pipeline.storage.paths import Place, place
from sea_pipeline.storage.publish import check_result, publish_result

__all__ = ["ReportSettings", "RunInput", "check_out", "find_inputs", "kept_views", "write_report"]


def find_inputs(folders: Sequence[str | Place]) -> tuple[LabelStore | None, list[RunInput]]:
    """Labels and runs among folders; a folder whose subfolders are runs stands for these, in the order of their start.

    Raises:
        UserError: a folder is neither, is not finished, or there are several of labels.
    """
    stores: list[LabelStore] = []
    runs: list[RunInput] = []
    for folder in map(place, folders):
        if is_ours(folder):
            stores.append(open_labels(folder, verify=False))
        elif found := _runs_in(folder):
            runs += found
        else:
            raise UserError(
                f"{folder}: expected labels or a run; found neither dataset.json nor run.json in it; give the output "
                "folder of sea-pipeline label or train"
            )
    if len(stores) > 1:
        raise UserError(f"{stores[1].path}: expected labels once, found them twice; make a report of each")
    return (stores[0] if stores else None), runs


def _runs_in(folder: Place) -> list[RunInput]:
    if not isinstance(folder, Path):  # runs are of this machine
        return []
    if (folder / "run.json").is_file():
        return [RunInput.of(folder, folder.name)]
    stages = sorted(folder.glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    return [RunInput.of(file.parent, f"{folder.name}/{file.parent.name}") for file in stages]


def check_out(out: Path) -> None:
    """Before any work is done: whether the report can be written there, and with what.

    Raises:
        UserError: it cannot, or jinja2 is not installed.
    """
    require("jinja2", "report")
    check_result(out)


def write_report(
    store: LabelStore | None,
    runs: Sequence[RunInput],
    settings: ReportSettings,
    *,
    reporter: Reporter,
) -> dict[str, int]:
    """Writes the file; returns the number of photos shown, of those that are gone, and the bytes.

    Raises:
        UserError: labels are damaged, or the file cannot be written.
    """
    check_out(settings.out)
    data: dict[str, Any] = {}
    if store is not None:
        data["labels"] = labels_data(store, settings.limit, settings.words, settings.thumbnail, reporter)
    if runs:
        data["runs"] = runs_data(runs, settings.thumbnail)
    page = render(data, ", ".join([*([store.path.name] if store is not None else []), *(run.name for run in runs)]))
    with publish_result(settings.out) as scratch:
        scratch.write_bytes(page)
    photos = data.get("labels", {}).get("photos", [])
    return {"photos": len(photos), "gone": sum(not photo["src"] for photo in photos), "bytes": len(page)}
