"""Run `sea-pipeline label`, from settings to a folder of labels."""

from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from sea_pipeline.core.devices import cores
from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT, Reporter
from sea_pipeline.core.renamed import Callbacks, taking_callbacks
from sea_pipeline.encoders import Encoder, EncoderOptions, EncoderSpec, load_encoder
from sea_pipeline.encoders.word_cache import word_embeddings
from sea_pipeline.execution.dispatch import StageRun
from sea_pipeline.execution.sharded_job import ShardedJob, run_job
from sea_pipeline.inputs.crops import MARK, crop_id
from sea_pipeline.inputs.samples import Listing, Sample
from sea_pipeline.inputs.sources import list_samples
from sea_pipeline.inputs.wordlists import WordList
from sea_pipeline.labels.checks import check_out, words_of
from sea_pipeline.labels.format import KIND, WORDS, read_words
from sea_pipeline.labels.settings import LabelSettings as LabelSettings
from sea_pipeline.labels.sign_probe import hint
from sea_pipeline.labels.stage import LabelStage
from sea_pipeline.labels.store import LabelStore, open_labels
from sea_pipeline.output.begin import GONE
from sea_pipeline.output.folder import MANIFEST
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.records import SCHEMA_VERSION
from sea_pipeline.storage.paths import Place


@taking_callbacks("begun", "warn", "say", "progress")
def label_images(settings: LabelSettings, reporter: Reporter = SILENT) -> StageRun:
    """Label every image of an input, or those that are missing.

    `reporter` shows where the labels go before the work starts, what workers do, if the encoder's other sign is clearly
    better, and if no patch has got a label. The last two are not checked if `reporter` shows no warnings. Two runs on
    one folder at the same time both end with the same folder.

    Raises:
        UserError: see `list_samples`, `load_wordlist`, `load_encoder` and `run_job`.
    """
    done = run_job(LabelJob(settings), reporter)
    root = done.ledger.root
    if reporter.shows_warnings and isinstance(root, Path) and (root / MANIFEST).is_file():  # whole, and at hand
        _warn_of_no_labels(open_labels(root, verify=False), reporter)
    return done


def _warn_of_no_labels(store: LabelStore, reporter: Reporter) -> None:
    if len(store) and not store.has_words():
        has_signs = EncoderSpec.parse(store.encoder).path is not None
        choice = "the encoder's other sign" if has_signs else "another encoder"
        reporter.warning(
            f"{store.path}: no patch of its {len(store):,} images has a label, because no word's score is above 0; "
            f"label again with {choice} into another --out (sea-pipeline probe compares encoders and signs)"
        )


