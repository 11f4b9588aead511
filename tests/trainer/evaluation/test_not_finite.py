"""Figures of a model that gives NaN or infinities: none of them may look like one of a model that works."""

import math

import pytest
import torch
from torch import nn

from sea_pipeline.core.errors import UserError
from tests.support.analysis_models import Make, Ready
from tests.support.heard import Heard
from trainer.evaluation.premise import is_near, nearness
from trainer.evaluation.questions import Prompt, yes_or_no
from trainer.evaluation.token_replacement import replace_and_describe

OF_TOKENS = ["label_hit@1", "label_hit@10", "gap", "meaningful", "meaningful_chance", "distinct_tokens"]


def spoil(made: Ready, value: float) -> None:
    """Puts a value into one number of one visual token of each image."""

    def spoiled(_module: nn.Module, _inputs: object, visual: torch.Tensor) -> torch.Tensor:
        broken = visual.clone()
        broken[:, 3, 5] = value
        return broken

    made.model.model.multi_modal_projector.register_forward_hook(spoiled)


@pytest.mark.slow
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_no_share_of_tokens_is_known_if_one_is_no_number(ready: Make, value: float) -> None:
    """Its nearest word would be the list's first, a hit wherever that is a label. 1e30 has no length in float32."""
    made = ready(labelled=True)
    spoil(made, value)
    made.evaluator.reporter = heard = Heard()
    found = made.evaluator(made.model)
    assert all(math.isnan(found[name]) for name in OF_TOKENS)
    (said,) = heard.warnings
    assert set(OF_TOKENS) <= set(said.partition(": ")[0].split(", "))
    assert said.endswith("its training has diverged, or its precision is too low for it")
    if math.isfinite(value):
        return
    assert math.isnan(found["lm_loss"])
    assert "lm_loss, " in said
    assert "_se" not in said
    with pytest.raises(UserError, match=r"^sample 's0': expected numbers as visual tokens; found some that are not"):
        made.evaluator.nearest_words(made.model, 0)
    with pytest.raises(UserError, match=r"^a generated text: expected numbers as the LLM's logits; found some"):
        replace_and_describe(made.evaluator, made.model, 1, 2)


@pytest.mark.slow
def test_a_model_that_works_is_not_warned_of(ready: Make) -> None:
    made = ready(labelled=True)
    made.evaluator.reporter = heard = Heard()
    found = made.evaluator(made.model)
    assert all(map(math.isfinite, found.values()))
    assert not heard.warnings


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_no_answer(value: float) -> None:
    logits = torch.tensor([[value, 0.0, -math.inf]])
    prompts = [Prompt(torch.empty(0), frozenset({(0,)}), frozenset({(1,)}))]
    with pytest.raises(UserError, match=r"^--questions: expected numbers as the LLM's logits"):
        yes_or_no(prompts, lambda _: logits)
    assert yes_or_no(prompts, lambda _: torch.tensor([[-math.inf, 0.0, 1.0]])) == ["no"], "that is no probability"


def test_vectors_that_are_no_numbers_are_near_to_nothing() -> None:
    """No embedding has a higher cosine than NaN, which would be the first rank."""
    embeddings = torch.eye(4)
    vectors = embeddings.clone()
    assert nearness(vectors, torch.arange(4), embeddings) == (1, 1, 1)
    vectors[2, 1] = math.nan
    found = nearness(vectors, torch.arange(4), embeddings)
    assert all(map(math.isnan, found))
    assert not is_near(found)
