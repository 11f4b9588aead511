"""`sea-pipeline probe` as a function: settings in, findings out. It writes nothing but the cache of word embeddings."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from sea_pipeline.devices import resolve_device
from sea_pipeline.encoders import EncoderOptions, load_encoder, paths_of
from sea_pipeline.encoders.cache import word_embeddings
from sea_pipeline.encoders.spec import Precision, Template
from sea_pipeline.errors import UserError
from sea_pipeline.lift import Findings, Probed
from sea_pipeline.probe import captioned_images, coverage, named_entries, prepared, probe, signed
from sea_pipeline.progress import ProgressBar, no_bar
from sea_pipeline.settings import Settings
from sea_pipeline.sources import list_samples
from sea_pipeline.wordlists import load_wordlist


class ProbeSettings(Settings):
    """What `sea-pipeline probe` is asked for."""

    data: Path
    """A LLaVA `.json` or `.jsonl` with captions."""
    image_root: str | Path | None = None
    """Where its paths start; None for its own folder."""
    encoder: Annotated[tuple[str, ...], Field(min_length=1)] = ("packaged",)
    """Specs; one without a path stands for all of its paths."""
    wordlist: str = "2of12"
    top_n: Annotated[int, Field(ge=1, le=1000)] = 10
    limit: Annotated[int, Field(ge=2)] = 200
    """Captioned images at most."""
    seed: int = 0
    """Of the choice of images and of the intervals."""
    precision: Precision = "float32"
    template: Template = "bare"
    device: str = "auto"


def probe_encoders(settings: ProbeSettings, progress: ProgressBar = no_bar) -> Findings:
    """Both signs of every path of every encoder, on the same captioned images.

    Raises:
        UserError: see `list_samples`, `load_wordlist` and `load_encoder`; or there are no two images with captions, or
            no caption names a word of the list.
    """
    words = load_wordlist(settings.wordlist)
    if settings.top_n > len(words):
        raise UserError(f"--top-n {settings.top_n}: expected at most {len(words):,}, the length of {settings.wordlist}")
    if settings.data.suffix.lower() not in (".json", ".jsonl") or not settings.data.is_file():
        raise UserError(f"--data {settings.data}: expected LLaVA's .json or .jsonl with captions; found no such file")
    device = resolve_device(settings.device)
    specs = dict.fromkeys(signed(path, None) for spec in settings.encoder for path in paths_of(spec, device))
    listing = list_samples(str(settings.data), settings.image_root)
    images = captioned_images(settings.data, listing.samples, settings.limit, settings.seed)
    if len(images) < 2:
        raise UserError(
            f"--data {settings.data}: expected two images with captions at least, gpt turns of records with one image; "
            f"found {len(images)}"
        )
    named = named_entries([image.captions for image in images], words)
    if not len(named.word_ids):
        raise UserError(
            f"--data {settings.data}: expected captions that name words of {settings.wordlist}; found none in "
            f"the {len(images):,} looked at; try --wordlist mine:{settings.data}, or a larger --limit"
        )
    probed: list[Probed] = []
    for spec in specs:
        encoder = load_encoder(spec, device, EncoderOptions(settings.precision, settings.template))
        with progress("embedding words", len(words), 0) as advance:
            embeddings = word_embeddings(encoder, words, advance)
        with progress(f"probing {spec}", len(images), 0) as advance:
            pixels = prepared(encoder, images, listing.root, advance)
            found = probe(
                encoder, embeddings, words, named, pixels,
                spec=spec, top_n=settings.top_n, device=device, seed=settings.seed,
            )  # fmt: skip
        if not found:
            raise UserError(
                f"--data {settings.data}: expected two captioned images at least that {spec} can use; "
                f"found less among {len(images)} below {listing.root}; give --image-root"
            )
        probed += found
    held = coverage([image.captions for image in images], words)
    return Findings(tuple(probed), len(images), settings.top_n, words.name, len(words), held)
