"""A command that works shard by shard: what each of them brings, and the one script that runs them all."""

import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from sea_pipeline.core.devices import resolve_device
from sea_pipeline.core.progress import SILENT, Advance, Reporter
from sea_pipeline.execution.cluster_settings import Crew
from sea_pipeline.execution.dispatch import StageRun, driver_device
from sea_pipeline.execution.local import run
from sea_pipeline.execution.run_report import Report
from sea_pipeline.execution.stage import Stage
from sea_pipeline.inputs.samples import Listing
from sea_pipeline.output.begin import Growing, begin
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.mend import take_back_damaged
from sea_pipeline.storage.hashing import fingerprint_of
from sea_pipeline.storage.paths import Place, place


class ShardedSettings(Protocol):
    """What the settings of such commands have in common."""

    @property
    def out(self) -> str | Path | None:
        """The folder, or the URL of one; None for one whose name tells the settings apart."""
        ...

    @property
    def extend(self) -> bool:
        """Whether images that are new are added to a folder that was begun without them; see `begin`."""
        ...

    @property
    def limit(self) -> int | None:
        """How many images are taken, in the order of their ids; None for all."""
        ...

    @property
    def shard_size(self) -> int:
        """Images per shard."""
        ...

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


S = TypeVar("S", bound=ShardedSettings)


class ShardedJob(ABC, Generic[S]):
    """What one command that works shard by shard has of its own; `run_job` calls its methods in the order below.

    Only the settings travel to workers; there `stage` opens the rest again.
    """

    name: ClassVar[str]
    """Of the work, for the names of tasks: `label`."""
    doing: ClassVar[str]
    """What the bar says: `labelling`."""
    kind: ClassVar[str]
    """What the folder holds: `labels`. Folders without a name of their own go below runs/KIND."""

    def __init__(self, settings: S) -> None:
        self.settings = settings
        self.device = ""
        """Where this process computes, from `open` on."""

    def __reduce__(self) -> tuple[type[Self], tuple[S]]:
        """Pickles the settings alone."""
        return type(self), (self.settings,)

    def check(self) -> None:
        """Refuses settings that do not fit together, before anything is opened."""
        return

    def open(self, ledger: Ledger | None) -> None:
        """Opens what the other methods need; on a worker the folder is there already, and is `ledger`."""
        return

    @abstractmethod
    def listing(self) -> Listing:
        """Lists the images."""

    @abstractmethod
    def fields(self) -> dict[str, Any]:
        """Gives everything that decides what is written, by name; nothing that does not."""

    def name_parts(self, listing: Listing) -> list[str]:
        """Gives the first parts of the default folder's name."""
        return [listing.name]

    def check_folder(self, out: Place, listing: Listing, reporter: Reporter) -> None:
        """Refuses a folder before anything is written there, or says what will be."""
        return

    def companions(self) -> dict[str, bytes]:
        """Gives small files that belong beside the shards, by name."""
        return {}

    def spec(self) -> str | None:
        """Gives the encoder's spec, which `dataset.json` names, see `Dataset`."""
        return None

    def growing(self) -> Growing:
        """Gives the fields that grow with the input, see `begin`."""
        return {}

    def announce(self, ledger: Ledger, reporter: Reporter) -> None:
        """Says where the work goes, once the folder is there."""
        return

    def prepare(self, ledger: Ledger, listing: Listing, reporter: Reporter) -> None:
        """Does what is better done once than by every worker; left out if only the workers have GPUs for it."""
        return

    @abstractmethod
    def make_stage(self, ledger: Ledger) -> Stage:
        """Makes what does the shards, of what is open."""

    def stage(self, ledger: Ledger) -> Stage:
        """Opens everything on a worker, and makes the stage; see `worker.Job`."""
        from sea_pipeline.execution.worker import refuse_other_fields

        self.device = resolve_device(self.settings.device)
        self.open(ledger)
        refuse_other_fields(ledger, self.fields())
        return self.make_stage(ledger)


def run_job(job: ShardedJob[Any], reporter: Reporter = SILENT) -> StageRun:
    """Does a job, or what is missing of it: here, or by the workers that its settings ask for.

    Two of these on one folder at once both end with the same folder.

    Raises:
        UserError: see the job's methods, `driver_device`, `begin`, `take_back_damaged`, `local.run`, `distribute`.
    """
    settings = job.settings
    job.check()
    job.device, prepares = driver_device(settings.crew, settings.device)
    job.open(None)
    listing = job.listing()
    fields = job.fields()
    out = place(settings.out or _default_folder(job, listing, fields))
    job.check_folder(out, listing, reporter)
    ledger = begin(
        out, job.kind, fields, listing, settings.shard_size, job.companions(),
        encoder=job.spec(), extend=settings.extend, growing=job.growing(),
    )  # fmt: skip
    job.announce(ledger, reporter)
    _take_back(settings, ledger, reporter)
    if ledger.complete:
        return StageRun(ledger, listing, Report(), {"device": job.device})
    if prepares:
        job.prepare(ledger, listing, reporter)
    stage = job.make_stage(ledger) if settings.crew.alone else None
    done = ledger.done()
    with reporter.progress(job.doing, ledger.dataset.images, done.images + done.bad) as advance:
        if stage is None:
            return StageRun(ledger, listing, *_by_workers(job, ledger, advance, reporter))
        shards = settings.crew.shards(ledger.dataset.shards)
        report = run(ledger, stage, max_bad=settings.max_bad, shards=shards, advance=advance)
    return StageRun(ledger, listing, report, stage.describe())


def _by_workers(
    job: ShardedJob[Any], ledger: Ledger, advance: Advance, reporter: Reporter
) -> tuple[Report, dict[str, str]]:
    from sea_pipeline.execution.driver import distribute

    settings = job.settings
    return distribute(
        settings.crew, job, ledger, settings.device, max_bad=settings.max_bad, advance=advance, reporter=reporter
    )


def _take_back(settings: ShardedSettings, ledger: Ledger, reporter: Reporter) -> None:
    """Takes back finished shards that are damaged, or whose bad images may have been mended: the run does them again.

    Raises:
        UserError: see `take_back_damaged`.
    """
    shards = settings.crew.shards(ledger.dataset.shards)
    take_back_damaged(ledger, range(ledger.dataset.shards) if shards is None else shards, reporter)
    if settings.retry_bad or not ledger.finished:
        ledger.take_back_bad_shards(0 if settings.retry_bad else settings.max_bad, shards)


def _default_folder(job: ShardedJob[Any], listing: Listing, fields: dict[str, Any]) -> Path:
    settings = job.settings
    origin = {"source": listing.origin, "image_root": listing.root, "shard_size": settings.shard_size}
    parts = [*job.name_parts(listing), *([f"first{settings.limit}"] if settings.limit else [])]
    name = "-".join([*parts, fingerprint_of(fields | origin)[:8]])
    return Path("runs") / job.kind / re.sub(r"[^\w.-]+", "_", name)
