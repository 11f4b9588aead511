"""The GPU that is none: it computes what the CPU does, and refuses what CUDA refuses."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.support.pretend_gpu import GPU, OnGpu, pretend_gpu


@pytest.fixture
def waited() -> Iterator[Counter[str]]:
    with pretend_gpu() as waited:
        yield waited


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 2), nn.GELU(), nn.Flatten(2), nn.LayerNorm(9), nn.Linear(9, 5))


def stepped(device: str) -> list[torch.Tensor]:
    """Outputs, gradients by inputs and by weights, and the weights after steps of AdamW."""
    net, pixels = model().to(device), torch.arange(96.0).view(2, 3, 4, 4).sin().to(device).requires_grad_()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    for _ in range(3):
        found = F.scaled_dot_product_attention(*(net(pixels).view(2, 2, 4, 5),) * 3)
        loss = F.cross_entropy(found.flatten(0, 2), torch.arange(16, device=device) % 5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert pixels.grad is not None
    gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    return [found.detach(), pixels.grad, *gradients, *(parameter.detach() for parameter in net.parameters())]


def test_forward_gradient_and_steps_are_the_cpus(waited: Counter[str]) -> None:
    wanted, found = stepped("cpu"), stepped("cuda")
    assert len(found) == len(wanted) == 14
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.device == GPU
        assert ours.is_cuda
        torch.testing.assert_close(ours.cpu(), theirs, atol=1e-5, rtol=1e-4)


def test_autocast_halves_products_and_nothing_else(waited: Counter[str]) -> None:
    left = torch.rand(3, 3, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        assert (left @ left).dtype == torch.bfloat16
        assert (left + left).dtype == torch.float32
    assert (left @ left).dtype == torch.float32


@pytest.mark.parametrize(
    "mixed",
    [
        lambda here, there: here + there,
        lambda here, there: there @ here,
        lambda here, there: there.add_(here),
        lambda here, there: torch.cat([here, there]),
        lambda here, there: F.linear(there, here),
        lambda here, there: here[there.long()],
    ],
)
def test_two_devices_are_refused(mixed: Callable[..., Any], waited: Counter[str]) -> None:
    with pytest.raises(RuntimeError, match="same device"):
        mixed(torch.ones(3, 3), torch.ones(3, 3, device="cuda"))


def test_what_cuda_takes_from_the_cpu(waited: Counter[str]) -> None:
    there = torch.arange(6.0, device="cuda").view(2, 3)
    assert (there + torch.tensor(1.0)).tolist() == [[1, 2, 3], [4, 5, 6]]  # a single number
    assert there[:, torch.tensor([2, 0])].tolist() == [[2, 0], [5, 3]]  # places
    here = torch.zeros(2, 3)
    here.copy_(there)
    assert type(here) is torch.Tensor
    assert here.tolist() == there.tolist()


def test_arrays_are_refused(waited: Counter[str]) -> None:
    with pytest.raises(TypeError, match="can't convert cuda:0"):
        torch.ones(2, device="cuda").numpy()
    assert torch.ones(2, device="cuda").cpu().numpy().tolist() == [1, 1]


@pytest.mark.parametrize(
    "draw",
    [
        lambda generator, device: torch.randn(4, generator=generator, device=device),
        lambda generator, device: torch.randperm(4, generator=generator, device=device),
        lambda generator, device: torch.empty(4, device=device).uniform_(generator=generator),
    ],
)
def test_generators_are_of_one_device(draw: Callable[..., Any], waited: Counter[str]) -> None:
    for device, other in (("cuda", "cpu"), ("cpu", "cuda")):
        with pytest.raises(RuntimeError, match=f"Expected a '{device}' device type for generator but found '{other}'"):
            draw(torch.Generator(other), device)
        first, again = (draw(torch.Generator(device).manual_seed(0), device) for _ in range(2))
        assert first.is_cuda == (device == "cuda")
        assert first.tolist() == again.tolist()


def test_views_in_place_and_data(waited: Counter[str]) -> None:
    whole = torch.zeros(2, 3, device="cuda")
    row = whole[1]
    row.add_(2)
    whole.T[0] = 7
    assert whole.tolist() == [[7, 0, 0], [7, 2, 2]]
    assert row.tolist() == [7, 2, 2]
    layer = nn.Linear(3, 1, bias=False, device="cuda")
    layer.weight.data = torch.full((1, 3), 0.5, device="cuda").double()
    layer.weight.data.mul_(2)
    assert layer.weight.dtype == torch.float64
    assert layer(whole.double()).flatten().tolist() == [7, 11]


def test_waits_are_counted(waited: Counter[str]) -> None:
    there = torch.arange(4.0, device="cuda")
    for _ in range(3):
        there = there * 2 + torch.ones(4).to("cuda")
    assert not waited
    assert there.sum().item() == 76
    assert bool(there.any())
    assert there[there > 30].tolist() == [31]
    assert len(there.nonzero()) == 4
    assert sum(waited.values()) == 5  # .item(), bool(), the mask, what it gives, .nonzero()
    torch.ones(4).sum().item()
    assert sum(waited.values()) == 5


def test_meta_stays_meta(waited: Counter[str]) -> None:
    shape = torch.empty(2, 3, device="meta")
    assert shape.is_meta
    assert (shape @ shape.T).device == torch.device("meta")
    assert not isinstance(shape, OnGpu)


def test_threads_of_a_pool_are_within(waited: Counter[str]) -> None:
    def work(number: int) -> float:
        with pytest.raises(RuntimeError, match="same device"):
            torch.ones(2) + torch.ones(2, device="cuda")
        return float((number * torch.ones(2, device="cuda")).sum())

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, range(4))) == [0, 2, 4, 6]
    assert sum(waited.values()) == 4


def test_time_and_memory_are_asked_as_on_a_gpu(waited: Counter[str]) -> None:
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    last.record()
    assert 0 <= first.elapsed_time(last) < 1000
    assert torch.cuda.get_device_name("cuda:0") == "a GPU that is none"
    assert torch.cuda.max_memory_allocated() > 0


def test_outside_there_is_none() -> None:
    before = (torch.Generator, torch.cuda.Event, ThreadPoolExecutor.submit, torch.cuda.is_available())
    with pretend_gpu():
        assert torch.cuda.is_available()
    assert (torch.Generator, torch.cuda.Event, ThreadPoolExecutor.submit, torch.cuda.is_available()) == before
