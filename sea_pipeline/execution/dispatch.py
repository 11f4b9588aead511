"""Report what a command that works shard by shard did, and choose the driver's device."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from sea_pipeline.core.devices import resolve_device
from sea_pipeline.core.extras import require
from sea_pipeline.execution.cluster_settings import ExistingCluster, LocalCluster, WorkerSettings
from sea_pipeline.execution.run_report import RunReport
from sea_pipeline.inputs.samples import Listing
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.status import status_to_json


@dataclass
class StageRun:
    """The result of a command that works shard by shard."""

    ledger: Ledger
    listing: Listing
    report: RunReport
    about: dict[str, str]
    """The stage's description of itself, see `Stage.describe`. It is `device` alone if nothing was left to do."""

    @property
    def device(self) -> str:
        """Return the device that the stage computes on."""
        return self.about.get("device", "")

    @property
    def backend(self) -> str:
        """Return the search backend of labels or the codec of targets, empty if nothing was left to do."""
        return self.about.get("backend", "")

    def to_json(self) -> dict[str, Any]:
        """Return `status_to_json` of the folder, its path and this run's figures, for machines.

        `run` holds `images` and `bad` of this run alone, `seconds`, `images_per_second` (null if it labelled none),
        `device`, `backend` and the rest of the stage's description, and `failed`, which maps a shard's number to a
        reason.
        """
        report = self.report
        run: dict[str, Any] = {"images": report.images, "bad": report.bad, "seconds": round(report.wall_seconds, 3)}
        run |= {"images_per_second": round(report.images / report.wall_seconds, 3) if report.images else None}
        run |= {"device": "", "backend": "", **self.about, "failed": report.failed}
        return {"folder": str(self.ledger.root), **status_to_json(self.ledger), "run": run}


class DriverRole(NamedTuple):
    """The work of the process that starts a run."""

    device: str
    embeds_words: bool
    """Whether it embeds words and the like."""


def driver_role(crew: WorkerSettings, device: str) -> DriverRole:
    """Choose what this process does, and on which device.

    Without workers it does both itself. With workers it computes on the CPU, because GPU memory that it held would be
    missing to them. It then embeds words only if it starts local workers without GPUs.

    Raises:
        UserError: see `resolve_device`, `WorkerSettings.cluster_for` and `scheduler_address`; or dask is not installed.
    """
    if crew.in_process:
        return DriverRole(resolve_device(device), embeds_words=True)
    require("distributed", "dask")
    cluster = crew.cluster_for(device)
    if isinstance(cluster, ExistingCluster):
        from sea_pipeline.execution.dask_clusters import scheduler_address

        scheduler_address(cluster.address)
    return DriverRole("cpu", embeds_words=isinstance(cluster, LocalCluster) and not cluster.gpus)
