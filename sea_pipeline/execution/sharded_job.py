"""Define what each command that works shard by shard brings, and run any of them in one way."""

import platform
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from sea_pipeline.core.devices import resolve_device
from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT, Advance, Reporter, say_if_slow
from sea_pipeline.execution.cluster_settings import WorkerSettings
from sea_pipeline.execution.dispatch import StageRun, driver_role
from sea_pipeline.execution.local import run
from sea_pipeline.execution.run_report import RunReport
from sea_pipeline.execution.stage import Stage
from sea_pipeline.inputs.samples import Listing
from sea_pipeline.output.begin import Growing, open_or_create
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.mend import reopen_damaged_shards
from sea_pipeline.storage.hashing import differing_fields, fingerprint_of
from sea_pipeline.storage.locks import locked
from sea_pipeline.storage.paths import Place, place
from sea_pipeline.storage.publish import refuse_in_place


class ShardedSettings(Protocol):
    """The settings that all such commands have."""

    out: str | Path | None
    """The folder or its URL; None for a folder named after the settings."""
    extend: bool
    """Whether new images are added to a folder that was begun without them; see `open_or_create`."""
    limit: int | None
    """The number of images that are taken, in the order of their ids; None for all."""
    shard_size: int
    """The number of images per shard."""
    crew: WorkerSettings
    """The settings of the workers."""
    device: str
    """The device that was asked for."""
    max_bad: float
    """The largest share of bad images; see `local.run`."""
    retry_bad: bool
    """Whether shards with bad images are done again, also in a finished folder."""


S = TypeVar("S", bound=ShardedSettings)


class ShardedJob(ABC, Generic[S]):
    """One command that works shard by shard.

    `run_job` calls its methods in the order below. Only the settings travel to workers, where `stage` opens the rest
    again.
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
        """The device of this process, known from `open` on."""
        self.reporter = SILENT
        """Receives the progress of `open` and the methods after it, on the driver."""

    def __reduce__(self) -> tuple[type[Self], tuple[S]]:
        """Pickle the settings alone, for workers."""
        return type(self), (self.settings_for_workers(),)

    def settings_for_workers(self) -> S:
        """Return the settings with absolute paths, because workers may have another current folder.

        Called after `open`.
        """
        return self.settings

    def check(self) -> None:
        """Refuse settings that do not fit together, before anything is opened."""
        return

    def open(self, ledger: Ledger | None) -> None:
        """Open what the other methods need.

        Args:
            ledger: the folder, which exists already on a worker; None on the driver.
        """
        return

    @abstractmethod
    def listing(self) -> Listing:
        """List the images."""

    @abstractmethod
    def fields(self) -> dict[str, Any]:
        """Return, by name, everything that decides what is written, and nothing else."""

    def name_parts(self, listing: Listing) -> list[str]:
        """Return the first parts of the default folder's name."""
        return [listing.name]

    def check_folder(self, out: Place, listing: Listing, reporter: Reporter) -> None:
        """Refuse a folder, or announce what will be written, before anything is."""
        return

    def companions(self) -> dict[str, bytes]:
        """Return the small files, by name, that are written next to the shards."""
        return {}

    def spec(self) -> str | None:
        """Return the encoder's spec for `dataset.json`.

        See `DatasetFile`.
        """
        return None

    def growing(self) -> Growing:
        """Return the fields that grow with the input.

        See `open_or_create`.
        """
        return {}

    def advice(self, out: Place) -> Mapping[str, str]:
        """Return, by the name of a field, what to do if the folder `out` was begun with another value."""
        return {}

    def announce(self, ledger: Ledger, reporter: Reporter) -> None:
        """Say where the work goes, once the folder exists."""
        return

    def prepare(self, ledger: Ledger, listing: Listing, reporter: Reporter) -> None:
        """Do what is better done once than by every worker.

        It is left out if only the workers have GPUs for it.
        """
        return

    @abstractmethod
    def make_stage(self, ledger: Ledger) -> Stage:
        """Make the stage that does the shards, from what is open."""

    def stage(self, ledger: Ledger) -> Stage:
        """Open everything on a worker, and make the stage.

        See `worker.Job`.
        """
        self.device = resolve_device(self.settings.device)
        self.open(ledger)
        refuse_other_fields(ledger, self.fields())
        return self.make_stage(ledger)


def refuse_other_fields(ledger: Ledger, fields: dict[str, Any]) -> None:
    """Raise a UserError if this worker's weights, words or versions would make other shards than the folder's."""
    if fingerprint_of(fields) != fingerprint_of(ledger.fields):
        differing = differing_fields(ledger.fields, fields)
        raise UserError(
            f"{ledger.root}: a worker on {platform.node()} would make other {ledger.dataset.kind}; give it the same "
            f"files and packages as here. Differing: {'; '.join(differing).replace('asked for', 'on the worker')}"
        )


