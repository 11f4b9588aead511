"""Find the encoder, path and sign that put the words of a caption on its image, for `probe` and for `label`'s hint.

It writes nothing but the cache of word embeddings.

Shapes: N images, V entries of the word list that their captions name, W words, D embedding width, B images of a batch,
P patches, n labels a patch.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sea_pipeline.core.devices import resolve_device
from sea_pipeline.core.errors import UserError
from sea_pipeline.core.parallel import batched
from sea_pipeline.core.progress import SILENT, Advance, Reporter, say_if_slow
from sea_pipeline.encoders import Encoder, EncoderOptions, EncoderSpec, load_encoder, paths_of
from sea_pipeline.encoders.base import finite_images
from sea_pipeline.encoders.word_cache import word_embeddings
from sea_pipeline.inputs.pixels import BadImageError, decode_image
from sea_pipeline.inputs.samples import Listing
from sea_pipeline.inputs.sources import list_samples, open_source
from sea_pipeline.inputs.wordlists import WordList
from sea_pipeline.labels.caption_lift import ProbeFindings, SignFigures, hit_rate_gain
from sea_pipeline.labels.captioned_images import (
    CaptionedImage,
    CaptionEntries,
    captioned_images,
    coverage,
    named_entries,
)
from sea_pipeline.labels.checks import check_probe, words_of
from sea_pipeline.labels.settings import ProbeSettings as ProbeSettings
from sea_pipeline.labels.statistics import most_used
from sea_pipeline.search.exact import WordSearch

MOST_FREQUENT = 10
HINT_LEAST, HINT_MOST = 16, 32
"""The fewest captioned images that the hint needs, and the most that it reads."""
_BATCH = 8


def probe(
    encoder: Encoder,
    embeddings: torch.Tensor,
    words: WordList,
    named: CaptionEntries,
    pixels: Iterable[tuple[int, npt.NDArray[Any]]],
    *,
    spec: str,
    top_n: int,
    device: str,
    seed: int = 0,
) -> list[SignFigures]:
    """Measure both signs of one encoder and path in one pass over the images.

    Returns the results of sign + and of sign -, or nothing for fewer than two images. The labels are those that `label`
    gives, which are the n best words of each patch by s = sign * cos, without those of s < 0. Memory is that of one
    batch and of (N, V) flags for each sign.

    Args:
        encoder: its own sign does not matter.
        embeddings: of the word list, float32 (W, D).
        words: the word list.
        named: the entries that captions name.
        pixels: images in the encoder's input form, with their places in `named`; absent images do not count.
        spec: the encoder's spec with its path.
        top_n: n.
        device: the device that searches words.
        seed: seed of the interval's bootstrap.
    """
    counters = [
        _LabelCounter(sign, WordSearch(embeddings, top_n=top_n, sign=sign, device=device), named, len(words))
        for sign in (1, -1)
    ]
    seen: list[int] = []
    for batch in batched(iter(pixels), _BATCH):
        vectors = encoder.patches(torch.from_numpy(np.stack([values for _, values in batch])))
        finite = finite_images(encoder, vectors)
        images = [image for (image, _), good in zip(batch, finite, strict=True) if good]
        for counter in counters:
            counter.add(images, vectors[finite])
        seen += images
    has_paths = EncoderSpec.parse(spec).path is not None
    found = [counter.result(words, seen, spec, seed) for counter in counters] if len(seen) > 1 else []
    return [replace(one, selectable=has_paths or one.sign == encoder.sign) for one in found]


class _LabelCounter:
    """Counts the labels of one sign, image by image."""

    def __init__(self, sign: int, search: WordSearch, named: CaptionEntries, words: int) -> None:
        self._sign = sign
        self._search = search
        self._named = named
        self._labelled = np.zeros_like(named.flags)
        self._uses = np.zeros(words, np.int64)
        self._slots = 0

    def add(self, images: Sequence[int], vectors: torch.Tensor) -> None:
        """Count the labels of a batch.

        Args:
            images: places in `CaptionEntries`.
            vectors: patch embeddings, float32 (B, P, D).
        """
        found = self._search(vectors.flatten(0, 1))[0].numpy()
        self._slots += found.size
        for image, labels in zip(images, np.split(found, len(images)) if images else [], strict=True):
            uses = np.bincount(labels[labels >= 0], minlength=len(self._uses))
            self._labelled[image] = uses[self._named.word_ids] > 0
            self._uses += uses

    def result(self, words: WordList, images: list[int], spec: str, seed: int) -> SignFigures:
        """Compute the figures over some of the images."""
        images = sorted(images)
        return SignFigures(
            spec=spec,
            sign=self._sign,
            images=len(images),
            lift=hit_rate_gain(self._labelled[images], self._named.flags[images], seed),
            dropped=1 - int(self._uses.sum()) / self._slots,
            used=float((self._uses > 0).mean()),
            frequent=tuple((words.words[word], int(self._uses[word])) for word in most_used(self._uses, MOST_FREQUENT)),
        )


def signed(spec: str, sign: int | None) -> str:
    """Return a spec that has a path with this sign, None being the path's own.

    The spec of an encoder without paths is returned as it is.
    """
    parsed = EncoderSpec.parse(spec)
    return str(replace(parsed, sign=sign)) if parsed.path else spec


def prepared(
    encoder: Encoder, images: Sequence[CaptionedImage], root: str, advance: Advance = lambda _: None
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Yield the readable images in the encoder's input form, with their places.

    Images that cannot be read are skipped.
    """
    source = open_source(root)
    for position, image in enumerate(images):
        advance(1)
        try:
            values = encoder.preprocess(decode_image(source.read(image.sample.uri)).image).values
        except (BadImageError, OSError):
            continue
        yield position, values