class LabelJob(ShardedJob[LabelSettings]):
    """The job of the command `label`."""

    name, doing, kind = "label", "labelling", KIND
    encoder: Encoder
    embeddings: torch.Tensor | None = None

    def check(self) -> None:
        """Refuse more labels per patch than there are words."""
        self.words = words_of(self.settings)
        self.threads = cores()

    def open(self, ledger: Ledger | None) -> None:
        """Load the encoder, and on a worker also the folder's words."""
        self.encoder = encoder_of(self.settings, self.device)
        if ledger is not None:
            self.words = WordList(self.settings.wordlist, read_words(ledger.root))
            # OMP_NUM_THREADS, which torch follows, is this worker's part of the cores.
            self.threads = torch.get_num_threads()

    def settings_for_workers(self) -> LabelSettings:
        """Return the settings with the encoder's folder or file by its absolute path."""
        return self.settings.model_copy(update={"encoder": self.encoder.spec})

    def listing(self) -> Listing:
        """List the images, each followed by its crops."""
        listing = images_of(self.settings)
        if self.settings.crops:
            listing.samples = _with_crops(listing, self.settings.crops)
        return listing

    def fields(self) -> dict[str, Any]:
        """Return everything that decides the labels.

        See `LabelStage.fields`.
        """
        return LabelStage.fields(self.encoder, self.words, self.settings.top_n, self.settings.crops)

    def name_parts(self, listing: Listing) -> list[str]:
        """Name the input, the encoder, the words, n and the settings that are not the default."""
        asked = self.settings
        parts = [listing.name, EncoderSpec.parse(asked.encoder).short_name(), self.words.name, f"n{asked.top_n}"]
        parts += [asked.precision] if asked.precision != "float32" else []
        parts += [asked.template] if asked.template != "bare" else []
        return parts + ([f"crops{asked.crops}"] if asked.crops else [])

    def check_folder(self, out: Place, listing: Listing, reporter: Reporter) -> None:
        """Refuse a folder inside the input."""
        check_out(self.settings, out)

    def companions(self) -> dict[str, bytes]:
        """Return the word list, whose positions are the word ids."""
        return {WORDS: self.words.text().encode()}

    def advice(self, out: Place) -> dict[str, str]:
        """Name the folder's own words, which captions that have grown do not change, and what keeps labels."""
        words = f"--wordlist {out / WORDS}" if isinstance(out, Path) else f"--wordlist with a copy of {out / WORDS}"
        kept = f"sea-pipeline select {quote(str(out))} ids.txt --out NEW"
        return {
            "wordlist": f"{words} takes the words that it was begun with",
            GONE: f"to keep the labels of the others, write their ids into ids.txt, one a line; run {kept}, and then "
            "the same command with --extend --out NEW",
        }

    def spec(self) -> str:
        """Return the encoder's spec."""
        return self.encoder.spec

    def announce(self, ledger: Ledger, reporter: Reporter) -> None:
        """Say where the labels go."""
        if isinstance(reporter, Callbacks):
            reporter.begun(ledger)
        else:
            reporter.message(f"the labels go to {ledger.root}")

    def prepare(self, ledger: Ledger, listing: Listing, reporter: Reporter) -> None:
        """Embed the words, which workers find in the cache, and check the sign with captions in a new folder.

        See `hint`.
        """
        asked = self.settings
        self.embeddings = word_embeddings(self.encoder, self.words, reporter)
        looks = reporter.shows_warnings and asked.probe and not ledger.done().shards
        if looks and (captions := _captions(asked)):
            with suppress(UserError):  # the captions decide no label
                line = hint(self.encoder, self.embeddings, self.words, captions, listing, asked.top_n, self.device)
                if line:
                    reporter.warning(line)

    def make_stage(self, ledger: Ledger) -> LabelStage:
        """Make the stage.

        Of all workers of a host, one embeds the words.
        """
        embeddings = word_embeddings(self.encoder, self.words) if self.embeddings is None else self.embeddings
        version = ledger.dataset.schema_version
        return stage_of(self.settings, self.encoder, embeddings, self.device, self.threads, version)


def images_of(settings: LabelSettings) -> Listing:
    """List the images that are asked for, without their crops."""
    return list_samples(
        settings.images, settings.image_root, settings.limit, id_column=settings.id_column, streaming=settings.streaming
    )


def encoder_of(settings: LabelSettings, device: str) -> Encoder:
    """Load the encoder that is asked for."""
    return load_encoder(settings.encoder, device, EncoderOptions(settings.precision, settings.template))


def _captions(settings: LabelSettings) -> Path | None:
    path = Path(settings.images or "")
    return path if path.suffix.lower() in (".json", ".jsonl") and path.is_file() else None


def _with_crops(listing: Listing, crops: int) -> list[Sample]:
    samples = listing.samples
    if clash := next((sample.image_id for sample in samples if MARK in sample.image_id), None):
        raise UserError(f"--crops {crops}: image id {clash!r} holds {MARK!r}, which names crops; rename the image")
    views = [sample._replace(image_id=crop_id(sample.image_id, n)) for sample in samples for n in range(crops + 1)]
    return views if listing.streamed else sorted(views)


def stage_of(
    settings: LabelSettings,
    encoder: Encoder,
    embeddings: torch.Tensor,
    device: str,
    threads: int | None = None,
    schema_version: int = SCHEMA_VERSION,
) -> LabelStage:
    """Make the stage that the settings ask for.

    Args:
        settings: the settings of `label`.
        encoder: the encoder.
        embeddings: of the word list, float32 (W, D).
        device: the device.
        threads: decoding threads; None for one per core.
        schema_version: the folder's.
    """
    return LabelStage(
        encoder,
        embeddings,
        top_n=settings.top_n,
        backend=settings.search,
        device=device,
        threads=threads or cores(),
        crops=settings.crops,
        schema_version=schema_version,
    )
