"""The order of samples: whole, a function of (seed, epoch), grouped where it is asked for."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, Dataset

from trainer.data.sampler import BLANK, EpochSampler


def epoch_of(sampler: EpochSampler, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    return list(sampler)


def grouped(
    texts: int, pictures: int, batch_size: int, seed: int = 0, micro_batches: int = 1
) -> tuple[EpochSampler, Any, Any]:
    random = np.random.default_rng(7)
    lengths = random.integers(10, 2000, texts + pictures)
    has_image = random.permutation(texts + pictures) >= texts
    sampler = EpochSampler(
        texts + pictures,
        seed,
        lengths=lengths.tolist(),
        has_image=has_image.tolist(),
        batch_size=batch_size,
        micro_batches=micro_batches,
    )
    return sampler, lengths, has_image


@pytest.mark.parametrize("length", [1, 2, 37])
def test_every_sample_once_an_epoch_and_the_index_says_which(length: int) -> None:
    sampler = EpochSampler(length, seed=3)
    assert len(sampler) == length
    for epoch in (0, 1, 5):
        order = epoch_of(sampler, epoch)
        assert sorted(order) == [epoch * length + sample for sample in range(length)]
        assert {divmod(index, length)[0] for index in order} == {epoch}


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        np.random.seed(epoch)  # noqa: NPY002 - the global state must not matter
        return [index % 50 for index in epoch_of(EpochSampler(50, seed), epoch)]

    assert order(1, 2) == order(1, 2)
    orders = [order(seed, epoch) for seed in (1, 2) for epoch in (0, 1, 2)]
    assert len({tuple(one) for one in [*orders, list(range(50))]}) == 7
    again = EpochSampler(50, 1)
    epoch_of(again, 0)
    assert [index % 50 for index in epoch_of(again, 2)] == order(1, 2)  # what came before does not matter


class IndexGiven(Dataset[int]):
    """The index that was asked for, `BLANK` too."""

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, index: int) -> int:
        return index


def loader(sampler: EpochSampler, batch_size: int, processes: int = 1, process: int = 0) -> Any:
    """As the Trainer makes them: one for each process, with accelerate's shards."""
    plain = DataLoader(IndexGiven(), batch_size=batch_size, sampler=sampler)
    return prepare_data_loader(plain, num_processes=processes, process_index=process)


def test_a_resumed_epoch_goes_on_with_the_same_samples() -> None:
    def batches(loader: Any, epoch: int) -> list[list[int]]:
        loader.set_epoch(epoch)
        return [batch.tolist() for batch in loader]

    whole, resumed = (loader(EpochSampler(23, 5), 3) for _ in range(2))
    expected = batches(whole, 2)[5:]
    resumed.set_epoch(2)
    assert batches(skip_first_batches(resumed, 5), 2) == expected != []


@pytest.mark.parametrize(("texts", "pictures"), [(101, 403), (0, 64), (64, 0), (3, 2), (16, 1000)])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_groups_lose_nothing(texts: int, pictures: int, batch_size: int) -> None:
    sampler, _, _ = grouped(texts, pictures, batch_size)
    length = texts + pictures
    for epoch in (0, 3):
        assert sorted(epoch_of(sampler, epoch)) == list(range(epoch * length, (epoch + 1) * length))


def shared_out(lengths: list[int], chunks: int) -> list[list[int]]:
    """LLaVA's sharing of a step among its GPUs, as plainly as it can be said: places in `lengths`."""
    parts: list[list[int]] = [[] for _ in range(chunks)]
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        unfilled = [part for part in parts if len(part) < len(lengths) // chunks]
        min(unfilled, key=lambda part: sum(lengths[other] for other in part)).append(place)
    return parts


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_a_step_is_of_one_modality_its_micro_batches_alike_long(micro_batches: int) -> None:
    size = 16
    sampler, lengths, has_image = grouped(101, 803, size, micro_batches=micro_batches)
    order = np.array(epoch_of(sampler, 1)) - 904
    steps = [order[start : start + size] for start in range(0, len(order), size)]
    whole = (101 // size) + (803 // size)
    assert not any(len(set(has_image[step])) > 1 for step in steps[:whole])
    modality = [bool(has_image[step[0]]) for step in steps[:whole]]
    assert sum(a != b for a, b in pairwise(modality)) > 4  # steps are shuffled,
    spread = np.mean([np.std(lengths[step]) for step in steps[:whole]])
    assert spread > 0.9 * np.std(lengths)  # and of every length
    for step in steps[:whole]:
        parts = step.reshape(micro_batches, -1)
        members = sorted(step, key=lambda sample: -lengths[sample])  # lengths hardly ever tie
        expected = shared_out([int(lengths[sample]) for sample in members], micro_batches)
        assert [sorted(lengths[part]) for part in parts] == [
            sorted(lengths[members[i]] for i in part) for part in expected
        ]
        if micro_batches > 1:
            totals = lengths[parts].sum(-1)
            assert np.ptp(totals) < 0.25 * totals.mean()


def test_groups_differ_between_epochs_and_seeds_and_not_else() -> None:
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            sampler, again = (grouped(200, 800, 2, seed)[0] for _ in range(2))
            orders[seed, epoch] = [index % 1000 for index in epoch_of(sampler, epoch)]
            assert orders[seed, epoch] == [index % 1000 for index in epoch_of(again, epoch)]
    assert len({tuple(order) for order in orders.values()}) == 4
    batches = [{frozenset(order[at : at + 2]) for at in range(0, 1000, 2)} for order in orders.values()]
    assert len(batches[0] & batches[1]) < 100  # other batches, not only another order of them


@pytest.mark.parametrize(("length", "batch_size"), [(12, 5), (23, 3), (24, 3), (1, 2)])
@pytest.mark.parametrize("epoch", [0, 3])
def test_every_process_reads_as_often_and_no_sample_twice(epoch: int, length: int, batch_size: int) -> None:
    """In the order of the epoch that the loader tells the sampler."""
    sampler = EpochSampler(length, 5, multiple=2 * batch_size)
    order = epoch_of(sampler, epoch)
    assert len(order) == len(sampler) == -(-length // (2 * batch_size)) * 2 * batch_size
    assert order[:length] == epoch_of(EpochSampler(length, 5), epoch)
    assert sorted(order[:length]) == list(range(epoch * length, (epoch + 1) * length))
    assert set(order[length:]) <= {BLANK}
    seen = []
    for process in range(2):
        own = loader(EpochSampler(length, 5, multiple=2 * batch_size), batch_size, 2, process)
        own.set_epoch(epoch)
        seen.append([batch.tolist() for batch in own])
    assert len(seen[0]) == len(seen[1])
    given = [index for batches in zip(*seen, strict=True) for batch in batches for index in batch]
    assert given == order


@pytest.mark.parametrize(("length", "kept"), [(12, 10), (10, 10), (4, 0), (19, 15)])
def test_a_last_batch_that_is_not_whole_is_dropped_for_any_number_of_processes(length: int, kept: int) -> None:
    alone, two = (EpochSampler(length, 5, multiple=multiple, drop=5) for multiple in (1, 10))
    order = epoch_of(alone, 2)
    assert len(alone) == len(order) == kept
    assert order == epoch_of(EpochSampler(length, 5), 2)[:kept]
    assert epoch_of(two, 2) == order + [BLANK] * (-kept % 10)