def run_job(job: ShardedJob[Any], reporter: Reporter = SILENT) -> StageRun:
    """Run a job, or what is missing of it, here or on the workers that its settings ask for.

    Two runs on one folder at the same time both end with the same folder.

    Raises:
        UserError: see the job's methods, `driver_role`, `open_or_create`, `reopen_damaged_shards`, `local.run`,
            `distribute`.
    """
    settings = job.settings
    refuse_in_place(settings.out or "")
    job.check()
    role = driver_role(settings.crew, settings.device)
    job.device, job.reporter = role.device, reporter
    job.open(None)
    with say_if_slow(reporter, "listing the images"):
        listing = job.listing()
    fields = job.fields()
    out = place(settings.out or _default_folder(job, listing, fields))
    job.check_folder(out, listing, reporter)
    with say_if_slow(reporter, f"planning the shards of {out}"):
        ledger = open_or_create(
            out, job.kind, fields, listing, settings.shard_size, job.companions(),
            encoder=job.spec(), extend=settings.extend, growing=job.growing(), advice=job.advice(out),
            limited=settings.limit is not None,
        )  # fmt: skip
    job.announce(ledger, reporter)
    _reopen_shards(settings, ledger, reporter)
    if ledger.complete:
        return StageRun(ledger, listing, RunReport(), {"device": job.device})
    if role.embeds_words:
        job.prepare(ledger, listing, reporter)
    stage = job.make_stage(ledger) if settings.crew.in_process else None
    done = ledger.done()
    with (
        _telling_what_is_kept(ledger, reporter),
        reporter.progress(job.doing, ledger.dataset.images, done.images + done.bad) as advance,
    ):
        if stage is None:
            return StageRun(ledger, listing, *_by_workers(job, ledger, advance, reporter))
        shards = settings.crew.shards(ledger.dataset.shards)
        report = run(ledger, stage, max_bad=settings.max_bad, shards=shards, advance=advance)
    return StageRun(ledger, listing, report, stage.describe())


@contextmanager
def _telling_what_is_kept(ledger: Ledger, reporter: Reporter) -> Iterator[None]:
    """Say after Ctrl-C how much of the work is kept, because images of a shard that is not whole are not."""
    try:
        yield
    except KeyboardInterrupt:
        done, planned = ledger.done(), ledger.dataset
        reporter.message(
            f"{done.shards:,} of {planned.shards:,} shards are kept, with {done.images + done.bad:,} of "
            f"{planned.images:,} images; a shard is kept when its {planned.shard_size:,} images are done (--shard-size)"
        )
        raise


def _by_workers(
    job: ShardedJob[Any], ledger: Ledger, advance: Advance, reporter: Reporter
) -> tuple[RunReport, dict[str, str]]:
    from sea_pipeline.execution.driver import distribute

    settings = job.settings
    return distribute(
        settings.crew, job, ledger, settings.device, max_bad=settings.max_bad, advance=advance, reporter=reporter
    )


def _reopen_shards(settings: ShardedSettings, ledger: Ledger, reporter: Reporter) -> None:
    """Take back finished shards that are damaged, or whose bad images may have been mended.

    The run does them again.

    Raises:
        UserError: see `reopen_damaged_shards`.
    """
    shards = settings.crew.shards(ledger.dataset.shards)
    reopen_damaged_shards(ledger, range(ledger.dataset.shards) if shards is None else shards, reporter)
    _reopen_bad_shards(settings, ledger)


def _reopen_bad_shards(settings: ShardedSettings, ledger: Ledger) -> None:
    """See `Ledger.reopen_bad_shards`; under the lock, so a run that is ending finishes first or sees them missing."""
    with locked(ledger.root):
        if settings.retry_bad or not ledger.finished:
            shards = settings.crew.shards(ledger.dataset.shards)
            ledger.reopen_bad_shards(0 if settings.retry_bad else settings.max_bad, shards)


def _default_folder(job: ShardedJob[Any], listing: Listing, fields: dict[str, Any]) -> Path:
    settings = job.settings
    origin = {"source": listing.origin, "image_root": listing.root, "shard_size": settings.shard_size}
    parts = [*job.name_parts(listing), *([f"first{settings.limit}"] if settings.limit else [])]
    name = "-".join([*parts, fingerprint_of(fields | origin)[:8]])
    return Path("runs") / job.kind / re.sub(r"[^\w.-]+", "_", name)
