"""`sea-pipeline label` as a function: settings in, a folder of labels out."""

import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from sea_pipeline.begin import begin
from sea_pipeline.crops import MARK, crop_id
from sea_pipeline.devices import resolve_device
from sea_pipeline.encoders import Encoder, EncoderOptions, EncoderSpec, load_encoder
from sea_pipeline.encoders.cache import word_embeddings
from sea_pipeline.encoders.spec import Precision, Template
from sea_pipeline.errors import UserError
from sea_pipeline.label import LabelStage
from sea_pipeline.ledger import Ledger
from sea_pipeline.probe import hint
from sea_pipeline.records import fingerprint_of
from sea_pipeline.run import Report, run
from sea_pipeline.samples import Listing, Sample
from sea_pipeline.search import Backend
from sea_pipeline.settings import Settings
from sea_pipeline.shards import KIND, WORDS
from sea_pipeline.sources import list_samples
from sea_pipeline.wordlists import WordList, load_wordlist

ProgressBar = Callable[[str, int, int], AbstractContextManager[Callable[[int], None]]]
"""(what, total, done already) to a context that gives a function to be told of what passes."""


def no_bar(what: str, total: int, done: int) -> AbstractContextManager[Callable[[int], None]]:
    """Shows nothing."""
    return nullcontext(lambda _: None)


class LabelSettings(Settings):
    """What `sea-pipeline label` is asked for."""

    images: str | None = None
    """What `sources.forms.FORMS` says, or None for the sample photos."""
    image_root: str | Path | None = None
    """Where the paths in a list of images start, a folder or a URL; None for the list's folder."""
    id_column: str | None = None
    """The column of a table that ids come from; None for the first one that will do."""
    streaming: bool = False
    """Read an `hf:` dataset forward, in the order that it has."""
    wordlist: str = "2of12"
    """The name of a packaged list, or a file."""
    encoder: str = "packaged"
    """A spec; see `encoders.spec`."""
    precision: Precision = "float32"
    template: Template = "bare"
    top_n: Annotated[int, Field(ge=1, le=1000)] = 10
    """n: labels per patch at most."""
    out: Path | None = None
    """The output folder; None for one below `runs/labels` whose name tells the settings apart."""
    crops: Annotated[int, Field(ge=0, le=999)] = 0
    """Square crops of each image that are labelled too, as images of their own; see `crops.labelled_crop`."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Label only the first so many images, in the order of their ids."""
    device: str = "auto"
    search: Backend = "auto"
    shard_size: Annotated[int, Field(ge=1, le=65_536)] = 2048
    """Images per shard: what a kill can cost at most."""
    max_bad: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Stop when more than this share of all images is bad; 0 allows none, any other value at least one."""
    retry_bad: bool = False
    """Read the shards with bad images again, in a finished folder too."""
    probe: bool = True
    """In a new folder, look at captioned images for whether the encoder's other sign is better; see `probe.hint`."""


@dataclass
class StageRun:
    """What a command that works shard by shard did, and with what."""

    ledger: Ledger
    listing: Listing
    report: Report
    device: str
    backend: str = ""
    """For labels what proposed candidates, for targets their codec; empty where nothing was left to do."""


def label_images(
    settings: LabelSettings,
    *,
    begun: Callable[[Ledger], None] = lambda _: None,
    warn: Callable[[str], None] | None = None,
    progress: ProgressBar = no_bar,
) -> StageRun:
    """Labels every image of an input, or what is missing of it.

    `begun` hears of the folder before the work starts, and `warn` that the encoder's other sign is clearly better;
    without it nobody looks.

    Raises:
        UserError: see `list_samples`, `load_wordlist`, `load_encoder`, `begin` and `run`.
    """
    words = load_wordlist(settings.wordlist)
    if settings.top_n > len(words):
        raise UserError(
            f"--top-n {settings.top_n}: expected at most {len(words):,}, the length of {settings.wordlist}; "
            f"give --top-n {len(words)} or less"
        )
    device = resolve_device(settings.device)
    options = EncoderOptions(settings.precision, settings.template)
    encoder = load_encoder(settings.encoder, device, options)
    listing = list_samples(
        settings.images, settings.image_root, settings.limit, id_column=settings.id_column, streaming=settings.streaming
    )
    if settings.crops:
        listing.samples = _with_crops(listing, settings.crops)
    fields = LabelStage.fields(encoder, words, settings.top_n, settings.crops)
    ledger = _begin(settings, listing, words, fields, encoder.spec)
    begun(ledger)
    if settings.retry_bad or not ledger.finished:
        ledger.take_back_bad_shards(0 if settings.retry_bad else settings.max_bad)
    if ledger.complete:
        return StageRun(ledger, listing, Report(), device)
    with progress("embedding words", len(words), 0) as advance:
        embeddings = word_embeddings(encoder, words, advance)
    done = ledger.done()
    if warn and settings.probe and not done.shards and (captions := _captions(settings)):
        line = hint(encoder, embeddings, words, captions, listing, settings.top_n, device)
        if line:
            warn(line)
    stage = _stage(settings, encoder, embeddings, device)
    with progress("labelling", ledger.dataset.images, done.images + done.bad) as advance:
        report = run(ledger, stage, max_bad=settings.max_bad, advance=advance)
    return StageRun(ledger, listing, report, device, stage.search.backend)


def _captions(settings: LabelSettings) -> Path | None:
    path = Path(settings.images or "")
    return path if path.suffix.lower() in (".json", ".jsonl") and path.is_file() else None


def _with_crops(listing: Listing, crops: int) -> list[Sample]:
    samples = listing.samples
    if clash := next((sample.image_id for sample in samples if MARK in sample.image_id), None):
        raise UserError(f"--crops {crops}: image id {clash!r} holds {MARK!r}, which names crops; rename the image")
    views = [sample._replace(image_id=crop_id(sample.image_id, n)) for sample in samples for n in range(crops + 1)]
    return views if listing.streamed else sorted(views)


def _begin(
    settings: LabelSettings, listing: Listing, words: WordList, fields: dict[str, object], encoder: str
) -> Ledger:
    out = settings.out or _default_out(settings, listing, words, fields)
    if settings.images is not None and Path(settings.images).is_dir():
        inside, outside = out.resolve(), Path(settings.images).resolve()
        if inside == outside or outside in inside.parents:
            raise UserError(f"--out {out}: lies inside the input folder {settings.images}; choose a folder elsewhere")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: expected a folder; found a file")
    companions = {WORDS: words.text().encode()}
    return begin(out, KIND, fields, listing, settings.shard_size, companions, encoder=encoder)


def _default_out(settings: LabelSettings, listing: Listing, words: WordList, fields: dict[str, object]) -> Path:
    parts = [listing.name, EncoderSpec.parse(settings.encoder).short_name(), words.name, f"n{settings.top_n}"]
    parts += [settings.precision] if settings.precision != "float32" else []
    parts += [settings.template] if settings.template != "bare" else []
    parts += [f"crops{settings.crops}"] if settings.crops else []
    parts += [f"first{settings.limit}"] if settings.limit else []
    place = {"source": listing.origin, "image_root": listing.root, "shard_size": settings.shard_size}
    name = "-".join([*parts, fingerprint_of(fields | place)[:8]])
    return Path("runs") / "labels" / re.sub(r"[^\w.-]+", "_", name)


def _stage(settings: LabelSettings, encoder: Encoder, embeddings: torch.Tensor, device: str) -> LabelStage:
    return LabelStage(
        encoder,
        embeddings,
        top_n=settings.top_n,
        backend=settings.search,
        device=device,
        threads=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        crops=settings.crops,
    )
