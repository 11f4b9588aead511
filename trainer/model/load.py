"""Loads a model folder as a model that trains, and sets the parts that train and their precision."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, LlavaConfig
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.crops import Reach
from trainer.model.aligned_llava import AlignedLlava, part
from trainer.model.aspect_ratio import with_aspect_ratio
from trainer.model.borders import border
from trainer.model.folder_check import check_model_folder
from trainer.model.llava_folder import read_alignment
from trainer.model.llm_weights import check_head, misplaced
from trainer.model.lora import add_adapters
from trainer.model.parts import quiet
from trainer.model.pretrained import some
from trainer.model.tensor_files import PROJECTOR
from trainer.recipes.recipe import AspectRatio, LearningRates, Recipe
from trainer.towers import sides, tower_grid

_ADVICE = "copy the folder again, or make it with sea-pipeline init"


@dataclass(frozen=True)
class ModelFolder:
    """A LLaVA folder and the facts derived from it."""

    path: Path
    config: Any
    processor: Any
    grid: tuple[int, int]
    """(rows, columns) of an image's visual tokens."""
    reach: Reach
    """How far the tower's patches reach in its input."""
    vocabulary: int
    """The number of the LLM's token ids that are real ones. Later rows only pad its matrix."""
    linear_projector: bool
    """Whether the projector's second layer is the identity, and must stay it."""
    other_pixels: bool = False
    """Whether the processor differs from the folder's files, because a stage asked for another aspect ratio."""

    @property
    def projector(self) -> str:
        """Return a part of the names that the projector's tensors have in files."""
        return PROJECTOR


def open_model_folder(path: Path, image_aspect_ratio: AspectRatio | None = None) -> ModelFolder:
    """Read everything but the weights, and check that the token counts agree.

    Args:
        path: the folder.
        image_aspect_ratio: what the processor does with images, see `Data`; None: what the folder says.

    Raises:
        UserError: it is no LLaVA folder, its parts do not fit together, or its image processor cannot pad.
    """
    extra = read_alignment(path)
    with quiet():
        checked = check_model_folder(path)
    config, processor = checked.config, checked.processor
    config.image_seq_length = checked.visual_tokens  # older folders say 576 for any tower
    vocabulary = extra.get("vocabulary") or vocabulary_of(processor.tokenizer, config)
    own = processor.image_processor
    processor.image_processor = with_aspect_ratio(own, image_aspect_ratio, path)
    return ModelFolder(
        path,
        config,
        processor,
        tower_grid(config, str(path)),
        checked.reach,
        vocabulary,
        linear_projector=config.projector_hidden_act == "linear",
        other_pixels=processor.image_processor is not own,
    )


def vocabulary_of(tokenizer: Any, config: Any) -> int:  # noqa: ANN401 - transformers'
    """Count the token ids of a model that are real ones, which are those before the image token if others added it.

    The rows of the LLM's embedding matrix after them are placeholders or padding.
    """
    ids: set[int] = set(tokenizer.get_vocab().values())
    image, rows = config.image_token_id, config.get_text_config().vocab_size
    if all(token in tokenizer.added_tokens_decoder for token in ids if token >= image):
        return min(int(image), int(rows))
    return min(max(ids) + 1, int(rows))


class _Headless(AlignedLlava):
    """The model without the LLM's output matrix.

    Only L_lm needs that matrix, which is as large as the embedding matrix.
    """

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config)
        self.lm_head: nn.Module = nn.Identity()


register_checkpoint_conversion_mapping(_Headless.__name__, get_checkpoint_conversion_mapping("llava"), overwrite=True)


def load_model(folder: ModelFolder, recipe: Recipe, *, layers: int | None = None) -> AlignedLlava:
    """Load the model with its parts frozen as the recipe says.

    The parts that train are float32.

    With `loss.lm` 0 the LLM is its embedding matrix: its layers and its head are neither read nor kept.

    Args:
        folder: the model's.
        recipe: of the run.
        layers: load only this number of the LLM's first layers; None for all.

    Raises:
        UserError: a weight is missing or has no place in the model, or the files are damaged, or need a package that is
            not installed.
    """
    frozen = frozen_dtype(recipe)
    trains = recipe.learning_rates
    config = AutoConfig.from_pretrained(folder.path)
    kind = AlignedLlava
    if layers is not None:
        keep_layers(config, layers)
    if not recipe.loss.lm:
        keep_layers(config, 0)
        kind = AlignedLlava if config.tie_word_embeddings else _Headless
    dtypes = {
        "": torch.float32,
        "text_config": torch.float32 if trains.llm and recipe.lora is None else frozen,
        "vision_config": torch.float32 if trains.vision else frozen,
    }
    # Only the tensors that the model has are read from the files, each by itself.
    with quiet(), border(f"{folder.path}: cannot be loaded", _ADVICE, given=True):
        loaded: Any = kind.from_pretrained(folder.path, config=config, dtype=dtypes, output_loading_info=True)
    model: AlignedLlava = loaded[0]
    _check_read(folder, model, loaded[1], cut=layers is not None or not recipe.loss.lm)
    if isinstance(model.lm_head, nn.Linear):
        check_head(model, str(folder.path))
    model.with_lm = bool(recipe.loss.lm)
    if recipe.lora is not None:
        add_adapters(model.llm, recipe.lora, recipe.seed)
    freeze(model, trains, linear_projector=folder.linear_projector, adapted=recipe.lora is not None)
    _set_precision(model, frozen)
    return model


