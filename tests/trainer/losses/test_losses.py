"""Each loss against a slow twin written from the paper in float64: value and gradient, uneven sizes."""

import math

import pytest
import torch
import torch.nn.functional as F

from sea_pipeline.core.devices import has_onednn
from tests.support.loss_twins import attention, das_twin, sds_twin, sea_twin
from tests.support.pretend_gpu import pretend_gpu
from tests.support.random_values import random
from trainer.losses import equations
from trainer.losses.equations import das, sds, sea, word_table


def test_sds_with_bfloat16_products_is_that_of_what_these_see() -> None:
    """Else, where V and V^ are long and all but equal, rounding outweighs their divergence, down to below zero."""
    embeddings, weights = 0.05 * random(2000, 64, dtype=torch.float32), torch.full((32,), 1 / 32)
    refined = 300 * F.normalize(random(32, 64, seed=1, dtype=torch.float32), dim=-1)
    visual = refined + 3 * F.normalize(random(32, 64, seed=2, dtype=torch.float32), dim=-1)
    seen = [tensor.bfloat16().double() for tensor in (visual, refined, embeddings)]
    exact = sds_twin(seen[0], seen[1], weights.double(), seen[2])
    with pretend_gpu():  # whose products of bfloat16 are not rounded
        gpu = [tensor.to("cuda") for tensor in (visual, refined, weights, embeddings)]
        found = sds(*gpu, matmul_dtype=torch.bfloat16).cpu()
    torch.testing.assert_close(found.double(), exact, rtol=0.2, atol=0)


def test_half_precision_inputs_are_computed_in_float32() -> None:
    x, t, scale = random(40, 16, seed=1), random(40, 16, seed=2), torch.tensor(math.log(1 / 0.07))
    for dtype in (torch.bfloat16, torch.float16):
        half = x.to(dtype).requires_grad_()
        value = sea(half, t.to(dtype), scale)
        assert value.dtype == torch.float32
        expected = sea_twin(x.to(dtype).double(), t.to(dtype).double(), scale.double())
        torch.testing.assert_close(value.double(), expected, atol=1e-5, rtol=1e-5)
        value.backward()
        assert half.grad is not None
        assert half.grad.dtype == dtype


@pytest.mark.parametrize(("count", "width"), [(1, 3), (6, 5), (49, 16)])
def test_das_is_equation_6_forward_and_backward(count: int, width: int) -> None:
    refined, weights = random(count, width, seed=2), attention(count)
    values = []
    for loss in (das, das_twin):
        visual = random(count, width, seed=1).requires_grad_()
        value = loss(visual, refined, weights)
        value.backward()
        values.append((value.detach(), visual.grad))
    for fast, slow in zip(*values, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-13, rtol=1e-11)


@pytest.mark.parametrize(("count", "width", "vocabulary"), [(1, 3, 1), (2, 4, 7), (5, 8, 64), (9, 6, 1001)])
@pytest.mark.parametrize("block", [1, 7, 64, 5000])
@pytest.mark.parametrize("norm", [1.0, 30.0])
def test_sds_is_equation_7_forward_and_backward(
    count: int, width: int, vocabulary: int, block: int, norm: float
) -> None:
    refined, embeddings = norm * random(count, width, seed=2), random(vocabulary, width, seed=3)
    weights = attention(count)
    visual = random(count, width, seed=1).requires_grad_()
    fast = sds(visual, refined, weights, embeddings, block=block)
    (2.5 * fast).backward()
    found, visual.grad = visual.grad, None
    p = (refined @ embeddings.T).softmax(-1)
    if bool((p > 0).all()):  # the twin's log needs every probability
        slow = sds_twin(visual, refined, weights, embeddings)
        (2.5 * slow).backward()
        torch.testing.assert_close(fast, slow, atol=1e-12, rtol=1e-10)
        torch.testing.assert_close(found, visual.grad, atol=1e-12, rtol=1e-10)
    assert fast >= -1e-12


@pytest.mark.parametrize("temperature", [1.0, 0.5, 4.0])
def test_sds_has_the_gradient_of_its_value_at_every_temperature(temperature: float) -> None:
    refined, embeddings, weights = random(4, 5, seed=2), random(33, 5, seed=3), attention(4)
    visual = random(4, 5, seed=1).requires_grad_()

    def fast(tokens: torch.Tensor) -> torch.Tensor:
        return sds(tokens, refined, weights, embeddings, temperature=temperature, block=8)

    torch.testing.assert_close(fast(visual), sds_twin(visual, refined, weights, embeddings, temperature))
    assert torch.autograd.gradcheck(fast, (visual,))


def test_sds_of_equal_embeddings_is_zero_and_pulls_nowhere() -> None:
    visual = random(4, 5).requires_grad_()
    value = sds(visual, visual.detach(), attention(4), random(33, 5, seed=3), block=8)
    value.backward()
    torch.testing.assert_close(value.item(), 0.0)
    assert visual.grad is not None
    assert visual.grad.abs().max() < 1e-15


