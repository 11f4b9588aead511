"""The gradient norms on the projector against autograd, one loss at a time; the weight that follows them."""

import math

import pytest
import torch
from torch import nn

from tests.support.random_values import random
from trainer.training.gradient_balance import Balance, GradientRecorder


class Projector(nn.Module):
    """LLaVA's two layers; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.linear_1, self.linear_2 = nn.Linear(5, 6).double(), nn.Linear(6, 4).double()
        self.calls = 0

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        result: torch.Tensor = self.linear_2(nn.functional.gelu(self.linear_1(features)))
        return result


DRAWN = torch.tensor([1, 4, 5])


def term_loss(visual: torch.Tensor) -> torch.Tensor:
    """Of a part of V."""
    chosen = visual.flatten(0, 1)[DRAWN]
    return (nn.functional.normalize(chosen, dim=-1) @ random(4, 3, seed=5)).exp().sum()


def lm_loss(visual: torch.Tensor) -> torch.Tensor:
    return (visual.cumsum(1) @ random(4, 7, seed=6)).tanh().square().sum()


def alone(projector: nn.Module, features: torch.Tensor, loss_of: object) -> float:
    """The slow twin: a forward and a backward pass of one loss."""
    assert callable(loss_of)
    parameters = [parameter for parameter in projector.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss_of(projector(features)), parameters)
    return math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))


def norms_of(recorder: GradientRecorder) -> dict[str, float]:
    gradients = recorder.gradients()
    assert all(gradient.shape == (recorder.size,) for gradient in gradients.values())
    return {name: float(gradient.norm()) for name, gradient in gradients.items()}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("weight", "share", "scale"), [(1.0, 1.0, 1.0), (7.0, 0.25, 0.25), (0.01, 3.0, 6.0)])
def test_the_norms_are_autograds(frozen: bool, weight: float, share: float, scale: float) -> None:
    projector, features = Projector(), random(2, 3, 5, seed=1)
    projector.linear_2.requires_grad_(not frozen)
    recorder = GradientRecorder(projector)
    with recorder.watching():
        visual = projector(features)
    visual_term, visual_lm = visual.view_as(visual), visual.view_as(visual)
    term, lm = term_loss(visual_term), lm_loss(visual_lm)
    recorder.follow("sea", visual_term, weight)
    recorder.follow("lm", visual_lm, scale)
    recorder.follow("das", None, 1.0)
    (weight * term + share * lm).backward()
    before = {name: parameter.grad for name, parameter in projector.named_parameters()}
    norms = norms_of(recorder)
    assert norms.keys() == {"sea", "lm"}
    assert math.isclose(norms["sea"], alone(projector, features, term_loss), rel_tol=1e-12)
    assert math.isclose(norms["lm"], alone(projector, features, lm_loss) * share / scale, rel_tol=1e-12)
    for name, parameter in projector.named_parameters():  # what the optimizer will see is the sum's gradient
        assert parameter.grad is before[name]
        assert (parameter.grad is None) is (frozen and "linear_2" in name)
    total = alone(projector, features, lambda visual: weight * term_loss(visual) + share * lm_loss(visual))
    found = math.sqrt(sum(float((grad**2).sum()) for grad in before.values() if grad is not None))
    assert math.isclose(found, total, rel_tol=1e-12)


def test_a_measurement_is_of_the_last_forward_and_given_once() -> None:
    projector = Projector()
    recorder = GradientRecorder(projector)
    for seed in (1, 2):
        features = random(2, 3, 5, seed=seed)
        with recorder.watching():
            visual = projector(features)
        recorder.follow("sea", visual, 1.0)
        term_loss(visual).backward()
    projector(random(2, 3, 5, seed=3))  # not watched
    assert math.isclose(norms_of(recorder)["sea"], alone(projector, features, term_loss), rel_tol=1e-12)
    assert norms_of(recorder) == {}
    with recorder.watching():
        projector(features)  # of which no term is followed
    calls = projector.calls
    assert norms_of(recorder) == {}
    assert projector.calls == calls, "nothing measured costs nothing"


def test_under_autocast_the_projector_is_measured_in_its_own_precision() -> None:
    projector, features = Projector().float(), random(2, 3, 5, seed=1).float()
    recorder = GradientRecorder(projector)
    with torch.autocast("cpu", torch.bfloat16), recorder.watching():
        visual = projector(features).float()
    followed = visual.view_as(visual)
    recorder.follow("sea", followed, 1.0)
    term_loss(followed.double()).backward(retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = norms_of(recorder)["sea"]
    by_visual = torch.autograd.grad(term_loss(visual.double()), visual)[0]
    expected = alone(projector, features, lambda again: (again * by_visual).sum())
    assert math.isclose(found, expected, rel_tol=1e-6)


def test_auto_holds_the_ratio_of_the_running_means() -> None:
    balance = Balance("auto", ratio=0.5)
    assert float(balance.weight) == 1  # until the first measurement
    first = balance.update(4.0, 0.25)
    assert float(balance.weight) == pytest.approx(0.5 * 4 / 0.25)
    assert first == pytest.approx(0.5)
    lm, term = 4.0, 0.25
    for new_lm, new_term in ((2.0, 1.0), (3.0, 0.1), (8.0, 0.7)):
        balance.update(new_lm, new_term)
        lm, term = 0.9 * lm + 0.1 * new_lm, 0.9 * term + 0.1 * new_term
        assert float(balance.weight) == pytest.approx(0.5 * lm / term, rel=1e-12)


@pytest.mark.parametrize("measured", [(0.0, 1.0), (1.0, 0.0), (math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0)])
@pytest.mark.parametrize("first", [True, False])
def test_a_measurement_that_says_nothing_is_left_out(measured: tuple[float, float], first: bool) -> None:
    balance = Balance("auto", ratio=1.0)
    if not first:
        balance.update(3.0, 2.0)
    before = {name: value.clone() for name, value in balance.state_dict().items()}
    assert balance.update(*measured) is None
    assert balance.state_dict() == before
