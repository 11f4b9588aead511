"""Labels from real JPEGs with ViT-L-14-336's shape in bfloat16: the whole pipeline beside the bare encoder.

    python -m tests.bench.gpu.label [--tiny] [--json FILE] [--images DIR]

Random weights, the whole list 2of12, and 10,000 JPEGs: links to those of --images, or to 64 of 640 x 480 cut from the
sample photos.
"""

import os
import sys
from collections.abc import Iterator
from itertools import count, cycle
from pathlib import Path

import numpy as np
import torch

from sea_pipeline.core.devices import cores
from sea_pipeline.core.errors import UserError
from sea_pipeline.encoders import Encoder, EncoderOptions, load_encoder
from sea_pipeline.encoders.word_cache import word_embeddings
from sea_pipeline.execution.local import run
from sea_pipeline.inputs.sources import list_samples
from sea_pipeline.inputs.wordlists import WordList, load_wordlist
from sea_pipeline.labels.format import KIND
from sea_pipeline.labels.stage import LabelStage
from sea_pipeline.output.begin import open_or_create
from sea_pipeline.search.exact import WordSearch
from sea_pipeline.search.float32 import TorchCandidates
from tests.bench.bench_label import crops
from tests.bench.gpu.common import IMAGES, Setup, main
from tests.bench.gpu.decoding import decoded, rates, workers_for
from tests.bench.gpu.kernels import Profile
from tests.bench.measure import Figure
from tests.support.tiny_clip import CLIP, random_model, save_model

ARCH = "ViT-L-14-336-quickgelu"
"""As OpenAI's weights want it."""
TOP_N = 10
_BATCHES = (16, 64, 128)
_WORKERS = [1, 2, 4, 8, 16]
_PHOTOS = 10_000
"""So that a run lasts ten seconds and more."""


def figures(setup: Setup) -> Iterator[Figure]:
    """label.decode.*, label.encoder.*, label.search.share, label.efficiency and label.forecast."""
    os.environ["SEA_PIPELINE_CACHE"] = str(setup.scratch / "cache")
    photos = str(photos_for(setup, _PHOTOS))
    words = load_wordlist(words_for(setup))
    spec = _model(setup)
    preprocess = load_encoder(spec, "cpu").preprocess
    listing = list_samples(photos)
    paths = [Path(listing.root) / sample.uri for sample in listing.samples]
    decode = rates(paths[:500], preprocess, _WORKERS[: 2 if setup.tiny else None])
    for kind, by_count in decode.items():
        for workers, rate in by_count.items():
            yield Figure(f"label.decode.{kind}_{workers}", rate, "images/s", f"{kind} alone, to {preprocess.size} px")
    encoder = load_encoder(spec, setup.device, EncoderOptions(precision="bfloat16"))
    embeddings = word_embeddings(encoder, words)
    stage = LabelStage(encoder, embeddings, top_n=TOP_N, backend="auto", device=setup.device, threads=cores())
    pixels = torch.from_numpy(np.stack([decoded(path, preprocess) for path in paths[: max(_BATCHES)]]))
    bare: dict[int, float] = {}
    for size in _BATCHES[: 1 if setup.tiny else None]:
        batch = pixels[:size].to(setup.device)
        bare[size] = len(batch) / setup.seconds(lambda batch=batch: encoder.patches(batch))[0]
        yield Figure(f"label.encoder.batch_{size}", bare[size], "images/s", f"bare, {ARCH}, pixels on the device")
    best = max(bare.values())
    yield from setup.guarded("label.search", _share(setup, stage, encoder, embeddings, pixels))
    yield from setup.guarded("label.whole", _whole(setup, stage, encoder, words, photos, best))
    for kind, by_count in decode.items():
        said = f"{kind} that decode as fast as the bare encoder encodes, {best:,.0f} images/s"
        yield Figure(f"label.{kind}_needed", workers_for(best, by_count), kind, said)


