"""`label` beside the plain loop that a researcher would write: ViT-B-32's shape with random weights."""

import os
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from PIL import Image
from torchvision.transforms.functional import normalize
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from sea_pipeline import open_labels
from sea_pipeline.encoders import Encoder, EncoderOptions, load_encoder
from sea_pipeline.encoders.word_cache import word_embeddings
from sea_pipeline.execution.local import run
from sea_pipeline.inputs.pixels import read_image
from sea_pipeline.inputs.sources import list_samples
from sea_pipeline.inputs.wordlists import load_wordlist
from sea_pipeline.labels.format import KIND
from sea_pipeline.labels.stage import LabelStage
from sea_pipeline.output.begin import open_or_create
from tests.bench.bench_label import crops
from tests.bench.measure import Figure, in_turn

ARCH = "ViT-B-32"
TOP_N = 10
REPEATS = 3


def figures() -> Iterator[Figure]:
    """label.speedup_naive and label.agreement_naive, in bfloat16 and in float32."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        photos = os.environ.get("SEA_BENCH_PHOTOS") or str(crops(folder / "photos", 64))
        torch.manual_seed(0)
        model = open_clip.create_model(ARCH)
        torch.save(model.state_dict(), folder / "random.pt")
        yield from _figures(folder, photos, as_transformers(model))


def _figures(folder: Path, photos: str, model: CLIPVisionModelWithProjection) -> Iterator[Figure]:
    words, listing = load_wordlist("2of12"), list_samples(photos)
    paths = [Path(listing.root) / sample.uri for sample in listing.samples]
    encoders = {
        precision: load_encoder(f"open_clip:{ARCH}/{folder}/random.pt", "cpu", EncoderOptions(precision=precision))
        for precision in ("bfloat16", "float32")
    }
    embeddings = word_embeddings(encoders["float32"], words)
    runs = count()

    def ours(precision: str) -> Path:
        encoder, out = encoders[precision], folder / f"{precision}{next(runs)}"
        threads = os.cpu_count() or 1
        stage = LabelStage(encoder, embeddings, top_n=TOP_N, backend="auto", device="cpu", threads=threads)
        companions = {"words.txt": words.text().encode()}
        run(
            open_or_create(out, KIND, LabelStage.fields(encoder, words, TOP_N), listing, 2048, companions),
            stage,
            max_bad=0,
        )
        return out

    def naive() -> None:
        for path in paths:
            pixels = CLIPImageProcessor()(Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"]
            torch.save(plain_labels(model, embeddings, pixels), folder / f"{path.stem}.labels.pt")

    times = in_turn(naive, lambda: ours("bfloat16"), lambda: ours("float32"), repeats=REPEATS)
    for precision, spent in zip(encoders, times[1:], strict=True):
        suffix = "" if precision == "bfloat16" else ".float32"
        rates = f"{len(paths) / times[0]:.1f} images/s; ours, {precision}, {len(paths) / spent:.1f}"
        beside = "transformers' CLIP in float32, an image at a time, full matrix, topk, torch.save"
        yield Figure(f"label.speedup_naive{suffix}", times[0] / spent, "x", f"{beside}: {rates}")
        store = open_labels(ours(precision))
        same = [
            set(theirs.tolist()) == set(mine.tolist())
            for path, image_id in zip(paths, store.ids, strict=True)
            for theirs, mine in zip(
                plain_labels(model, embeddings, our_pixels(encoders[precision], path))["words"],
                store[image_id].word_ids,
                strict=True,
            )
        ]
        yield Figure(
            f"label.agreement_naive{suffix}",
            float(np.mean(same)),
            "",
            f"the share of {len(same):,} patches with the same {TOP_N} words by transformers' CLIP in float32 of the "
            f"same pixels; ours in {precision}",
        )


@torch.inference_mode()
def plain_labels(
    model: CLIPVisionModelWithProjection, embeddings: torch.Tensor, pixels: torch.Tensor
) -> dict[str, torch.Tensor]:
    """One image's labels as SEA section 4.1 reads, without any thought of speed; pixels (1, 3, S, S), normalised."""
    hidden = model.vision_model(pixels).last_hidden_state[:, 1:]
    patches = F.normalize(model.visual_projection(model.vision_model.post_layernorm(hidden)), dim=-1)[0]
    scores, ids = (-(patches @ embeddings.T)).topk(TOP_N)
    return {"words": torch.where(scores >= 0, ids, -1), "scores": scores.clamp_min(0)}


def our_pixels(encoder: Encoder, path: Path) -> torch.Tensor:
    """What `label` makes of an image, (1, 3, S, S), normalised as CLIP's are: it crops before it resizes."""
    values = torch.from_numpy(encoder.preprocess(read_image(path).image).values)
    return normalize(values.permute(2, 0, 1).float() / 255, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD).unsqueeze(0)


def as_transformers(model: open_clip.CLIP) -> CLIPVisionModelWithProjection:
    """The image tower of an open_clip CLIP as transformers spells it."""
    state, renamed = model.visual.state_dict(), {}
    names = {
        "class_embedding": "embeddings.class_embedding",
        "conv1.weight": "embeddings.patch_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
        "ln_pre": "pre_layrnorm",
        "ln_post": "post_layernorm",
        "transformer.resblocks": "encoder.layers",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    for name, value in state.items():
        spelled = name
        for theirs, ours in names.items():
            spelled = spelled.replace(theirs, ours)
        if "in_proj" in name:
            kind = name.rsplit("_", 1)[1]
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                renamed[f"vision_model.{spelled.rsplit('.attn', 1)[0]}.self_attn.{letter}_proj.{kind}"] = part
        elif name == "proj":
            renamed["visual_projection.weight"] = value.T.contiguous()
        else:
            renamed[f"vision_model.{spelled}"] = value
    config = CLIPVisionConfig(patch_size=32, projection_dim=512, hidden_act="gelu")
    found = CLIPVisionModelWithProjection(config).eval()
    wanted = found.state_dict()
    renamed |= {name: value for name, value in wanted.items() if name.endswith("position_ids")}
    found.load_state_dict(renamed)
    return found
