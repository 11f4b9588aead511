"""SEA's term against Eq. 8 and 9 written as plain loops in float64, alone and over two processes."""

import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.support.random_values import random
from trainer.losses.equations import MAX_SCALE, word_table
from trainer.losses.sea_term import SeaTerm, gathered

SPACE = [[3], [4, 5, 4], [49, 0], [7, 8, 9, 10, 11], [12], [13, 14], [15]]
BARE = [[20, 21], [4], [22, 23, 24], [8, 9], [25, 26, 27, 28], [0], [29]]
pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH = 6


def embedding(dtype: torch.dtype = torch.float64) -> nn.Embedding:
    return nn.Embedding(50, WIDTH, _weight=random(50, WIDTH, seed=9, dtype=dtype))


def term(*forms: list[list[int]], log_scale: float = 0.0, gather: bool = False, dedupe: Any = "word") -> SeaTerm:
    made: SeaTerm = SeaTerm(forms, log_scale=log_scale, learnable=True, gather=gather, dedupe=dedupe).double()
    return made


def eq8(word: int, forms: Sequence[list[list[int]]], embeddings: torch.Tensor) -> torch.Tensor:
    means = [sum(embeddings[token] for token in form[word]) / len(form[word]) for form in forms]
    return torch.as_tensor(sum(means) / len(means))


def eq9(x: Sequence[torch.Tensor], t: Sequence[torch.Tensor], log_scale: torch.Tensor) -> torch.Tensor:
    scale = log_scale.exp() if log_scale.exp() < MAX_SCALE else torch.tensor(MAX_SCALE)

    def similarity(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return scale * (a / a.norm()) @ (b / b.norm())

    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(x)):
        own = similarity(x[i], t[i])
        total = total - own + torch.stack([similarity(x[i], other) for other in t]).logsumexp(0)
        total = total - own + torch.stack([similarity(other, t[i]) for other in x]).logsumexp(0)
    return total / (2 * len(x))


