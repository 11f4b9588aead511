"""A bounded part of the fuzzer: some seeds of every kind, and faults that are planted for it to find.

More of it: `python -m tests.bench.fuzz --minutes 20`.
"""

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.sources import tars
from tests.bench.fuzz import Outcome, Prober
from tests.fuzz import worlds
from tests.fuzz.kinds import KINDS, trial
from tests.fuzz.mutations import BYTES, Mutated, mutated, mutated_text
from tests.fuzz.verdicts import CRASH, HANG, LOSS, TRACEBACK, UNCLEAR, Ended, FaultError, command, judged, telling
from tests.fuzz.worlds import World

SEEDS = dict.fromkeys(KINDS, 4) | {"image": 8, "tar": 6, "table": 6, "list": 8, "cache": 8}
SEEDS |= {"targets": 2, "stopped": 1, "trained on": 2, "finished": 2}
OUTSIDE = {"program"}
"""Kinds for the command alone: programs of their own are tested elsewhere, too, and take long to begin."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with worlds.made(tmp_path_factory.mktemp("fuzz")) as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in OUTSIDE])
def test_nothing_but_labels_names_and_clear_lines_comes_out(kind: str, world: World) -> None:
    for seed in range(SEEDS[kind]):
        try:
            trial(world, kind, seed)
        except FaultError as fault:
            pytest.fail(f"{fault}\nit is done again by: {Outcome(kind, seed, '').again}")


def found(world: World, kind: str, seeds: int = 12) -> str:
    """The first fault that some seeds of a kind end in."""
    for seed in range(seeds):
        try:
            trial(world, kind, seed)
        except FaultError as fault:
            return fault.kind
    return "none"


@pytest.mark.slow
def test_a_reader_that_swallows_a_member_is_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, count = tars._Contents.add, iter(range(10**9))

    def swallowing(contents: Any, member: Any) -> None:
        if next(count) % 4 != 1:
            plain(contents, member)

    monkeypatch.setattr(tars._Contents, "add", swallowing)
    assert found(world, "tar") == LOSS


@pytest.mark.slow
def test_a_reader_that_gives_another_images_bytes_is_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars.TarSource, "read", lambda source, uri: world.photos["000.png"])
    assert found(world, "tar") == LOSS


@pytest.mark.slow
@pytest.mark.parametrize("where", ["list_tars", "TarSource"])
def test_a_reader_that_raises_is_found(where: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """In listing, where it ends the command, and in reading, where it fails a shard."""
    raising = Mock(side_effect=ValueError("planted"))
    monkeypatch.setattr(*((tars, where) if where == "list_tars" else (tars.TarSource, "read")), raising)
    assert found(world, "tar") == TRACEBACK


@pytest.mark.slow
def test_labels_that_nobody_checks_are_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the cache, nor in a folder."""
    monkeypatch.setattr("sea_pipeline.label_cache.check_file", lambda root, file: None)
    assert found(world, "cache") in (LOSS, TRACEBACK)
    for module in ("records", "verify", "mend", "row_store"):
        monkeypatch.setattr(f"sea_pipeline.output.{module}.check_file", lambda root, file: None, raising=False)
    assert found(world, "labels", 20) != "none"


@pytest.mark.parametrize(
    ("ended", "kind"),
    [
        (Ended(1, "", "error: x.tar: no tar\n"), None),
        (Ended(0, "done\n", "the labels go to x\n"), None),
        (Ended(1, "", "Traceback (most recent call last):\nValueError\n"), TRACEBACK),
        (Ended(3, "", "1 of 3 shards failed\n"), TRACEBACK),
        (Ended(1, "", ""), UNCLEAR),
        (Ended(0, "", "error: x.tar: no tar\n"), UNCLEAR),
        (Ended(1, "", "error: a: one\nerror: b: two\n"), UNCLEAR),
        (Ended(1, "", "error: a: one\nof two lines\n"), UNCLEAR),
        (Ended(1, "", "error: something\n"), UNCLEAR),
    ],
)
def test_how_a_command_may_end(ended: Ended, kind: str | None) -> None:
    if kind is None:
        assert judged(ended, ["label"]) is ended
        return
    with pytest.raises(FaultError, match=f"^{kind}: "):
        judged(ended, ["label"])


def test_a_call_may_raise_lines_alone() -> None:
    with telling("x") as lines:
        raise UserError("x.json: expected a list; found nothing")
    assert lines == ["x.json: expected a list; found nothing"]
    with pytest.raises(FaultError, match=f"^{TRACEBACK}: x: KeyError"), telling("x"):
        raise KeyError("a")
    with pytest.raises(FaultError, match=f"^{UNCLEAR}: "), telling("x"):
        raise UserError("a\nb")
    assert command("status", "/nowhere/at/all").line.startswith("error: /nowhere/at/all: ")


def _ending(world: World, kind: str, seed: int) -> str:
    if kind == "crash":
        os.abort()
    if kind == "hang":
        time.sleep(60)
    return "well"


@pytest.mark.slow
def test_a_process_that_hangs_or_dies_is_told_and_replaced(tmp_path: Path) -> None:
    prober = Prober(tmp_path, _ending, limit=5.0)
    try:
        ends = [prober(kind, 0).end for kind in ("well", "crash", "hang", "well")]
    finally:
        prober.close()
    assert ends == ["well", CRASH, HANG, "well"]
    assert Outcome("parquet list", 7, HANG).again == "python -m tests.bench.fuzz --only 'parquet list' --seed 7"


def test_what_a_mutation_leaves_is_there() -> None:
    """A slow twin of `leaves`: ranges of distinct bytes that it names are found in what is left."""
    data = bytes(range(256))
    for seed in range(300):
        one = random.Random(seed)
        damage: Mutated = one.choice([*BYTES, mutated, mutated_text])(data, one) if seed % 3 else mutated(data, one)
        start = one.randrange(255)
        end = one.randrange(start + 1, 257)
        if damage.leaves(start, end):
            assert data[start:end] in damage.data, damage.done
        if damage.leaves_in_place(start, end):
            assert damage.data[start:end] == data[start:end], damage.done
