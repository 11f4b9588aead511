"""The scripts of tests/bench/gpu at tiny size: they run, on the CPU here, and what they measure is what they say."""

import importlib
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.bench.gpu import __main__ as every
from tests.bench.gpu import common, correct, sds, shapes
from tests.bench.gpu.common import Setup
from tests.bench.gpu.decoding import workers_for
from tests.bench.gpu.naive import naive_step
from tests.bench.steps import taking
from trainer import losses

FIGURES = {
    "correct": {
        "losses.sds_products.bfloat16.gradient",
        "tap.eager.whole",
        "search.faiss.list.ids",
        "encoder.s2.vv.bfloat16",
    },
    "sds": {"matmul.bfloat16", "sds.100.float32.over_floor", "sds.300.bfloat16.naive.memory_ratio"},
    "label": {"label.decode.processes_2", "label.search.share_by_float32", "label.efficiency", "label.threads_needed"},
    "train": {"train.plain.both.time_ratio", "train.checkpointed.naive.memory_ratio", "train.kernels.1"},
    "align": {"align.rate", "align.kept.hours", "align.kept.first_pass"},
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors so small only wait for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("name", FIGURES)
def test_a_script_prints_and_writes_its_figures(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", [name, "--tiny", "--json", str(file)])
    common.main(importlib.import_module(f"tests.bench.gpu.{name}").figures, "")
    found = json.loads(file.read_text())
    assert FIGURES[name] <= found.keys()
    for figure, values in found.items():
        assert values.keys() == {"value", "unit", "baseline", "machine"}
        assert math.isfinite(values["value"]), figure
        assert values["value"] >= 0
    assert "beside" in capsys.readouterr().out


def test_without_a_gpu_and_tiny_there_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["sds"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        common.main(sds.figures, "")
    assert capsys.readouterr().err == "expected a GPU; found none; --tiny runs on a CPU\n"


@pytest.mark.parametrize("break_it", [lambda value: 1.001 * value, lambda value: torch.nan * value])
def test_a_wrong_loss_is_out_of_its_tolerance(
    break_it: Callable[[Any], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = losses.das
    monkeypatch.setattr(losses, "das", lambda *given: break_it(right(*given)))
    found = {figure.name: figure.value for figure in correct._losses(Setup("cpu", True, None, tmp_path))}
    out = {name for name, value in found.items() if not value <= 1}
    assert out == {"losses.das.float32.value", "losses.das.float32.gradient", "losses.das.bfloat16.value"} | (
        set() if break_it(1.0) == 1.001 else {"losses.das.bfloat16.gradient"}
    )


def test_the_naive_step_computes_what_ours_does(tmp_path: Path) -> None:
    setup = Setup("cpu", True, None, tmp_path)
    trainer = shapes.trainer_of(setup, shapes.TINY)
    batch = shapes.batch_of(shapes.TINY, shapes.TINY.batch, "cpu")
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    gradients = []
    for step in (taking(trainer, batch), naive_step(trainer, batch)):
        seen: dict[str, torch.Tensor] = {}

        def look(seen: dict[str, torch.Tensor] = seen) -> None:
            seen |= {n: p.grad.clone() for n, p in model.model.multi_modal_projector.named_parameters()}

        trainer.optimizer = SimpleNamespace(step=look, zero_grad=lambda: model.zero_grad())
        step()
        gradients.append(seen)
    for name, ours in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], ours, atol=1e-6, rtol=1e-4)
        assert ours.abs().max() > 1e-3


def test_workers_that_are_needed() -> None:
    assert workers_for(50, {1: 30.0, 2: 60.0, 4: 100.0}) == 2
    assert workers_for(250, {1: 30.0, 4: 100.0}) == 10


def test_all_of_them_outlive_one_that_hangs_or_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(command: list[str], timeout: float, check: bool) -> Any:
        name, file = command[2].rpartition(".")[2], Path(command[4])
        assert command[5:] == ["--tiny"]
        file.write_text(json.dumps({f"{name}.x": {"value": 1.0}}))
        if name == "label":
            raise subprocess.TimeoutExpired(command, timeout)
        return SimpleNamespace(returncode=int(name == "correct"))

    monkeypatch.setattr(subprocess, "run", ended)
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--json", str(tmp_path / "gpu.json")])
    assert every.main() == 1
    assert json.loads((tmp_path / "gpu.json").read_text()).keys() == {f"{name}.x" for name in every.LIMITS}
    said = capsys.readouterr().out
    assert "correct: exit code 1\nsds: done\nlabel: ran out of time\n" in said
    assert sum(every.LIMITS.values()) <= 540
