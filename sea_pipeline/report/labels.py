"""Collect a run's labels as the data of the report's pages on photos and words."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.parallel import ThreadPool, prefetched_map
from sea_pipeline.core.progress import Reporter
from sea_pipeline.inputs.crops import WHOLE, CropBox
from sea_pipeline.inputs.pixels import BadImageError, decode_image
from sea_pipeline.inputs.sources import Source, open_source
from sea_pipeline.labels.format import label_arrays
from sea_pipeline.labels.statistics import BIN_WIDTH, image_words, statistics
from sea_pipeline.labels.store import Labels, LabelStore
from sea_pipeline.report.packing import packed, thumbnail

NONE = 65_535
"""The value that means no label, among positions in the report's words."""
MOST_BAD = 200
_MEAN_BIN = 0.02
_FREQUENT = 30


class OtherPhotoError(BadImageError):
    """Says that a file is not the one that was labelled."""


class _Photo(NamedTuple):
    image_id: str
    uri: str
    sha256: bytes
    box: CropBox


def labels_data(
    store: LabelStore, limit: int | None, most: int | None, longest: int, reporter: Reporter
) -> dict[str, Any]:
    """Collect what the report shows of labels.

    `photos` are objects with `id` and `src`, a data URI or null if the photo is gone. `word_ids` (photos, patches, k)
    are positions in `words`, which holds the words that occur here, with 65,535 for none. `scores` are hundredths + 1,
    with 0 for no word. `best` has the words of each photo with the highest score sums, as positions. `total` counts
    the photos without their crops. The numbers under `statistics` cover all images and crops, whatever is shown.

    Args:
        store: finished labels.
        limit: the number of photos, the first ones; None for all. Crops are never shown.
        most: k, the most words of a patch; None for all.
        longest: the longer side of a thumbnail, in pixels.
        reporter: shows the progress of the photos, and warns of photos that are not the labelled ones.
    """
    photos, word_ids, scores = _rows(store, limit, min(most or store.top_n, store.top_n))
    every = len(store) - store.count_crops()
    if len(photos) == limit and every > limit:
        reporter.message(
            f"{store.path}: the report shows the first {limit:,} of {every:,} photos; --limit shows another number"
        )
    used, places = np.unique(word_ids, return_inverse=True)
    shift = int(len(used) > 0 and used[0] < 0)
    local = np.where(word_ids < 0, NONE, places.reshape(word_ids.shape) - shift)
    return {
        "path": str(store.path),
        "grid": list(store.grid),
        "kept": word_ids.shape[2],
        "photos": _with_pictures(store, photos, longest, reporter),
        "words": [store.words[word] for word in used[shift:]],
        "word_ids": packed(local, "u16"),
        "scores": packed(_hundredths(word_ids, scores), "u8"),
        "best": [
            [int(np.searchsorted(used, word)) - shift for word in best] for best in _best(store, word_ids, scores)
        ],
        "total": every,
        "statistics": _statistics(store),
        "quarantine": [
            {"id": bad["image_id"], "stage": bad["stage"], "reason": bad["message"]}
            for bad, _ in zip(store.quarantine(), range(MOST_BAD), strict=False)
        ],
        "bad": store.manifest["bad"],
        "settings": store.manifest["fields"],
        "fingerprint": store.fingerprint,
        "image_root": str(store.image_root),
    }


def _hundredths(word_ids: npt.NDArray[np.int32], scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return scores as hundredths + 1, rounded exactly, because stored scores are float16. 0 means no word."""
    return np.where(word_ids < 0, np.float32(0), (scores.clip(0, 1) * 100).round() + 1)


def _best(
    store: LabelStore, word_ids: npt.NDArray[np.int32], scores: npt.NDArray[np.float32]
) -> Iterator[Iterator[int]]:
    for of_photo in zip(word_ids, scores, strict=True):
        yield (word for word, _ in image_words(Labels(*of_photo, store.grid, WHOLE)))


def _rows(
    store: LabelStore, limit: int | None, most: int
) -> tuple[list[_Photo], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    photos: list[_Photo] = []
    shape = (0, store.grid[0] * store.grid[1], most)
    words: list[npt.NDArray[np.int32]] = [np.zeros(shape, np.int32)]
    scores: list[npt.NDArray[np.float32]] = [np.zeros(shape, np.float32)]
    for table in store.tables():
        ids = table["image_id"].to_pylist()
        left = len(ids) if limit is None else limit - len(photos)
        wanted = [row for row, name in enumerate(ids) if not store.is_crop(name)][: max(0, left)]
        table_words, table_scores = label_arrays(table, store.top_n)
        words.append(table_words[wanted, :, :most])
        scores.append(table_scores[wanted, :, :most])
        uris, hashes, boxes = (table[name].to_pylist() for name in ("uri", "image_sha256", "crop_box"))
        photos += [_Photo(ids[row], uris[row], hashes[row], tuple(boxes[row])) for row in wanted]
        if limit is not None and len(photos) >= limit:
            break
    return photos, np.concatenate(words), np.concatenate(scores)


def _with_pictures(store: LabelStore, photos: list[_Photo], longest: int, reporter: Reporter) -> list[dict[str, Any]]:
    source, others = _source(store), set[str]()
    if source is None:
        return [{"id": photo.image_id, "src": None} for photo in photos]

    def read(photo: _Photo) -> Image.Image:
        try:
            return labelled_photo(source, photo.uri, photo.sha256)
        except OtherPhotoError:
            others.add(photo.image_id)
            raise

    def picture(photo: _Photo) -> str | None:
        return thumbnail(partial(read, photo), photo.box, longest)

    found = []
    with ThreadPool(max_workers=4) as pool, reporter.progress("photos", len(photos)) as advance:
        for photo, src in zip(photos, prefetched_map(pool, picture, photos), strict=True):
            found.append({"id": photo.image_id, "src": src})
            advance(1)
    if others:
        reporter.warning(
            f"{store.path}: {len(others):,} of {len(photos):,} photos below {store.image_root} are other files than "
            f"the labelled ones (such as {min(others)!r}), and are left out; put the labelled ones back"
        )
    return found


def labelled_photo(source: Source, uri: str, sha256: bytes) -> Image.Image:
    """Read an upright photo, if its file is the one that was labelled.

    Raises:
        OtherPhotoError: it is another file.
        BadImageError: it cannot be read.
        UserError: it cannot be read.
    """
    image, found = decode_image(source.read(uri))
    if found != sha256:
        raise OtherPhotoError("read", "OtherFile", "it is another file than the labelled one; put that one back", found)
    return image


def _source(store: LabelStore) -> Source | None:
    try:
        return open_source(str(store.image_root))
    except UserError:  # the whole source is gone, but the labels can still be shown
        return None


def _statistics(store: LabelStore) -> dict[str, Any]:
    stats = statistics(store)
    found = stats.to_json(store.words, most=_FREQUENT)
    means = stats.mean_similarity
    low, high = (np.floor(means.min() / _MEAN_BIN), np.floor(means.max() / _MEAN_BIN) + 1) if len(means) else (0, 1)
    edges = np.arange(low, high + 1) * _MEAN_BIN
    counts, _ = np.histogram(means, edges)
    found["mean_histogram"] = {"start": round(float(edges[0]), 4), "bin_width": _MEAN_BIN, "counts": counts.tolist()}
    found["score_histogram"] = {"start": 0.0, "bin_width": BIN_WIDTH, "counts": stats.score_bins.tolist()}
    return found
