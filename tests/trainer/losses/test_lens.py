"""The lens of BASIC's supervision: against formulas written out in float64, and with a turn planted in the layers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.basic_models import IMAGES, LAYERS, WIDTH, batch, llm, states
from tests.support.random_values import random
from tests.support.tiny_runs import World, tiny_recipe
from trainer.losses.equations import das, sds
from trainer.losses.lens import PENALTIES, Affine, Lens, LensKind, fit, load_lens, save_lens
from trainer.losses.supervision import Supervision
from trainer.recipes.recipe import Basic

T, HELD_OUT = 90, 23


def pairs(noise: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    """H, which is E turned, moved and noisy, and E, (T, 7): uneven everything."""
    embeddings = random(T, 7, seed=1)
    turn = random(7, 7, seed=2)
    return embeddings @ turn + 3 + noise * random(T, 7, seed=3), embeddings


def normal_equations(states: torch.Tensor, embeddings: torch.Tensor, penalty: float) -> np.ndarray:
    """argmin |H W - E|^2 + a |W|^2 of centred H and E by gradient descent's end: least squares of stacked rows."""
    inputs, outputs = (one.double().numpy() for one in (states, embeddings))
    inputs, outputs = inputs - inputs.mean(0), outputs - outputs.mean(0)
    stacked = np.concatenate([inputs, np.sqrt(penalty) * np.eye(inputs.shape[1])])
    return np.linalg.lstsq(
        stacked, np.concatenate([outputs, np.zeros((inputs.shape[1], outputs.shape[1]))]), rcond=None
    )[0]


@pytest.mark.parametrize("share", [1e-6, 1e-2, 1.0])
def test_ridge_is_the_minimum_that_it_is_said_to_be(share: float) -> None:
    states, embeddings = pairs()
    found = fit(states, embeddings, "ridge", held_out=HELD_OUT, penalties=[share])
    inputs, outputs = states[:-HELD_OUT], embeddings[:-HELD_OUT]
    penalty = share * float(((inputs - inputs.mean(0)) ** 2).sum(0).mean())
    expected = normal_equations(inputs, outputs, penalty)
    assert found.weight is not None
    np.testing.assert_allclose(found.weight.numpy(), expected, rtol=1e-8, atol=1e-10)
    assert torch.equal(found.mean, inputs.mean(0))
    assert torch.equal(found.target, outputs.mean(0))


def test_the_penalty_is_the_one_that_does_best_on_tokens_held_out() -> None:
    states, embeddings = pairs(noise=3.0)
    chosen = fit(states, embeddings, "ridge", held_out=HELD_OUT, penalties=PENALTIES)

    def error(one: Affine) -> float:
        mapped = Lens((one,))(0, states[-HELD_OUT:])
        return float((mapped - embeddings[-HELD_OUT:]).square().sum())

    errors = [error(fit(states, embeddings, "ridge", held_out=HELD_OUT, penalties=[share])) for share in PENALTIES]
    assert error(chosen) == min(errors)
    assert len({round(one, 6) for one in errors}) > 1


def test_centred_moves_the_mean_alone() -> None:
    states, embeddings = pairs()
    found = Lens((fit(states, embeddings, "centred", held_out=HELD_OUT, penalties=PENALTIES),))
    expected = states - states[:-HELD_OUT].mean(0) + embeddings[:-HELD_OUT].mean(0)
    torch.testing.assert_close(found(0, states), expected, rtol=1e-12, atol=1e-12)


def test_shuffled_knows_no_token_and_has_the_same_penalty() -> None:
    states, embeddings = pairs(noise=0.05)
    told = {
        kind: Lens((fit(states, embeddings, kind, held_out=HELD_OUT, penalties=PENALTIES),))
        for kind in ("ridge", "shuffled")
    }  # type: ignore[arg-type]
    cosine = {
        kind: float(torch.cosine_similarity(lens(0, states[-HELD_OUT:]), embeddings[-HELD_OUT:]).mean())
        for kind, lens in told.items()
    }
    assert cosine["ridge"] > 0.95
    assert abs(cosine["shuffled"]) < 0.3


