"""An LLM that multiplies its inputs, such as Granite: E and V are what its first layer gets."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_models import tiny_llm, tiny_vision
from trainer.losses.embeddings import input_scale
from trainer.model.assemble import init_model
from trainer.model.load import load_model, open_model_folder
from trainer.model.terms import basic_term, lens_of
from trainer.recipes.recipe import Recipe

SCALE = 12.0


@pytest.mark.slow
@pytest.mark.parametrize("basic", [{}, {"lens": "ridge", "normalise": "unit"}], ids=["plain", "lens and unit"])
def test_the_factor_may_as_well_be_in_the_weights(basic: dict[str, Any], tmp_path: Path) -> None:
    """The same network has the same losses."""
    llm = tiny_llm(tmp_path / "llm", "granite", embedding_multiplier=SCALE)
    model = init_model(str(tiny_vision(tmp_path / "vision")), str(llm), tmp_path / "model")
    loss = {"das": {"weight": 1}, "sds": {"weight": 1}, "basic": basic}
    recipe = Recipe.model_validate({"model": model, "loss": loss, "learning_rates": {"projector": 1e-3}})
    as_it_is, folded = (_losses(recipe, fold=fold) for fold in (False, True))
    assert as_it_is.keys() == folded.keys() >= {"lm", "das", "sds", "visual_norm", "refined_norm", "gradient"}
    for name, value in as_it_is.items():
        torch.testing.assert_close(value, folded[name], rtol=1e-4, atol=1e-8, msg=name)


def _losses(recipe: Recipe, *, fold: bool) -> dict[str, torch.Tensor]:
    folder = open_model_folder(Path(recipe.model))
    model = load_model(folder, recipe).double().eval()
    llm, last = model.model.language_model, model.projector.linear_2
    assert input_scale(llm) == SCALE
    if fold:
        llm.embedding_multiplier = llm.config.embedding_multiplier = 1.0
        for weight in (model.get_input_embeddings().weight, last.weight, last.bias):
            weight.data *= SCALE
        assert input_scale(llm) == 1
    model.basic_term = basic_term(model, folder, recipe, ["das", "sds"], lens_of(model, folder, recipe))
    images = torch.full((1, 16), model.config.image_token_id)
    drawn = torch.Generator().manual_seed(1)
    ids = torch.cat([images, torch.randint(6, 300, (1, 20), generator=drawn)], 1)
    pixels = torch.randn(1, 3, 32, 32, generator=drawn).double()
    where = {"predict": torch.tensor([20, 21]), "targets": ids[0, 21:23], "attention_mask": torch.ones_like(ids)}
    found = model(input_ids=ids, pixel_values=pixels, **where)
    found["sds"].backward()
    assert last.weight.grad is not None
    gradient = last.weight.grad * (SCALE if fold else 1)  # w.r.t. the weight before it was folded
    kept = ("lm", "das", "sds", "visual_norm", "refined_norm")
    return {name: found[name].detach() for name in kept} | {"gradient": gradient}
