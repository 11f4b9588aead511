"""Each loss against a slow twin written from the paper in float64: value and gradient, uneven sizes."""

import math

import pytest
import torch

from trainer.losses import MAX_SCALE, sea, word_table


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def sea_twin(visual: torch.Tensor, words: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """Eq. 9 symbol by symbol."""
    count, tau = len(visual), 1 / log_scale.exp()

    def phi(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a / a.norm()) @ (b / b.norm())

    total = visual.new_zeros(())
    for i in range(count):
        from_visual = sum((phi(visual[i], words[j]) / tau).exp() for j in range(count))
        from_word = sum((phi(words[i], visual[j]) / tau).exp() for j in range(count))
        own = (phi(visual[i], words[i]) / tau).exp()
        total = total + torch.log(own / from_visual) + torch.log(own / from_word)
    return -total / (2 * count)


@pytest.mark.parametrize(("count", "width"), [(1, 4), (2, 3), (7, 5), (13, 16)])
@pytest.mark.parametrize("log_scale", [0.0, math.log(1 / 0.07)])
def test_sea_is_equation_9_forward_and_backward(count: int, width: int, log_scale: float) -> None:
    inputs = [random(count, width, seed=1), random(count, width, seed=2), torch.tensor(log_scale, dtype=torch.float64)]
    values, gradients = [], []
    for loss in (sea, sea_twin):
        copies = [tensor.clone().requires_grad_() for tensor in inputs]
        value = loss(*copies)
        value.backward()
        values.append(value.detach())
        gradients.append([copy.grad for copy in copies])
    torch.testing.assert_close(values[0], values[1], atol=1e-12, rtol=1e-12)
    for fast, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-12, rtol=1e-10)


def test_sea_has_the_gradient_of_its_value() -> None:
    inputs = (random(5, 4, seed=3).requires_grad_(), random(5, 4, seed=4), torch.tensor(0.5, dtype=torch.float64))
    inputs[2].requires_grad_()
    assert torch.autograd.gradcheck(sea, inputs)


def test_sea_at_known_points() -> None:
    zero = torch.zeros((), dtype=torch.float64)
    assert sea(random(1, 8), random(1, 8), zero) == 0
    same = torch.ones(6, 3, dtype=torch.float64)
    torch.testing.assert_close(sea(same, same, zero).item(), math.log(6))
    basis = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(sea(3 * basis, 5 * basis, zero).item(), -math.log(math.e / (math.e + 3)))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    x, t = random(9, 4, seed=5), random(9, 4, seed=6)
    torch.testing.assert_close(sea(x[order], t[order], zero), sea(x, t, zero))


def test_the_scale_is_clamped_and_stops_learning_there() -> None:
    x, t = random(5, 4, seed=7), random(5, 4, seed=8)
    beyond = torch.tensor(math.log(MAX_SCALE) + 1, dtype=torch.float64, requires_grad=True)
    value = sea(x, t, beyond)
    torch.testing.assert_close(value.detach(), sea(x, t, torch.tensor(math.log(MAX_SCALE), dtype=torch.float64)))
    value.backward()
    assert beyond.grad == 0


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


def test_no_labels_give_zero_with_a_graph() -> None:
    x = random(0, 4).requires_grad_()
    scale = torch.zeros((), requires_grad=True)
    value = sea(x, random(0, 4), scale)
    value.backward()
    assert (value, scale.grad) == (0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_word_table_is_equation_8(dtype: torch.dtype) -> None:
    embeddings = random(50, 6, dtype=dtype).requires_grad_()
    tokens = [[3], [4, 5, 4], [49, 0], [7, 8, 9, 10, 11]]
    table = word_table(embeddings, tokens)
    expected = torch.stack([torch.stack([embeddings[token].double() for token in ids]).mean(0) for ids in tokens])
    assert table.dtype == dtype
    assert not table.requires_grad
    torch.testing.assert_close(table.double(), expected.detach(), atol=1e-6 if dtype is torch.float32 else 2e-2, rtol=0)


def test_a_word_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="word 1 has no token"):
        word_table(random(5, 2), [[1], [], [2]])
