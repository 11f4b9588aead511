"""Name the keys of a recipe that make no sense for an existing model, `model: {attach: FOLDER}`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.recipes.recipe import Recipe

_OWN_PIXELS = "the model's own processor makes its pixels and grids"


def problems_of_attach(recipe: "Recipe") -> list[str]:
    """List what such a recipe asks for that cannot be, one line each, with what to set."""
    return [*_of_data(recipe), *_of_loss(recipe), *_of_run(recipe)]


def _of_data(recipe: "Recipe") -> Iterator[str]:
    data, labels = recipe.data, recipe.labels
    if data.template != "own":
        yield f"data.template: {data.template}, but such a model is spoken to by its own chat template; set it to own"
    if data.image_aspect_ratio is not None:
        yield f"data.image_aspect_ratio: {_OWN_PIXELS}; set it to null"
    if data.random_crop is not None:
        yield f"data.random_crop: {_OWN_PIXELS}; set it to null"
    if data.keep_features:
        yield "data.keep_features: the features of a model that is attached to are not kept; set it to false"
    if data.sampling != "random":
        yield (
            "data.sampling: modality_length needs the number of a row's visual tokens, which such a model's processor "
            "tells of whole images only; set it to random"
        )
    if labels.crops:
        yield f"labels.crops: {_OWN_PIXELS}, of whole images; set it to 0"


def _of_loss(recipe: "Recipe") -> Iterator[str]:
    loss, basic = recipe.loss, recipe.loss.basic
    if not loss.lm:
        yield "loss.lm: a model that is attached to runs whole; give it a weight above 0"
    for name, term in loss.terms().items():
        if term.weight == "auto":
            yield f"loss.{name}.weight: auto needs gradients by term, which are not measured there; give a number"
        elif term.ratio != type(term)().ratio:
            yield f"loss.{name}.ratio: goes with weight: auto, which such a model does not have; leave it out"
    if loss.measure_every != type(loss)().measure_every:
        yield "loss.measure_every: gradients by term are not measured for such a model; leave it out"
    if basic.lens != "none":
        yield "loss.basic.lens: is for models of sea-pipeline init; set it to none"
    if basic.text != "all":
        yield "loss.basic.text: prompt is for models of sea-pipeline init; set it to all"
    if recipe.teacher is not None:
        yield "teacher: its targets have one grid, that of a model of sea-pipeline init; set it to null"


def _of_run(recipe: "Recipe") -> Iterator[str]:
    arguments = recipe.training_arguments
    if recipe.keep_checkpoints:
        yield (
            "keep_checkpoints: export, which reads them, is for models of sea-pipeline init; leave it out (the model "
            "folder is in its family's own form already)"
        )
    if recipe.frozen_dtype == "bfloat16" and not arguments.get("bf16"):
        yield (
            "frozen_dtype: bfloat16 next to float32 needs autocast in such a model; set training_arguments.bf16: true, "
            "or float32"
        )
    for name in ("fsdp", "torch_compile"):
        if arguments.get(name):
            yield f"training_arguments.{name}: is for models of sea-pipeline init; leave it out"
