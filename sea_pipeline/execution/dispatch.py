"""What a command that works shard by shard did, and on what it computes."""

from dataclasses import dataclass
from typing import Any

from sea_pipeline.core.devices import resolve_device
from sea_pipeline.core.extras import require
from sea_pipeline.execution.cluster_settings import Crew, Existing, LocalCluster
from sea_pipeline.execution.run_report import Report
from sea_pipeline.inputs.samples import Listing
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.status import status_to_json


@dataclass
class StageRun:
    """What a command that works shard by shard did, and with what."""

    ledger: Ledger
    listing: Listing
    report: Report
    about: dict[str, str]
    """What the stage says of itself, see `Stage.describe`; `device` alone if nothing was left to do."""

    @property
    def device(self) -> str:
        """Where the stage computes."""
        return self.about.get("device", "")

    @property
    def backend(self) -> str:
        """For labels what proposed candidates, for targets their codec; empty if nothing was left to do."""
        return self.about.get("backend", "")

    def to_json(self) -> dict[str, Any]:
        """For machines: `status_to_json` of the folder, its path, and what this run did.

        `run` holds `images` and `bad` of this run alone, `seconds`, `images_per_second` (null where it labelled none),
        `device`, `backend` and what else the stage says of itself, and `failed`: reasons by the number of the shard.
        """
        report = self.report
        run: dict[str, Any] = {"images": report.images, "bad": report.bad, "seconds": round(report.wall_seconds, 3)}
        run |= {"images_per_second": round(report.images / report.wall_seconds, 3) if report.images else None}
        run |= {"device": "", "backend": "", **self.about, "failed": report.failed}
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
