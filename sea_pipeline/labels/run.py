"""`sea-pipeline label` as a function: settings in, a folder of labels out."""

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from sea_pipeline.core.devices import cores
from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT, Reporter
from sea_pipeline.core.renamed import Callbacks, taking_callbacks
from sea_pipeline.core.settings import Settings
from sea_pipeline.encoders import Encoder, EncoderOptions, EncoderSpec, load_encoder
from sea_pipeline.encoders.spec import Precision, Template
from sea_pipeline.encoders.word_cache import word_embeddings
from sea_pipeline.execution.cluster_settings import Crew
from sea_pipeline.execution.dispatch import StageRun
from sea_pipeline.execution.sharded_job import ShardedJob, run_job
from sea_pipeline.inputs.crops import MARK, crop_id
from sea_pipeline.inputs.samples import Listing, Sample
from sea_pipeline.inputs.sources import list_samples
from sea_pipeline.inputs.wordlists import WordList, load_wordlist
from sea_pipeline.labels.format import KIND, WORDS, read_words
from sea_pipeline.labels.sign_probe import hint
from sea_pipeline.labels.stage import LabelStage
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.records import SCHEMA_VERSION
from sea_pipeline.search.exact import Backend
from sea_pipeline.storage.paths import Place


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
    out: str | Path | None = None
    """The output folder, or the URL of one; None for one below `runs/labels` whose name tells the settings apart."""
    extend: bool = False
    """Add images that are new to a folder that was begun without them; see `begin`."""
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
    """In a new folder, look at captioned images for whether the encoder's other sign is better, see `hint`."""
    crew: Crew = Crew()
    """Who does the shards."""


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
        asked = self.settings
        if asked.extend and asked.limit:
            raise UserError(f"--limit {asked.limit}: not with --extend, which adds every image that is new")
        if asked.images is not None and _lies_inside(out, asked.images):
            raise UserError(f"--out {out}: lies inside the input folder {asked.images}; choose a folder elsewhere")
        if out.exists() and not out.is_dir():
            raise UserError(f"--out {out}: expected a folder; found a file")

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


def _lies_inside(out: Place, images: str) -> bool:
    if not isinstance(out, Path):
        return f"{out}/".startswith(images.rstrip("/") + "/")
    return Path(images).is_dir() and out.resolve().is_relative_to(Path(images).resolve())


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
