"""Loops of one's own: they go on where they were saved, and run several forwards before one backward."""

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
    ends = []
    for stops in (False, True):
        losses: list[float] = []
        for part in ((0, 1), (2, 3)) if stops else ((0, 1, 2, 3),):
            made = MAKERS["qwen2_5_vl"]()
            one = attached(made, labels=pictures.open(), **settings)
            projector = made.model.model.visual.merger
            optimizer = torch.optim.AdamW([*projector.parameters(), *one.parameters()], lr=1e-2)
            saved = {"model": made.model, "optimizer": optimizer, "attached": one}
            if part[0]:
                states = torch.load(tmp_path / "saved.pt", weights_only=True)
                for name, each in saved.items():
                    each.load_state_dict(states[name])
            for step in part:
                names = [[each] for each in [*pairwise(ORDER)][step]]
                loss = made.model(**made.batch(pictures.batch(names))).loss + one.loss(names)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(float(loss.detach()))
            torch.save({name: each.state_dict() for name, each in saved.items()}, tmp_path / "saved.pt")
            one.detach()
        ends.append((losses, one.state_dict()))
    assert ends[0] == ends[1]
    assert one.step == 4
    assert "sea" not in settings or one.scale != 1


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