def test_only_the_visual_tokens_get_a_gradient() -> None:
    refined, embeddings, weights = (t.requires_grad_() for t in (random(4, 5), random(33, 5), attention(4)))
    visual = random(4, 5, seed=1).requires_grad_()
    (das(visual, refined, weights) + sds(visual, refined, weights, embeddings)).backward()
    assert visual.grad is not None
    assert (refined.grad, embeddings.grad, weights.grad) == (None, None, None)


def test_sds_with_bfloat16_products() -> None:
    refined, embeddings, weights = random(32, 64, seed=2) / 4, random(3000, 64, seed=3) / 2, attention(32)
    single = (random(32, 64, seed=1) / 4).float().requires_grad_()
    value = sds(single, refined.float(), weights, embeddings.float(), matmul_dtype=torch.bfloat16)
    value.backward()
    double = single.detach().double().requires_grad_()
    expected = sds_twin(double, refined, weights, embeddings)
    expected.backward()
    assert single.grad is not None
    assert double.grad is not None
    assert abs(value.item() / expected.item() - 1) < 0.05
    assert F.cosine_similarity(single.grad.double().flatten(), double.grad.flatten(), dim=0) > 0.99


def test_sds_of_float16_tokens_is_exact_under_a_loss_scale() -> None:
    """Before the scale, which may itself be beyond float16, most of the gradient would round to 0."""
    refined, embeddings = random(300, 64, seed=2), random(500, 64, seed=3) / 16
    visual = (random(300, 64, seed=1) / 16).half().requires_grad_()
    double, weights = visual.detach().double().requires_grad_(), attention(300)
    (131072 * sds(visual, refined.float(), weights.float(), embeddings.float())).backward()
    (131072 * sds_twin(double, refined, weights, embeddings)).backward()
    assert visual.grad is not None
    assert double.grad is not None
    assert ((visual.grad - double.grad).norm(dim=1) <= 2e-3 * double.grad.norm(dim=1)).all()


@pytest.mark.parametrize("faster", [False, True])
@pytest.mark.parametrize("block", [7, 64, 5000])
def test_sds_by_each_library_that_multiplies(faster: bool, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if faster and not has_onednn():
        pytest.skip("torch has no oneDNN here")
    monkeypatch.setattr(equations, "onednn_is_faster", lambda: faster)
    refined, embeddings, weights = random(9, 31, seed=2) / 2, random(1001, 31, seed=3), attention(9)
    single = (random(9, 31, seed=1) / 2).float().requires_grad_()
    value = sds(single, refined.float(), weights, embeddings.float(), block=block)
    value.backward()
    double = single.detach().double().requires_grad_()
    expected = sds_twin(double, refined, weights, embeddings)
    expected.backward()
    assert single.grad is not None
    torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(single.grad.double(), double.grad, atol=1e-6, rtol=1e-5)


def test_other_shapes_are_refused_and_not_broadcast() -> None:
    v, r, a, e = random(9, 4, seed=1), random(9, 4, seed=2), attention(9), random(20, 4, seed=4)
    for wrong in (
        lambda: das(v, r, a[:, None]),
        lambda: das(v, r, a[:1]),
        lambda: das(v, r[:1], a),
        lambda: das(v.unflatten(0, (3, 3)), r.unflatten(0, (3, 3)), a[:3]),
        lambda: sds(v, r, a[:, None], e),
        lambda: sds(v, r[:7], a[:8], e),
        lambda: sds(v, r, a, e[:, :3]),
        lambda: sea(v, r[:8], torch.zeros(())),
        lambda: sea(v[:0], r, torch.zeros(())),
    ):
        with pytest.raises(ValueError, match=r"expected .* found"):
            wrong()
    assert sea(v[:0], r[:0], torch.zeros(1)).shape == ()


@pytest.mark.parametrize(
    ("ids", "said"),
    [([], "word 1 has no token"), *((ids, "word 1: expected tokens from 0 to 19; found") for ids in ([-1], [3, 20]))],
)
def test_a_word_without_tokens_or_of_none_is_refused(ids: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        word_table(random(20, 4), [[0, 1], ids, [2]])


def test_autocast_changes_nothing() -> None:
    v, r, a, e = random(30, 64, seed=1).float(), random(30, 64, seed=2).float(), attention(30), random(90, 64)
    scale = torch.tensor(math.log(1 / 0.07))
    for loss, given in ((sea, (r, scale)), (das, (r, a.float())), (sds, (8 * r, a.float(), e.float()))):
        gradients = []
        for enabled in (False, True):
            visual = (8 * v).requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                value = loss(visual, *given)
            value.backward()
            gradients.append(visual.grad)
        assert torch.equal(*gradients)