@pytest.mark.parametrize("kind", ["ridge", "centred"])
def test_a_lens_is_kept_as_it_is(kind: LensKind, tmp_path: Path) -> None:
    states, embeddings = pairs()
    lens = Lens(tuple(fit(states + shift, embeddings, kind, held_out=HELD_OUT, penalties=[1e-3]) for shift in (0, 1)))
    save_lens(lens, tmp_path / "lens.npz")
    kept = load_lens(tmp_path / "lens.npz", 2, 7)
    assert kept is not None
    for number in range(2):
        torch.testing.assert_close(kept(number, states.float()), lens(number, states.float()), rtol=1e-5, atol=1e-5)
    assert load_lens(tmp_path / "lens.npz", 3, 7) is None
    assert load_lens(tmp_path / "lens.npz", 2, 8) is None
    assert load_lens(tmp_path / "none.npz", 2, 7) is None
    data = bytearray((tmp_path / "lens.npz").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "lens.npz").write_bytes(data)
    assert load_lens(tmp_path / "lens.npz", 2, 7) is None


def lens_of(layers: int, seed: int) -> Lens:
    """Any maps of the tiny LLM's width."""
    each = [
        (random(WIDTH, seed=seed + i), random(WIDTH, WIDTH, seed=seed + 20 + i), random(WIDTH, seed=seed + 40 + i))
        for i in range(layers)
    ]
    return Lens(tuple(Affine(*one) for one in each))


def refined_twin(layers: list[torch.Tensor], lens: Lens, weights: list[float], unit: float | None) -> torch.Tensor:
    """Eq. 4 through the lens, token by token and number by number, in float64."""
    rows = []
    for sample, patches in sorted(IMAGES):
        for patch in patches:
            total = torch.zeros(WIDTH, dtype=torch.float64)
            for i, weight in enumerate(weights):
                mean, matrix, target = lens.maps[i]
                assert matrix is not None
                state, mapped = layers[i][sample, patch].double(), torch.zeros(WIDTH, dtype=torch.float64)
                for out in range(WIDTH):
                    mapped[out] = target[out] + sum(
                        (state[into] - mean[into]) * matrix[into, out] for into in range(WIDTH)
                    )
                total += weight * (mapped if unit is None else mapped / mapped.norm())
            rows.append(total if unit is None else unit * total)
    return torch.stack(rows)


@pytest.mark.slow
@pytest.mark.parametrize("unit", [None, 1.7])
def test_the_sum_is_of_mapped_states_and_so_are_both_losses(unit: float | None) -> None:
    """Values and gradients by V of Eq. 6 and 7 beside a loop in float64."""
    columns, rows, valid, embeds = batch()
    model, lens = llm().double(), lens_of(3, seed=7)
    basic = Basic(layers=3, degree="equal", lens="ridge", normalise="unit" if unit else "none")
    with Supervision(model, basic, lens).watching(columns, rows, valid, length=unit) as seen:
        model(inputs_embeds=embeds, attention_mask=valid.long(), use_cache=False)
    expected = refined_twin(states(model), lens, [1 / 14, 4 / 14, 9 / 14], unit)
    torch.testing.assert_close(seen.refined, expected, rtol=1e-9, atol=1e-9)
    assert not seen.refined.requires_grad
    visual = random(len(expected), WIDTH, seed=3).requires_grad_()
    weights, table = random(len(expected), seed=4).abs(), random(11, WIDTH, seed=5)
    fast = das(visual, seen.refined, weights, ordinary=torch.tensor(1.0)) + sds(visual, seen.refined, weights, table)
    slow = torch.zeros((), dtype=torch.float64)
    for i in range(len(expected)):
        chord = visual[i] / visual[i].norm() - expected[i] / expected[i].norm()
        log_p, log_q = (table @ expected[i]).log_softmax(0), (table @ visual[i]).log_softmax(0)
        slow = slow + weights[i] * (chord.square().sum() + (log_p.exp() * (log_p - log_q)).sum())
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    one, other = (torch.autograd.grad(loss, visual, retain_graph=True)[0] for loss in (fast, slow))
    torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8)


def test_autocast_does_not_reach_it() -> None:
    lens, given = lens_of(1, seed=0), random(5, WIDTH, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = lens(0, given)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, lens(0, given.double()).float(), rtol=1e-4, atol=1e-4)


def test_a_lens_goes_with_its_setting() -> None:
    with pytest.raises(AssertionError, match="ridge"):
        Supervision(llm(), Basic(lens="ridge"))
    assert Supervision(llm(), Basic(lens="centred"), lens_of(LAYERS, 0)).lens is not None


def test_a_lens_is_for_supervision_of_the_run(tiny: World, tmp_path: Path) -> None:
    loss = {"das": {"weight": 1}, "basic": {"lens": "ridge"}}
    with pytest.raises(ValueError, match=r"loss\.basic\.lens: is for supervision that the run computes"):
        tiny_recipe(tiny, loss=loss, teacher=str(tmp_path))
    tiny_recipe(tiny, loss=loss)
