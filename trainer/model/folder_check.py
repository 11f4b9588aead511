"""Checks before training that a model folder's processor and tower agree on the number of an image's tokens."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, LlavaConfig

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.crops import Reach
from sea_pipeline.storage.json_files import read_json
from trainer.model.borders import border
from trainer.model.chat_template import both_forms, default_template
from trainer.model.config_check import check_plain
from trainer.model.llava_folder import read_config
from trainer.model.message_forms import IMAGE_TOKEN
from trainer.model.tokenise import without_limits
from trainer.towers import sides, tower_reach


class LlavaFolder(NamedTuple):
    """A LLaVA folder without its weights."""

    config: LlavaConfig
    processor: Any
    """The processor, with the settings that older versions of transformers did not write, see `_complete`."""
    visual_tokens: int
    """The number of visual tokens of one image."""
    reach: Reach
    """How far the tower's patches reach in its input."""


def check_model_folder(folder: Path) -> LlavaFolder:
    """Pass one grey image through the processor, and its shape through the tower.

    No weights are read.

    Raises:
        UserError: it is no LLaVA folder; its processor and tower disagree on the number of an image's tokens, or on the
            id of `<image>`; or its token for an image is another.
    """
    said = read_config(folder)
    check_plain(str(folder), said)
    config, processor = _read(folder)
    if (token := getattr(processor, "image_token", None)) != IMAGE_TOKEN:
        raise UserError(
            f"{folder}: its processor's token for an image is {token!r}; expected {IMAGE_TOKEN!r}, as "
            "data files and evaluation harnesses write it; replace the first by the second in each .json and .jinja "
            "file of a copy of the folder"
        )
    shape = image_shape(processor.image_processor, str(folder))
    try:
        states = _states(config, shape, str(folder))
    except UserError:
        raise
    # the tower's errors for a wrong size, one given as two numbers, or a layer that it lacks
    except (ValueError, TypeError, RuntimeError, IndexError) as error:
        raise UserError(f"{folder}: its tower cannot take what its processor gives ({error})") from error
    _complete(processor, config, folder, states, shape)
    features = states - 1 if config.vision_feature_select_strategy == "default" else states
    inputs = processor(images=_grey(64, 64), text=IMAGE_TOKEN, return_tensors="pt")
    tokens = int((inputs["input_ids"] == config.image_token_id).sum())
    if tokens == 0:
        raise UserError(
            f"{folder}: the tokenizer's id of {IMAGE_TOKEN} is {processor.image_token_id}, config.json says "
            f"image_token_index = {config.image_token_id}; make the folder with sea-pipeline init"
        )
    if tokens != features:
        raise UserError(
            f"{folder}: the processor gives an image {tokens} tokens, the tower gives {features} features; expected "
            "equal numbers: correct vision_feature_select_strategy, patch_size and num_additional_image_tokens in "
            'config.json and processor_config.json ("default" drops a first token, which SigLIP does not have)'
        )
    return LlavaFolder(config, processor, features, tower_reach(config.vision_config, (shape[-2], shape[-1])))


def _read(folder: Path) -> tuple[LlavaConfig, Any]:
    """Read the configuration and the processor.

    Damaged files can raise nearly any kind of error.
    """
    with border(
        f"{folder}: its configuration or processor cannot be loaded",
        "restore it, or make it with sea-pipeline init",
        given=True,
    ):
        processor: Any = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        without_limits(processor.tokenizer)
        return LlavaConfig.from_pretrained(folder), processor


def _complete(processor: Any, config: Any, folder: Path, states: int, shape: tuple[int, ...]) -> None:  # noqa: ANN401
    """Set how many tokens an image becomes, which transformers before 4.46 or so left out, or left to the call.

    Also gives processor and tokenizer one chat template, which takes content in both forms.
    """
    stated = read_json(folder / "processor_config.json", absent={})
    patch = sides(config.vision_config.patch_size)
    derived = {
        "patch_size": patch[0],
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": states - (shape[-2] // patch[0]) * (shape[-1] // patch[1]),
    }
    for name, value in derived.items():
        if stated.get("patch_size") is None or stated.get(name) is None:
            setattr(processor, name, value)
    template = default_template(processor.chat_template or processor.tokenizer.chat_template, str(folder))
    if template:
        processor.chat_template = processor.tokenizer.chat_template = both_forms(template)


def image_shape(image_processor: Any, source: str) -> tuple[int, ...]:  # noqa: ANN401 - one class per family
    """Return the shape of any image after preprocessing, (1, 3, height, width).

    Raises:
        UserError: not every image becomes a square of one size.
    """
    shapes = [
        tuple(image_processor(image, return_tensors="pt")["pixel_values"].shape)
        for image in (_grey(64, 48), _grey(48, 64))
    ]
    if shapes[0] != shapes[1] or shapes[0][-1] != shapes[0][-2]:
        raise UserError(
            f"{source}: its image processor gives a landscape {shapes[0][2:]} and a portrait {shapes[1][2:]} pixels; "
            "expected one square: set do_center_crop and crop_size in preprocessor_config.json"
        )
    return shapes[0]


def _grey(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.full((height, width, 3), 128, np.uint8))


def _states(config: LlavaConfig, shape: tuple[int, ...], source: str) -> int:
    """Count the tokens of the layer that LLaVA uses, by running the tower on the meta device as LLaVA does."""
    layers = config.vision_feature_layer
    first = layers if isinstance(layers, int) else layers[0]
    with torch.device("meta"), torch.no_grad():
        tower = AutoModel.from_config(config.vision_config)
        pixels = torch.empty(shape)
        states = tower(pixels, output_hidden_states=layers).hidden_states
        if states is None:
            every = len(tower(pixels, output_hidden_states=True).hidden_states)
            raise UserError(
                f"{source}: its vision_feature_layer is {layers}, which transformers takes for none; set it to "
                f"{-every}, the same layer, in config.json"
            )
    return int(states[first].shape[1])
