"""Encode with CLIP, SigLIP and similar models, as open_clip builds them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F

from sea_pipeline.core.devices import exact_float32
from sea_pipeline.core.errors import UserError
from sea_pipeline.core.extras import require
from sea_pipeline.core.progress import Advance
from sea_pipeline.encoders.open_clip_models import ModelSource, find_model
from sea_pipeline.encoders.packed import pack
from sea_pipeline.encoders.patch_paths import Tower, tower_of
from sea_pipeline.encoders.spec import SIGNS, EncoderOptions, EncoderSpec
from sea_pipeline.encoders.text_tower import TextTower
from sea_pipeline.inputs.crops import patch_reach

_CPU_TOKENS = 1024
"""Patches at once on a CPU, so that one image's activations stay in the cache and small images go several at a time."""


class ClipEncoder:
    """An image tower and a text tower trained together; `patch_paths.py` lists the vectors that a patch has.

    Args:
        spec: the model, the path and the sign; its scales are ignored.
        device: where it runs.
        options: see `EncoderOptions`.

    Raises:
        UserError: there is no such model, it has no vectors of patches, or it lacks the path.
    """

    def __init__(self, spec: EncoderSpec, device: str, options: EncoderOptions) -> None:
        assert spec.model is not None
        self.device = device
        self._options = options
        self._source = find_model(spec.model, f"--encoder {replace(spec, path=None, sign=None)}")
        layout = _layout(self._source)
        self.paths = layout.paths
        self.path = spec.path or self.paths[0]
        if self.path not in self.paths:
            raise UserError(f"--encoder {spec}: expected one of its paths, {', '.join(self.paths)}; found {self.path}")
        self.sign = spec.sign or SIGNS[self.path]
        self.grid = layout.grid
        self.width = int(self._source.config["embed_dim"])
        shown = self._source.preprocess
        self.preprocess = replace(shown, reach=patch_reach(layout.grid, layout.patch, (shown.size, shown.size)))
        overridden = None if self.sign == SIGNS[self.path] else self.sign
        self.spec = str(EncoderSpec(self._source.model, self.path, overridden))

    def fields(self) -> Mapping[str, Any]:
        """See `Encoder.fields`."""
        fields = self._source.fields()
        return fields | {
            "preprocess": fields["preprocess"] | self.preprocess.fields(),
            "name": "open_clip",
            "path": self.path,
            "precision": self._options.precision,
            "template": self._options.template,
        }

    def word_fields(self) -> Mapping[str, Any]:
        """See `Encoder.word_fields`. They are the same for all paths and precisions of a model."""
        return self._source.word_fields() | {"template": self._options.template}

    def load(self) -> None:
        """See `Encoder.load`."""
        _ = self._towers, self._mean_and_std

    @exact_float32()
    @torch.inference_mode()
    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `Encoder.patches`."""
        rows, columns = self.grid
        at_once = max(1, _CPU_TOKENS // (rows * columns)) if self.device == "cpu" else len(pixels)
        return torch.cat([self._patches(part) for part in torch.split(pixels, at_once)])

    def _patches(self, pixels: torch.Tensor) -> torch.Tensor:
        tower = self._towers[0]
        mean, std = self._mean_and_std
        images = ((pixels.to(self.device, non_blocking=True).float() - mean) / std).permute(0, 3, 1, 2)
        vectors = tower.patches(self.path, images.to(getattr(torch, self._options.precision)))
        return F.normalize(vectors.float(), dim=-1)

    @exact_float32()
    def words(self, words: Sequence[str], advance: Advance = lambda _: None) -> torch.Tensor:
        """See `Encoder.words`."""
        return self._towers[1].words(words, self._options.template, advance)

    @cached_property
    def _mean_and_std(self) -> list[torch.Tensor]:
        """Return the mean and the standard deviation of pixels in 0..255, (3,) each.

        They are copied to the device once, because every copy waits for the device's pending work.
        """
        return [torch.tensor(three, device=self.device) * 255 for three in self._source.mean_and_std]

    @cached_property
    def _towers(self) -> tuple[Tower, TextTower]:
        model = self._source.load()
        visual, model.visual = model.visual, None  # apart, so that only the image tower gets the precision
        precision = getattr(torch, self._options.precision)
        visual.to(self.device, precision)
        if self.device == "cpu":
            pack(visual, precision)
        text = TextTower(model.to(self.device), self._source.tokenizer(), self.device)
        return tower_of(visual, self._source.option), text


def _layout(source: ModelSource) -> Tower:
    """Build the image tower on the meta device, without its weights."""
    open_clip = require("open_clip", "clip")
    if "multimodal_cfg" in source.config:
        raise UserError(
            f"{source.option}: expected a model that compares images and texts alone; found CoCa, whose vectors of "
            "patches are its pooler's; ViT-L-14-336/openai is SEA's"
        )
    vision = dict(source.config["vision_cfg"], timm_model_pretrained=False)
    try:
        with torch.device("meta"):
            model = open_clip.CLIP(source.config["embed_dim"], vision, {}, bool(source.config.get("quick_gelu")))
    except Exception as error:  # on a bad config the constructors raise any kind of exception
        raise UserError(f"{source.option}: its vision_cfg cannot be built: {type(error).__name__}: {error}") from error
    return tower_of(model.visual, source.option)
