"""Visual tokens of no length and nearly none: L_a and L_das are of directions, whose gradient grows as 1 / |x|."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.support.loss_twins import attention, das_twin, gradient_twin, sea_twin
from tests.support.random_values import random
from tests.support.tiny_runs import World, logged, tiny_recipe, tiny_trainer
from trainer.losses import equations
from trainer.losses.embeddings import llm_embeddings, ordinary_length
from trainer.losses.equations import das, sea

Loss = Callable[[torch.Tensor], torch.Tensor]
LENGTHS = [1e-20, 1e-12, 1e-6, 1e-3, 0.009, 0.011, 0.05, 0.099, 0.101, 0.3, 1.0, 3.0, 10.0]
"""Of tokens, over that of an ordinary one."""
NAMES = ["sea", "das", "das by the LLM's"]


def loss_and_twin(name: str, count: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[Loss, Loss, float]:
    """A loss by the visual tokens alone, its twin, and how long an ordinary token is."""
    words, refined, weights = random(count, width, seed=2), 30 * random(count, width, seed=3), attention(count)
    t, r, a, scale = words.to(dtype), refined.to(dtype), weights.to(dtype), torch.tensor(2.0, dtype=dtype)
    if name == "sea":
        lengths = words.norm(dim=-1)
        return lambda v: sea(v, t, scale), lambda v: sea_twin(v, words, scale.double()), float(lengths.mean())
    given = torch.tensor(0.7, dtype=dtype) if name != "das" else None
    ordinary = float(refined.norm(dim=-1).mean()) if given is None else float(given)
    return lambda v: das(v, r, a, ordinary=given), lambda v: das_twin(v, refined, weights), ordinary


def value_and_gradient(loss: Loss, visual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = visual.clone().requires_grad_()
    value = loss(leaf)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


@pytest.mark.parametrize(("count", "width"), [(1, 5), (7, 6), (23, 16)])
@pytest.mark.parametrize("name", NAMES)
def test_any_length_against_the_twin(name: str, count: int, width: int) -> None:
    """Values are the formula's, and so are gradients from a tenth of the ordinary length on."""
    loss, twin, ordinary = loss_and_twin(name, count, width)
    unit = F.normalize(random(count, width, seed=1), dim=-1)
    value, at_one = value_and_gradient(twin, unit)
    for share in LENGTHS:
        found, gradient = value_and_gradient(loss, share * ordinary * unit)
        torch.testing.assert_close(found, value, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(gradient, gradient_twin(at_one, share * ordinary, ordinary), atol=1e-12, rtol=1e-9)
    lengths = [ordinary * LENGTHS[place % len(LENGTHS)] for place in range(count)]
    _, gradient = value_and_gradient(loss, torch.tensor(lengths).double()[:, None] * unit)
    mixed = [gradient_twin(one, length, ordinary) for one, length in zip(at_one, lengths, strict=True)]
    torch.testing.assert_close(gradient, torch.stack(mixed), atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_ordinary_tokens_are_as_they_were(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, in float32."""
    loss, _, ordinary = loss_and_twin(name, 40, 16, torch.float32)
    unit = F.normalize(random(40, 16, seed=1, dtype=torch.float32), dim=-1)
    found = [value_and_gradient(loss, share * ordinary * unit) for share in (0.101, 1.0, 30.0)]
    monkeypatch.setattr(equations, "_directions", lambda tokens, _: F.normalize(tokens, dim=-1))
    plain = [value_and_gradient(loss, share * ordinary * unit) for share in (0.101, 1.0, 30.0)]
    for ours, theirs in zip(found, plain, strict=True):
        assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_no_length_gets_the_gradient_of_an_ordinary_token(name: str, dtype: torch.dtype) -> None:
    """All of them, as of a projector whose last weight starts at zero, or one."""
    loss, _, ordinary = loss_and_twin(name, 9, 16, dtype if dtype is torch.float64 else torch.float32)
    visual = (ordinary * F.normalize(random(9, 16, seed=1), dim=-1)).to(dtype)
    _, usual = value_and_gradient(loss, visual)
    most = 2 * usual.float().norm(dim=-1).max()  # what has no direction has all of the gradient across it
    alone = visual.clone()
    alone[3] = 0
    for given in (0 * visual, 1e-30 * visual, 1e-5 * visual, alone):
        value, gradient = value_and_gradient(loss, given)
        assert value.isfinite()
        assert gradient.any(-1).all()
        assert gradient.float().norm(dim=-1).max() <= most


def test_where_targets_have_no_length_either() -> None:
    zero = torch.zeros(3, 16)
    for loss in (lambda v: sea(v, zero, torch.zeros(())), lambda v: das(v, zero, torch.ones(3) / 3)):
        value, gradient = value_and_gradient(loss, zero)
        assert value.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("term", ["sea", "das"])
def test_a_projector_that_starts_at_zero_trains(term: str, tiny: World, deep: Path, tmp_path: Path) -> None:
    arguments = {"max_steps": 12, "save_strategy": "no", "max_grad_norm": 0.0, "warmup_steps": 0}
    loss = {"lm": 1e-6, "sea": {"weight": float(term == "sea")}, "das": {"weight": float(term == "das")}}
    recipe = tiny_recipe(tiny, model=str(deep), loss=loss, training_arguments=arguments)
    norms, values = {}, {}
    for name in ("zero", "usual"):
        trainer = tiny_trainer(recipe, tmp_path / name)
        if name == "zero":
            for parameter in trainer.model.model.multi_modal_projector.linear_2.parameters():
                torch.nn.init.zeros_(parameter)
        trainer.train()
        lines = logged(tmp_path / name)
        norms[name] = [line["grad_norm"] for line in lines]
        values[name] = [line[f"loss_{term}"] for line in lines]
    assert max(norms["zero"]) < 10 * max(norms["usual"])
    assert sum(values["zero"][-3:]) < 0.95 * sum(values["zero"][1:4])


@torch.no_grad()
def test_how_long_an_ordinary_token_is() -> None:
    """Of a sample of the vocabulary, without rows that only pad."""
    embed = torch.nn.Embedding(5000, 8)
    embed.weight[4000:] = 1e6
    every = llm_embeddings(embed, 4000).norm(dim=-1).mean()
    assert float(ordinary_length(embed, 4000)) == pytest.approx(float(every), rel=0.05)
    assert float(ordinary_length(embed, 3)) == pytest.approx(float(llm_embeddings(embed, 3).norm(dim=-1).mean()))