@pytest.mark.parametrize("forms", [[SPACE], [BARE], [SPACE, BARE]], ids=["space", "none", "both-mean"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_word_embeddings_are_equation_8(forms: list[list[list[int]]], dtype: torch.dtype) -> None:
    embed, words = embedding(dtype), torch.tensor([6, 1, 3, 0, 2, 5])
    found = term(*forms).word_embeddings(words, embed)
    tables = [word_table(embed.weight.float(), form) for form in forms]
    torch.testing.assert_close(found.float(), torch.stack(tables).mean(0)[words], atol=1e-6, rtol=0)
    expected = torch.stack([eq8(word, forms, embed.weight.detach().double()) for word in words.tolist()])
    torch.testing.assert_close(found.double(), expected, atol=1e-6 if dtype is torch.bfloat16 else 1e-14, rtol=0)
    assert found.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    assert not found.requires_grad


@pytest.mark.parametrize("forms", [[SPACE], [SPACE, BARE]], ids=["space", "both-mean"])
@pytest.mark.parametrize("log_scale", [0.0, 2.5, math.log(MAX_SCALE) + 0.5])
@pytest.mark.parametrize("pairs", [[(7, 2)], [(0, 4), (5, 1), (6, 0), (3, 6), (1, 3)]])
def test_the_term_is_equations_8_and_9(
    forms: list[list[list[int]]], log_scale: float, pairs: list[tuple[int, int]]
) -> None:
    embed, ours = embedding(), term(*forms, log_scale=log_scale)
    patches, words = torch.tensor(pairs).T
    visual, twins_visual = (random(8, WIDTH, seed=1).requires_grad_() for _ in range(2))
    value, count = ours(visual, patches, words, embed, seed=0)
    value.backward()
    twins_scale = torch.tensor(log_scale, dtype=torch.float64, requires_grad=True)
    expected = eq9(
        [twins_visual[patch] for patch in patches],
        [eq8(word, forms, embed.weight.detach()) for word in words.tolist()],
        twins_scale,
    )
    expected.backward()
    assert int(count) == len(pairs)
    torch.testing.assert_close(value, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(visual.grad, twins_visual.grad, atol=1e-12, rtol=1e-10)
    assert twins_scale.grad is not None or log_scale > 4  # beyond the clamp nothing depends on it
    by_scale = 0 * twins_scale.detach() if twins_scale.grad is None else twins_scale.grad
    torch.testing.assert_close(ours.log_scale.grad.squeeze(), by_scale, atol=1e-12, rtol=1e-10)
    assert embed.weight.grad is None


def test_a_temperature_that_does_not_learn() -> None:
    fixed = SeaTerm([SPACE], log_scale=0.5, learnable=False, gather=False)
    visual = random(4, WIDTH, dtype=torch.float32).requires_grad_()
    fixed(visual, torch.arange(4), torch.arange(4), embedding(torch.float32), seed=0)[0].backward()
    assert fixed.log_scale.grad is None
    assert visual.grad is not None
    assert "tokens" not in fixed.state_dict()  # the word list is no weight


@pytest.mark.parametrize("forms", [[], [[[3], []]], [[[3], [4]], [[5]]]], ids=["none", "no token", "fewer words"])
def test_spellings_that_are_none_are_refused(forms: list[list[list[int]]]) -> None:
    with pytest.raises(ValueError, match="each of the same words, and of each word a token or more"):
        SeaTerm(forms, log_scale=0.5, learnable=False, gather=False)


@pytest.mark.parametrize("gather", [False, True])
def test_no_pairs_give_zero_with_a_graph(gather: bool) -> None:
    ours, visual = term(SPACE, gather=gather), random(8, WIDTH).requires_grad_()
    nothing = torch.zeros(0, dtype=torch.int64)
    value, count = ours(visual, nothing, nothing, embedding(), seed=0)
    value.backward()
    assert (value, count) == (0, 0)
    assert visual.grad is not None
    assert not visual.grad.any()
    assert ours.log_scale.grad == 0


def kept_rows(visual: torch.Tensor) -> list[int]:
    """Only a row that takes part has a gradient."""
    assert visual.grad is not None
    found: list[int] = visual.grad.any(-1).nonzero().flatten().tolist()
    return found


def test_with_gather_one_process_keeps_one_patch_per_word_too() -> None:
    words = torch.tensor([0, 1, 0, 2, 0, 1])
    counts: Counter[int] = Counter()
    ours, embed = term(SPACE, gather=True), embedding()
    for seed in range(100):
        visual = random(6, WIDTH).requires_grad_()
        value, count = ours(visual, torch.arange(6), words, embed, seed=seed)
        value.backward()
        kept = kept_rows(visual)
        assert sorted(words[kept].tolist()) == [0, 1, 2]
        assert int(count) == 3
        counts.update(kept)
    for row, share in enumerate([1 / 3, 1 / 2, 1 / 3, 1, 1 / 3, 1 / 2]):
        assert abs(counts[row] / 100 - share) < 0.16


@pytest.mark.parametrize(
    ("dedupe", "forms", "expected"),
    [
        ("word", [[[1, 2], [1, 2], [1, 2, 3], [1, 2]]], 4),
        ("tokens", [[[1, 2], [1, 2], [1, 2, 3], [1, 2]]], 2),
        ("tokens", [[[1, 2], [1, 2], [1, 2], [1, 2]], [[4], [4], [4], [5]]], 2),  # one spelling differs
    ],
)
def test_with_gather_words_of_the_same_tokens(dedupe: str, forms: list[list[list[int]]], expected: int) -> None:
    ours = term(*forms, gather=True, dedupe=dedupe)
    words = torch.tensor([3, 0, 1, 2, 0])
    assert int(ours(random(5, WIDTH), torch.arange(5), words, embedding(), seed=0)[1]) == expected


CASES: dict[str, list[tuple[list[int], list[int]]]] = {
    "uneven, with shared words": [([0, 3, 5, 7, 2, 8], [1, 4, 0, 6, 2, 3]), ([1, 4, 0], [4, 5, 0])],
    "one has none": [([], []), ([2, 0, 7, 1], [3, 1, 1, 6])],
    "the other has none": [([8, 6], [5, 2]), ([], [])],
    "none at all": [([], []), ([], [])],
}
"""Patches and words of each of two processes."""


class Whole(nn.Module):
    """A projector and the term, as DDP sees them."""

    def __init__(self, gather: bool) -> None:
        super().__init__()
        self.projector = nn.Linear(5, WIDTH).double()
        with torch.no_grad():
            self.projector.weight.copy_(random(WIDTH, 5, seed=3))
            self.projector.bias.copy_(random(WIDTH, seed=4))
        self.term = term(SPACE, log_scale=1.0, gather=gather)

    def forward(self, features: torch.Tensor, patches: list[int], words: list[int], seed: int) -> Any:
        self.visual = self.projector(features)
        self.visual.retain_grad()
        indices = (torch.tensor(one, dtype=torch.int64) for one in (patches, words))
        return self.term(self.visual, *indices, embedding(), seed)


def gradients(whole: Whole) -> list[torch.Tensor]:
    return [parameter.grad for parameter in whole.parameters() if parameter.grad is not None]


def features_of(rank: int) -> torch.Tensor:
    return random(9, 5, seed=20 + rank)


def process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for name, case in CASES.items():
        whole = Whole(gather=True)
        wrapped = DistributedDataParallel(whole)
        value, count = wrapped(features_of(rank), *case[rank], seed=rank + 1)
        value.backward()
        kept = sorted(set(kept_rows(whole.visual)))
        found[name] = (value.detach(), int(count), kept, gradients(whole))
    # V as autocast leaves it in one process; the other one has no images.
    visual = random(2, 5).bfloat16() if rank == 0 else torch.zeros(0, 5)
    found["unlike"] = gathered(visual, torch.arange(len(visual)), seed=0)[0]
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.processes
def test_two_processes_compute_the_loss_of_all_rows(tmp_path: Path) -> None:
    """DDP averages gradients: the projector's and the temperature's are those of one loss over both processes' rows."""
    torch.multiprocessing.start_processes(process, (tmp_path,), nprocs=2, start_method="forkserver")
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for each in found:
        assert torch.equal(each["unlike"], random(2, 5).bfloat16().float())
    for name, case in CASES.items():
        (value, count, _, by_first), (other_value, other_count, _, by_other) = (each[name] for each in found)
        kept = [found[rank][name][2] for rank in (0, 1)]
        word_of = [dict(zip(*case[rank], strict=True)) for rank in (0, 1)]
        words = [word_of[rank][patch] for rank in (0, 1) for patch in kept[rank]]
        assert sorted(words) == sorted({*case[0][1], *case[1][1]})  # each word once, over both
        alone = Whole(gather=False)
        patches = kept[0] + [9 + patch for patch in kept[1]]
        expected, expected_count = alone(torch.cat([features_of(0), features_of(1)]), patches, words, seed=0)
        expected.backward()
        assert count == other_count == int(expected_count)
        for ours in (value, other_value):
            torch.testing.assert_close(ours, expected.detach(), atol=1e-12, rtol=1e-12)
        for ours in (by_first, by_other):
            assert len(ours) == 3  # weight, bias, temperature
            for one, slow in zip(ours, gradients(alone), strict=True):
                torch.testing.assert_close(one, slow, atol=1e-12, rtol=1e-10)
