"""A CLIP trained here, on drawn shapes with captions: `probe` finds its sign, and labels lie on what they name."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from sea_pipeline.labels.sign_probe import probe_encoders
from tests.support.shape_clip import Thing, draw, labels_of, probe_settings, right_words, train

pytestmark = pytest.mark.slow

PATHS = ("final", "value", "vv")


class World(NamedTuple):
    """A trained model's spec, pictures with captions, and what is on them."""

    spec: str
    folder: Path
    scenes: list[list[Thing]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("shapes")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    spec = f"open_clip:{train(folder / 'clip', steps=60)}"
    torch.set_num_threads(threads)
    return World(spec, folder, draw(folder, 80))


def test_the_probe_finds_the_sign_of_every_path(world: World) -> None:
    findings = probe_encoders(probe_settings(world.folder, world.spec))
    assert findings.verdicts() == {f"{world.spec}#{path}": 1 for path in PATHS}
    assert findings.best is not None
    assert findings.best.sign == 1
    assert findings.best.lift.low > 0.05


def test_labels_lie_on_what_they_name(world: World) -> None:
    right, chance = right_words(labels_of(world.folder, f"{world.spec}#vv"), world.scenes)
    assert right > 0.8
    assert chance < 0.4
    wrong, _ = right_words(labels_of(world.folder, f"{world.spec}#vv-"), world.scenes)
    assert wrong < 0.05
