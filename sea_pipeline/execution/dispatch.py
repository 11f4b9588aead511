"""The shards of a stage, by this process or by workers: what every command that works shard by shard shares."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sea_pipeline.core.devices import resolve_device
from sea_pipeline.core.extras import require
from sea_pipeline.core.progress import ProgressBar, no_bar
from sea_pipeline.execution.cluster_settings import Crew, Existing, LocalCluster
from sea_pipeline.execution.local import run
from sea_pipeline.execution.run_report import Report
from sea_pipeline.execution.stage import Stage
from sea_pipeline.inputs.samples import Listing
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.mend import take_back_damaged
from sea_pipeline.output.status import status_to_json

if TYPE_CHECKING:  # it brings dask
    from sea_pipeline.execution.worker import Recipe


class StageSettings(Protocol):
    """What the settings of such commands have in common."""

    @property
    def crew(self) -> Crew:
        """Who does the shards."""
        ...

    @property
    def device(self) -> str:
        """What was asked for."""
        ...

    @property
    def max_bad(self) -> float:
        """See `local.run`."""
        ...

    @property
    def retry_bad(self) -> bool:
        """Whether shards with bad images are done again, in a finished folder, too."""
        ...


@dataclass
class StageRun:
    """What a command that works shard by shard did, and with what."""

    ledger: Ledger
    listing: Listing
    report: Report
    device: str
    backend: str = ""
    """For labels what proposed candidates, for targets their codec; empty where nothing was left to do."""

    def to_json(self) -> dict[str, Any]:
        """For machines: `status_to_json` of the folder, its path, and what this run did.

        `run` holds `images` and `bad` of this run alone, `seconds`, `images_per_second` (null where it labelled none),
        `device`, `backend`, and `failed`: reasons by the number of the shard.
        """
        report = self.report
        run: dict[str, Any] = {"images": report.images, "bad": report.bad, "seconds": round(report.wall_seconds, 3)}
        run |= {"images_per_second": round(report.images / report.wall_seconds, 3) if report.images else None}
        run |= {"device": self.device, "backend": self.backend, "failed": report.failed}
        return {"folder": str(self.ledger.root), **status_to_json(self.ledger), "run": run}


def driver_device(crew: Crew, device: str) -> tuple[str, bool]:
    """What this process computes on, and whether it shall embed words and the like: not where workers have GPUs for it.

    With workers it never touches a GPU: the memory that it would hold there is theirs.

    Raises:
        UserError: see `resolve_device`, `Crew.described` and `scheduler_address`; or dask is not installed.
    """
    if crew.alone:
        return resolve_device(device), True
    require("distributed", "dask")
    cluster = crew.described(device)
    if isinstance(cluster, Existing):
        from sea_pipeline.execution.dask_clusters import scheduler_address

        scheduler_address(cluster.address)
    return "cpu", isinstance(cluster, LocalCluster) and not cluster.gpus


def take_back(
    settings: StageSettings, ledger: Ledger, progress: ProgressBar = no_bar, say: Callable[[str], None] = lambda _: None
) -> None:
    """Takes back finished shards that are damaged, or whose bad images may have been mended: the run does them again.

    Raises:
        UserError: see `take_back_damaged`.
    """
    shards = settings.crew.shards(ledger.dataset.shards)
    looked_at = range(ledger.dataset.shards) if shards is None else shards
    with progress("checking what is there", len(looked_at), 0) as advance:
        take_back_damaged(ledger, looked_at, advance=advance, say=say)
    if settings.retry_bad or not ledger.finished:
        ledger.take_back_bad_shards(0 if settings.retry_bad else settings.max_bad, shards)


def do_shards(
    settings: StageSettings,
    ledger: Ledger,
    stage: Stage | None,
    recipe: "Recipe",
    advance: Callable[[int], None],
    say: Callable[[str], None],
) -> tuple[Report, str, str]:
    """Does what is missing in a folder: with `stage` in this process, or without one by workers that follow `recipe`.

    Returns the report, the device and the backend.

    Raises:
        UserError: see `run` and `driver.distribute`.
    """
    if stage is not None:
        shards = settings.crew.shards(ledger.dataset.shards)
        report = run(ledger, stage, max_bad=settings.max_bad, shards=shards, advance=advance)
        return report, stage.device, stage.backend
    from sea_pipeline.execution.driver import distribute

    report, about = distribute(
        settings.crew, recipe, ledger, settings.device, max_bad=settings.max_bad, advance=advance, say=say
    )
    return report, about.get("device", ""), about.get("backend", "")
