"""`sea-pipeline label` as a function: settings in, a folder of labels out."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from sea_pipeline.core.devices import cores, resolve_device
from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import ProgressBar, no_bar
from sea_pipeline.encoders import Encoder, EncoderOptions, EncoderSpec, load_encoder
from sea_pipeline.encoders.word_cache import word_embeddings
from sea_pipeline.execution.dispatch import StageRun, do_shards, driver_device, take_back
from sea_pipeline.execution.run_report import Report
from sea_pipeline.inputs.crops import MARK, crop_id
from sea_pipeline.inputs.samples import Listing, Sample
from sea_pipeline.inputs.sources import list_samples
from sea_pipeline.inputs.wordlists import WordList, load_wordlist
from sea_pipeline.labels.checks import check_out
from sea_pipeline.labels.format import KIND, WORDS, read_words
from sea_pipeline.labels.settings import LabelSettings as LabelSettings
from sea_pipeline.labels.sign_probe import hint
from sea_pipeline.labels.stage import LabelStage
from sea_pipeline.output.begin import begin
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.records import SCHEMA_VERSION
from sea_pipeline.storage.hashing import fingerprint_of
from sea_pipeline.storage.paths import place


def label_images(
    settings: LabelSettings,
    *,
    begun: Callable[[Ledger], None] = lambda _: None,
    warn: Callable[[str], None] | None = None,
    say: Callable[[str], None] = lambda _: None,
    progress: ProgressBar = no_bar,
) -> StageRun:
    """Labels every image of an input, or what is missing of it.

    `begun` hears of the folder before the work starts, `warn` that the encoder's other sign is clearly better (without
    it nobody looks), and `say` what workers do. Two of these on one folder at once both end with the same folder.

    Raises:
        UserError: see `list_samples`, `load_wordlist`, `load_encoder`, `begin`, `run` and `driver.distribute`.
    """
    words = words_of(settings)
    device, embeds = driver_device(settings.crew, settings.device)
    encoder = encoder_of(settings, device)
    listing = list_samples(
        settings.images, settings.image_root, settings.limit, id_column=settings.id_column, streaming=settings.streaming
    )
    if settings.crops:
        listing.samples = _with_crops(listing, settings.crops)
    fields = LabelStage.fields(encoder, words, settings.top_n, settings.crops)
    ledger = _begin(settings, listing, words, fields, encoder.spec)
    begun(ledger)
    take_back(settings, ledger, progress, say)
    if ledger.complete:
        return StageRun(ledger, listing, Report(), device)
    stage = None
    if embeds:
        with progress("embedding words", len(words), 0) as advance:
            embeddings = word_embeddings(encoder, words, advance)
        if warn and settings.probe and not ledger.done().shards and (captions := _captions(settings)):
            line = hint(encoder, embeddings, words, captions, listing, settings.top_n, device)
            if line:
                warn(line)
        if settings.crew.alone:
            stage = stage_of(settings, encoder, embeddings, device, schema_version=ledger.dataset.schema_version)
    done = ledger.done()
    with progress("labelling", ledger.dataset.images, done.images + done.bad) as advance:
        report, device, backend = do_shards(settings, ledger, stage, LabelRecipe(settings), advance, say)
    return StageRun(ledger, listing, report, device, backend)


@dataclass(frozen=True)
class LabelRecipe:
    """How a worker makes its `LabelStage`; see `worker.Recipe`."""

    settings: LabelSettings
    name: str = "label"

    def stage(self, ledger: Ledger) -> LabelStage:
        """Loads the encoder and the word list of the folder, whose embeddings one worker makes for all of its host."""
        from sea_pipeline.execution.worker import refuse_other_fields

        device = resolve_device(self.settings.device)
        encoder = encoder_of(self.settings, device)
        words = WordList.of(self.settings.wordlist, read_words(ledger.root))
        refuse_other_fields(ledger, LabelStage.fields(encoder, words, self.settings.top_n, self.settings.crops))
        # As many threads as OMP_NUM_THREADS says, which is this worker's part of the cores.
        threads, version = torch.get_num_threads(), ledger.dataset.schema_version
        return stage_of(self.settings, encoder, word_embeddings(encoder, words), device, threads, version)


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


def _begin(
    settings: LabelSettings, listing: Listing, words: WordList, fields: dict[str, object], encoder: str
) -> Ledger:
    out = place(settings.out or _default_out(settings, listing, words, fields))
    check_out(settings, out)
    companions = {WORDS: words.text().encode()}
    return begin(out, KIND, fields, listing, settings.shard_size, companions, encoder=encoder, extend=settings.extend)


def _default_out(settings: LabelSettings, listing: Listing, words: WordList, fields: dict[str, object]) -> Path:
    parts = [listing.name, EncoderSpec.parse(settings.encoder).short_name(), words.name, f"n{settings.top_n}"]
    parts += [settings.precision] if settings.precision != "float32" else []
    parts += [settings.template] if settings.template != "bare" else []
    parts += [f"crops{settings.crops}"] if settings.crops else []
    parts += [f"first{settings.limit}"] if settings.limit else []
    origin = {"source": listing.origin, "image_root": listing.root, "shard_size": settings.shard_size}
    name = "-".join([*parts, fingerprint_of(fields | origin)[:8]])
    return Path("runs") / "labels" / re.sub(r"[^\w.-]+", "_", name)


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
