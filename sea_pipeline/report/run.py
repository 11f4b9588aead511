"""Write the report of labels and runs, one HTML file that any browser opens without a network.

Numbers become compact JSON here (`labels`, `runs`), which `page` puts into a template with style and scripts. A
model's output for images comes from the run's `views.json`, which the trainer writes, so no model runs here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.extras import require
from sea_pipeline.core.progress import Reporter
from sea_pipeline.labels.store import LabelStore, open_labels
from sea_pipeline.output.folder import is_ours
from sea_pipeline.output.run_files import stage_folders
from sea_pipeline.report.labels import labels_data
from sea_pipeline.report.page import render
from sea_pipeline.report.runs import RunInput, kept_views, runs_data
from sea_pipeline.report.settings import ReportSettings
from sea_pipeline.storage.paths import Place, place
from sea_pipeline.storage.results import ResultKind, check_result, publish_result

REPORT = ResultKind("--out", b'<meta name="generator" content="sea-pipeline ')
"""What `report` writes."""

__all__ = ["ReportSettings", "RunInput", "check_out", "find_inputs", "kept_views", "write_report"]


def find_inputs(folders: Sequence[str | Place]) -> tuple[LabelStore | None, list[RunInput]]:
    """Find the labels and the runs among folders.

    A folder whose subfolders are runs gives these runs, in the order of `stage_folders`.

    Raises:
        UserError: a folder is neither or is not finished, or several are labels.
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
    if not isinstance(folder, Path):  # runs are always on this machine
        return []
    if (folder / "run.json").is_file():
        return [RunInput.of(folder, folder.name)]
    return [RunInput.of(stage, f"{folder.name}/{stage.name}") for stage in stage_folders(folder).folders]


def check_out(out: Path, store: LabelStore | None, runs: Sequence[RunInput]) -> None:
    """Check, before any work, that the report of labels and runs can be written to this path.

    Raises:
        UserError: it cannot, see `check_result`; or jinja2 is not installed.
    """
    require("jinja2", "report")
    check_result(out, REPORT, [*([store.path] if store is not None else []), *(run.path for run in runs)])


def write_report(
    store: LabelStore | None,
    runs: Sequence[RunInput],
    settings: ReportSettings,
    *,
    reporter: Reporter,
) -> dict[str, int]:
    """Write the file, and return the numbers of photos shown, of photos gone, and of bytes.

    Raises:
        UserError: labels are damaged, or the file cannot be written.
    """
    check_out(settings.out, store, runs)
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
