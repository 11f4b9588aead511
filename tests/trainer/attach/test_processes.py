"""DDP and FSDP by two processes: the losses, weights and temperature of one process with the same rows."""

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.launches import launched
from tests.support.programs import Program
from tests.trainer.attach.together import JOBS, main
from tests.trainer.attach.worlds import Pictures

pytestmark = pytest.mark.processes
NAMES = [name for name, job in JOBS.items() if not job.get("trl") or find_spec("trl")]


def launch(pictures: Pictures, out: Path, processes: int) -> None:
    out.mkdir()
    arguments = (pictures.folder.parent, out, *NAMES)
    if processes == 1:
        alone = Program(main, arguments, out / "said")
        assert alone.wait() == 0, alone.stderr[-5000:]
    else:
        ended = launched(main, arguments, out / "logs", processes)
        ended.check()


@pytest.fixture(scope="module")
def runs(pictures: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("together")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEA_PIPELINE_CACHE", str(root / "cache"))
        for processes in (1, 2):
            launch(pictures, root / str(processes), processes)
    return root


def read(out: Path, name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return json.loads((out / f"{name}.json").read_text()), torch.load(out / f"{name}.pt")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "ddp-texts"])
def test_two_processes_train_as_one(name: str, runs: Path) -> None:
    (one, whole), (two, parts) = (read(runs / str(processes), name) for processes in (1, 2))
    assert two["cut"] == name.startswith("fsdp")
    tolerance = 1e-2 if JOBS[name].get("trl") else 1e-4  # TRL's own losses depend on how rows are padded
    for ours, theirs in zip(two["lines"], one["lines"], strict=True):
        for key in ("loss", "loss_sea", "sea_scale", "loss_das", "loss_sds"):
            assert ours[key] == pytest.approx(theirs[key], rel=tolerance), key
        assert ours["loss_sea"] > 0
    assert two["lines"][0]["loss_das"] == pytest.approx(one["lines"][0]["loss_das"], rel=1e-5)
    assert two["scale"] != 1
    for key, each in parts.items():
        assert torch.allclose(each, whole[key], atol=tolerance), key


def test_processes_measure_together_though_one_has_no_partners(runs: Path) -> None:
    """Under FSDP each forward is one of all processes, that with another photo, too."""
    (one, _), (two, _) = (read(runs / str(processes), "fsdp-qwen3_vl") for processes in (1, 2))
    assert {"lm_loss", "right_photo_gain", "gap"} <= one["measured"].keys()
    assert two["measured"] == pytest.approx(one["measured"], rel=1e-4)


def test_a_process_with_texts_alone_takes_part(runs: Path) -> None:
    """Its micro-batch has no visual token; negatives are gathered, and the temperature is averaged, all the same."""
    (one, _), (two, _) = (read(runs / str(processes), "ddp-texts") for processes in (1, 2))
    for key in ("loss_sea", "sea_scale", "sea_pairs", "loss_das"):
        assert two["lines"][0][key] == pytest.approx(one["lines"][0][key], rel=1e-5), key
    assert math.isfinite(two["lines"][1]["loss"])


def test_rows_that_fill_up_a_batch_are_not_measured(runs: Path) -> None:
    (one, _), (two, _) = (read(runs / str(processes), "ddp-llava") for processes in (1, 2))
    for key in ("eval_label_hit@1", "eval_label_hit@10", "eval_gap", "eval_lm_loss", "eval_trained_tokens"):
        assert two["measured"][key] == pytest.approx(one["measured"][key], rel=1e-4), key