def load_in_own_dtype(folder: ModelFolder) -> AlignedLlava:
    """Load the model in its folder's dtype, with tensors laid out as a run trains them.

    transformers stacks a mixture's experts, for example, which files hold one by one.

    Raises:
        UserError: the files are damaged.
    """
    dtype = folder.config.dtype or torch.float32
    with quiet(), border(f"{folder.path}: cannot be loaded", _ADVICE, given=True):
        model: AlignedLlava = AlignedLlava.from_pretrained(folder.path, dtype=dtype)
    return model


def _check_read(folder: ModelFolder, model: AlignedLlava, report: dict[str, Any], *, cut: bool) -> None:
    """Check that the files hold the model's weights, no fewer and no more.

    transformers only warns of either: it draws missing weights at random, and leaves out those without a place.
    """
    if extra := misplaced(model, report["unexpected_keys"], cut=cut):
        raise UserError(
            f"{folder.path}: expected only weights that transformers' LLaVA has; found {some(extra)} in its files, "
            "which readers leave out and then compute otherwise; make the folder with sea-pipeline init from an LLM "
            "that fits"
        )
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"{folder.path}: {len(missing)} weights are missing, the first is {missing[0]}; copy the folder again"
        )


def _set_precision(model: AlignedLlava, frozen: torch.dtype) -> None:
    """Make each part that trains float32 as a whole.

    Then its layers all pass on the same precision.

    The LLM under adapters is frozen; they have their own precision. Batch norms compute in float32 for any input.
    """
    every = list(model.named_parameters())
    trains = {part(name) for name, parameter in every if parameter.requires_grad} | {"projector"}
    for name, parameter in every:
        parameter.data = parameter.data.to(torch.float32 if part(name) in trains else frozen)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm):
            module.float()


def keep_layers(config: Any, count: int) -> None:  # noqa: ANN401 - a LlavaConfig
    """Cut a config so that the LLM has its embeddings and its first `count` layers."""
    text = config.text_config
    text.num_hidden_layers = count
    stored = vars(text).get(text.attribute_map.get("layer_types", "layer_types"))  # Jamba computes them
    if stored is not None:
        text.layer_types = stored[:count]


def freeze(model: AlignedLlava, rates: LearningRates, *, linear_projector: bool, adapted: bool = False) -> None:
    """Set which parameters train.

    They are the parts with a learning rate, except weights that no gradient can reach.

    In an adapted LLM only the adapters train, at the LLM's rate.
    """
    on = rates.by_part(adapted=adapted)
    unreached = unreached_vision(model) if rates.vision else set()
    for name, parameter in model.named_parameters():
        fixed = linear_projector and "multi_modal_projector.linear_2" in name
        parameter.requires_grad_(on[part(name)] is not None and not fixed and id(parameter) not in unreached)


def unreached_vision(model: AlignedLlava) -> set[int]:
    """Find the tower's parameters after the layer whose output LLaVA uses.

    They are those without a gradient in one backward pass of a blank image.
    """
    tower, layer = model.model.vision_tower, model.config.vision_feature_layer
    parameters = list(tower.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    blank = parameters[0].new_zeros(1, 3, *sides(cast("Any", model.config.vision_config).image_size))
    with torch.enable_grad():
        hidden = tower(blank, output_hidden_states=True, return_dict=True).hidden_states
        chosen = hidden[layer] if isinstance(layer, int) else torch.cat([hidden[one] for one in layer], -1)
        gradients = torch.autograd.grad(chosen.float().sum(), parameters, allow_unused=True)
    return {id(parameter) for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is None}


def frozen_dtype(recipe: Recipe) -> torch.dtype:
    """Return the dtype of what does not train."""
    if recipe.frozen_dtype != "auto":
        return torch.float32 if recipe.frozen_dtype == "float32" else torch.bfloat16
    return torch.bfloat16 if recipe.training_arguments.get("bf16") and torch.cuda.is_available() else torch.float32
