"""Loops of one's own: they go on where they were saved, and run several forwards before one backward."""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.attach.families import MAKERS, tiny
from tests.trainer.attach.worlds import NAMES, Pictures

ORDER = ("wide.png", "tall.png", "odd.png", "other.png", "wide.png")
SEA: dict[str, Any] = {"sea": {"window": 1}}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [SEA, {"basic": {}}])
def test_a_loop_goes_on_as_if_it_had_not_stopped(
    settings: dict[str, Any], pictures: Pictures, attached: Any, tmp_path: Path
) -> None:
    saved = tmp_path / "saved.pt"

    def trained(parts: list[range]) -> tuple[list[float], dict[str, Any], int]:
        """Trains, with a stop between the parts."""
        losses: list[float] = []
        for part in parts:
            made = MAKERS["qwen2_5_vl"]()
            one = attached(made, labels=pictures.open(), **settings)
            projector = made.model.model.visual.merger
            optimizer = torch.optim.AdamW([*projector.parameters(), *one.parameters()], lr=1e-2)
            keeps = {"model": made.model, "optimizer": optimizer, "attached": one}
            if part.start:
                states = torch.load(saved, weights_only=True)
                for name, each in keeps.items():
                    each.load_state_dict(states[name])
            losses += stepped(made, one, optimizer, pictures, part)
            torch.save({name: each.state_dict() for name, each in keeps.items()}, saved)
            one.detach()
        return losses, one.state_dict(), one.step

    whole = trained([range(4)])
    assert trained([range(2), range(2, 4)]) == whole
    _, state, step = whole
    assert step == 4
    assert state.get("log_scale") != 0


def stepped(
    made: Any, one: Any, optimizer: torch.optim.Optimizer, pictures: Pictures, steps: Iterable[int]
) -> list[float]:
    """The losses of some steps."""
    losses: list[float] = []
    for step in steps:
        names = [[each] for each in [*pairwise(ORDER)][step]]
        loss = made.model(**made.batch(pictures.batch(names))).loss + one.loss(names)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_forwards_before_one_backward_sum_their_gradients(pictures: Pictures, attached: Any) -> None:
    made, found = tiny("llava"), []
    one = attached(made, labels=pictures.open(), **SEA)
    for at_once in (True, False):
        one.step, one.words.log_scale.grad, losses = 0, None, []
        for names in NAMES:
            made.model(**made.batch(pictures.batch([names])))
            losses.append(one.loss(names))
            if not at_once:
                losses[-1].backward()
        if at_once:
            torch.stack(losses).sum().backward()
        found.append(float(one.words.log_scale.grad))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