def hint(
    encoder: Encoder, embeddings: torch.Tensor, words: WordList, path: Path, listing: Listing, top_n: int, device: str
) -> str | None:
    """Return one line if captioned images clearly say that the encoder's other sign is better, else None.

    It reads the file once more, decodes and encodes `HINT_MOST` images at most, and searches with both signs. It
    decodes nothing if fewer than `HINT_LEAST` images have captions. See `probe`.
    """
    images = captioned_images(path, listing.samples, HINT_MOST, seed=0)
    named = named_entries([image.captions for image in images], words)
    pixels = list(prepared(encoder, images, listing.root)) if len(images) >= HINT_LEAST else []
    if len(pixels) < HINT_LEAST or not len(named.word_ids):
        return None
    found = probe(encoder, embeddings, words, named, pixels, spec=encoder.spec, top_n=top_n, device=device)
    if not found:
        return None
    ours, other = found if encoder.sign > 0 else found[::-1]
    if not other.lift.clearly_above(ours.lift):
        return None
    wrong, right = (
        f"{'+-'[one.sign < 0]} hold {one.lift.hit:.0%} ({one.lift.chance:.0%} by chance)" for one in (ours, other)
    )
    choice = f"--encoder {signed(encoder.spec, other.sign)}" if other.selectable else "another encoder"
    return (
        f"of the words in the captions of {ours.images} images, labels of sign {wrong}, labels of sign {right}, which "
        f"is clearly better; label with {choice}, or look closer with sea-pipeline probe"
    )


def probe_encoders(settings: ProbeSettings, reporter: Reporter = SILENT) -> ProbeFindings:
    """Measure both signs of every path of every encoder on the same captioned images.

    Raises:
        UserError: see `list_samples`, `words_of` and `load_encoder`; or fewer than two images have captions, or no
            caption names a word of the list.
    """
    check_probe(settings)
    words = words_of(settings)
    device = resolve_device(settings.device)
    specs = dict.fromkeys(signed(path, None) for spec in settings.encoder for path in paths_of(spec, device))
    with say_if_slow(reporter, "listing the images"):
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
    probed: list[SignFigures] = []
    for spec in specs:
        encoder = load_encoder(spec, device, EncoderOptions(settings.precision, settings.template))
        embeddings = word_embeddings(encoder, words, reporter)
        with reporter.progress(f"probing {spec}", len(images)) as advance:
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
    return ProbeFindings(tuple(probed), len(images), settings.top_n, words.name, len(words), held)
