"""`sea-pipeline label` as a function: settings in, a folder of labels out."""

from pathlib import Path
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
from sea_pipeline.inputs.wordlists import WordList, load_wordlist
from sea_pipeline.labels.checks import check_out
from sea_pipeline.labels.format import KIND, WORDS, read_words
from sea_pipeline.labels.settings import LabelSettings as LabelSettings
from sea_pipeline.labels.sign_probe import hint
from sea_pipeline.labels.stage import LabelStage
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.records import SCHEMA_VERSION
from sea_pipeline.storage.paths import Place


@taking_callbacks("begun", "warn", "say", "progress")
def label_images(settings: LabelSettings, reporter: Reporter = SILENT) -> StageRun:
    """Labels every image of an input, or what is missing of it.

    `reporter` hears where the labels go before the work starts, what workers do, and that the encoder's other sign is
    clearly better; nobody looks for that if it shows no warnings. Two of these on one folder at once both end with the
    same folder.

    Raises:
        UserError: see `list_samples`, `load_wordlist`, `load_encoder` and `run_job`.
    """
    return run_job(LabelJob(settings), reporter)


class LabelJob(ShardedJob[LabelSettings]):
    """The command `label`."""

    name, doing, kind = "label", "labelling", KIND
    encoder: Encoder
    embeddings: torch.Tensor | None = None

    def check(self) -> None:
        """Refuses more labels than there are words."""
        self.words = words_of(self.settings)
        self.threads = cores()

    def open(self, ledger: Ledger | None) -> None:
        """Loads the encoder, and on a worker the folder's words."""
        self.encoder = encoder_of(self.settings, self.device)
        if ledger is not None:
            self.words = WordList.of(self.settings.wordlist, read_words(ledger.root))
            # As many threads as OMP_NUM_THREADS says, which is this worker's part of the cores.
            self.threads = torch.get_num_threads()

    def listing(self) -> Listing:
        """Lists the images, and the crops of each behind it."""
        asked = self.settings
        listing = list_samples(
            asked.images, asked.image_root, asked.limit, id_column=asked.id_column, streaming=asked.streaming
        )
        if asked.crops:
            listing.samples = _with_crops(listing, asked.crops)
        return listing

    def fields(self) -> dict[str, Any]:
        """See `LabelStage.fields`."""
        return LabelStage.fields(self.encoder, self.words, self.settings.top_n, self.settings.crops)

    def name_parts(self, listing: Listing) -> list[str]:
        """Names the input, the encoder and the words, and of the settings those that are not the default."""
        asked = self.settings
        parts = [listing.name, EncoderSpec.parse(asked.encoder).short_name(), self.words.name, f"n{asked.top_n}"]
        parts += [asked.precision] if asked.precision != "float32" else []
        parts += [asked.template] if asked.template != "bare" else []
        return parts + ([f"crops{asked.crops}"] if asked.crops else [])

    def check_folder(self, out: Place, listing: Listing, reporter: Reporter) -> None:
        """Refuses a folder among the images."""
        check_out(self.settings, out)

    def companions(self) -> dict[str, bytes]:
        """Gives the words, which ids count."""
        return {WORDS: self.words.text().encode()}

    def spec(self) -> str:
        """Gives the encoder's."""
        return self.encoder.spec

    def announce(self, ledger: Ledger, reporter: Reporter) -> None:
        """Says where the labels go."""
        if isinstance(reporter, Callbacks):
            reporter.begun(ledger)
        else:
            reporter.message(f"labels go to {ledger.root}")

    def prepare(self, ledger: Ledger, listing: Listing, reporter: Reporter) -> None:
        """Embeds the words, which workers find in the cache; in a new folder, looks at captions, see `hint`."""
        asked = self.settings
        self.embeddings = word_embeddings(self.encoder, self.words, reporter)
        looks = reporter.shows_warnings and asked.probe and not ledger.done().shards
        if looks and (captions := _captions(asked)):
            line = hint(self.encoder, self.embeddings, self.words, captions, listing, asked.top_n, self.device)
            if line:
                reporter.warning(line)

    def make_stage(self, ledger: Ledger) -> LabelStage:
        """Makes the stage; of all workers of a host, one embeds the words."""
        embeddings = word_embeddings(self.encoder, self.words) if self.embeddings is None else self.embeddings
        version = ledger.dataset.schema_version
        return stage_of(self.settings, self.encoder, embeddings, self.device, self.threads, version)


def words_of(settings: LabelSettings) -> WordList:
    """The word list that is asked for; a `UserError` where it has fewer words than a patch shall get."""
    words = load_wordlist(settings.wordlist)
    if settings.top_n > len(words):
        raise UserError(
            f"--top-n {settings.top_n}: expected at most {len(words):,}, the length of {settings.wordlist}; "
            f"give --top-n {len(words)} or less"
        )
    return words


def encoder_of(settings: LabelSettings, device: str) -> Encoder:
    """The encoder that is asked for."""
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
    """The stage that does what is asked for; `threads` of them decode, None for all cores."""
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
