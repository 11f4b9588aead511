"""Fixtures of attached models; see worlds.py and families.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.trainer.attach.worlds import Pictures, draw_pictures


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors so small only wait for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    root: Path = tmp_path_factory.mktemp("pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEA_PIPELINE_CACHE", str(root / "cache"))
        return draw_pictures(root)
