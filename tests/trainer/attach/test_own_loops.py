"""Loops of one's own: they run several forwards before one backward."""

from typing import Any

import pytest
import torch

from tests.trainer.attach.families import tiny
from tests.trainer.attach.worlds import NAMES, Pictures

SEA: dict[str, Any] = {"sea": {"window": 1}}


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