def photos_for(setup: Setup, wanted: int) -> Path:
    """A folder of `wanted` JPEGs or more: links to those of --images, or to crops of the sample photos."""
    different, wanted = (4, 8) if setup.tiny else (64, wanted)
    given = Path(setup.images).resolve() if setup.images else crops(setup.scratch / "crops", different)
    found = sorted(path for path in given.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    folder = setup.scratch / "photos"
    folder.mkdir()
    for number, path in zip(range(max(wanted, len(found))), cycle(found), strict=False):
        (folder / f"{number:05d}.jpg").symlink_to(path)
    return folder


def words_for(setup: Setup) -> str:
    """A list, by its name or file."""
    if not setup.tiny:
        return "2of12"
    few = setup.scratch / "words.txt"
    few.write_text("\n".join(load_wordlist("2of12").words[::800]))
    return str(few)


def _model(setup: Setup) -> str:
    """The spec of a CLIP with random weights."""
    if setup.tiny:
        return f"open_clip:{save_model(setup.scratch / 'clip', random_model(CLIP), CLIP)}"
    import open_clip

    torch.manual_seed(0)
    torch.save(open_clip.create_model(ARCH).state_dict(), setup.scratch / "random.pt")
    return f"open_clip:{ARCH}/{setup.scratch / 'random.pt'}"


def _share(
    setup: Setup, stage: LabelStage, encoder: Encoder, embeddings: torch.Tensor, pixels: torch.Tensor
) -> Iterator[Figure]:
    """The search's time on the device beside the encoder's, on a batch of what `label` takes at once."""
    batch = pixels[: stage.batch_size].to(setup.device)
    vectors = encoder.patches(batch).flatten(0, 1)
    (encode,) = setup.seconds(lambda: encoder.patches(batch))
    plain = WordSearch(embeddings, top_n=TOP_N, sign=encoder.sign, backend="torch", device=setup.device)
    plain._candidates = TorchCandidates(embeddings.to(setup.device))
    searches = {"share": stage.search, "share_by_float32": plain}
    try:
        faiss = WordSearch(embeddings, top_n=TOP_N, sign=encoder.sign, backend="faiss", device=setup.device)
        searches["share_by_faiss"] = faiss
    except UserError as error:
        print(error, file=sys.stderr)
    for name, search in searches.items():
        (spent,) = setup.seconds(lambda search=search: search(vectors))
        kind = type(search._candidates).__name__
        said = f"encoder and then {kind}, {1e3 * encode:.1f} and {1e3 * spent:.1f} ms for {len(batch)} images"
        yield Figure(f"label.search.{name}", spent / (encode + spent), "share", said)
    before = getattr(stage.search._candidates, "doubtful", None)
    profile = Profile(lambda: stage.search(vectors))
    yield from profile.largest("label.search.kernels", f"of {1e3 * profile.whole:.1f} ms of kernels in a search")
    if before is not None:
        again = getattr(stage.search._candidates, "doubtful", 0) - before
        said = f"of {len(vectors):,}: whose float16 scores prove nothing, so that all words get float32 ones"
        yield Figure("label.search.doubtful", again, "patches", said)


def _whole(
    setup: Setup, stage: LabelStage, encoder: Encoder, words: WordList, photos: str, best: float
) -> Iterator[Figure]:
    runs = count()

    def label(limit: int | None = None) -> float:
        """Seconds of a run, as the command makes it once models are loaded."""
        listing, out = list_samples(photos, limit=limit), setup.scratch / f"out{next(runs)}"
        companions = {"words.txt": words.text().encode()}
        ledger = open_or_create(out, KIND, LabelStage.fields(encoder, words, TOP_N), listing, 2048, companions)
        report = run(ledger, stage, max_bad=0)
        assert report.images == len(listing.samples), report
        return report.wall_seconds / report.images

    label(2 if setup.tiny else 128)
    each = label()
    said = f"the bare encoder at its best, {best:,.1f} images/s; label {1 / each:,.1f} with {cores()} cores"
    yield Figure("label.efficiency", 1 / each / best, "x", said)
    yield Figure("label.forecast", IMAGES * each / 3600, "h", f"{IMAGES:,} images at that rate, on one GPU")


if __name__ == "__main__":
    main(figures, __doc__)
