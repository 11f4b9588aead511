"""The scripts of tests/bench/gpu: two run at tiny size, on a GPU that is none; what they measure is what they say."""

import importlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.bench.gpu import __main__ as every
from tests.bench.gpu import common, correct, kernels, sds, shapes
from tests.bench.gpu.common import Setup
from tests.bench.gpu.decoding import workers_for
from tests.bench.gpu.kernels import Profile
from tests.bench.gpu.naive import naive_step
from tests.bench.measure import Figure
from tests.bench.steps import taking
from tests.support.pretend_gpu import pretend_gpu
from trainer.losses import equations
from trainer.training.arguments import DEFAULTS

pytestmark = pytest.mark.usefixtures("one_thread")

FIGURES = {
    "correct": {
        "losses.sds_products.bfloat16.gradient", "tap.eager.whole", "search.torch.list.ids", "encoder.s2.vv.bfloat16",
    },
    "label": {
        "label.decode.processes_2", "label.search.share_by_float32", "label.search.kernels.1", "label.search.doubtful",
        "label.efficiency", "label.threads_needed",
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("name", FIGURES)
def test_a_script_prints_and_writes_its_figures(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", [name, "--tiny", "--json", str(file)])
    monkeypatch.setitem(DEFAULTS, "use_cpu", False)
    with pretend_gpu() as waited:
        common.main(importlib.import_module(f"tests.bench.gpu.{name}").figures, "")
    assert waited  # something was computed there
    found = json.loads(file.read_text())
    assert FIGURES[name] <= found.keys()
    for figure, values in found.items():
        assert values.keys() == {"value", "unit", "baseline", "machine"}
        assert "a GPU that is none" in values["machine"]
        assert math.isfinite(values["value"]), figure
        assert values["value"] >= 0
        assert values["value"] <= 1 or name != "correct", figure
    said = capsys.readouterr().out
    assert f"torch {torch.__version__}" in said.split("\n")[0]
    assert "beside" in said


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
    right = equations.das
    monkeypatch.setattr(equations, "das", lambda *given: break_it(right(*given)))
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
    for module in (model.get_input_embeddings(), model.model.multi_modal_projector.linear_2):
        module.weight.data.mul_(100)  # else L_sds is next to nothing, or visual tokens are too short beside words
    gradients = []
    for step in (taking(trainer, batch), naive_step(trainer, batch), naive_step(trainer, batch, exact=True)):
        seen: dict[str, torch.Tensor] = {}

        def look(seen: dict[str, torch.Tensor] = seen) -> None:
            seen |= {n: p.grad.clone() for n, p in model.model.multi_modal_projector.named_parameters()}

        trainer.optimizer = SimpleNamespace(step=look, zero_grad=lambda: model.zero_grad())
        step()
        gradients.append(seen)
    for name, ours in gradients[0].items():
        for naive in gradients[1:]:
            torch.testing.assert_close(naive[name], ours, atol=1e-6, rtol=1e-4)
        assert ours.abs().max() > 1e-3


def test_workers_that_are_needed() -> None:
    assert workers_for(50, {1: 30.0, 2: 60.0, 4: 100.0}) == 2
    assert workers_for(250, {1: 30.0, 4: 100.0}) == 10


def test_all_of_them_outlive_one_that_hangs_or_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(command: list[str], timeout: float, check: bool, env: dict[str, str]) -> Any:
        assert env["HF_HUB_OFFLINE"] == "as the user has it"
        assert env["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
        name, file = command[2].rpartition(".")[2], Path(command[4])
        assert command[5:] == ["--tiny"]
        file.write_text(json.dumps({f"{name}.x": {"value": 1.0}}))
        if name == "label":
            raise subprocess.TimeoutExpired(command, timeout)
        return SimpleNamespace(returncode=int(name == "correct"))

    monkeypatch.setattr(subprocess, "run", ended)
    monkeypatch.setenv("HF_HUB_OFFLINE", "as the user has it")
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--json", str(tmp_path / "gpu.json")])
    assert every.main() == 1
    assert json.loads((tmp_path / "gpu.json").read_text()).keys() == {f"{name}.x" for name in every.LIMITS}
    said = capsys.readouterr().out
    assert "correct: exit code 1\nsds: done\nlabel: ran out of time\n" in said
    (tmp_path / "gpu.json").write_text('{"train.x": {"value": 2.0}}')
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--only", "sds,align", "--json", str(tmp_path / "gpu.json")])
    assert every.main() == 0
    assert json.loads((tmp_path / "gpu.json").read_text()).keys() == {"train.x", "sds.x", "align.x"}
    assert "correct" not in capsys.readouterr().out


def test_two_commands_of_under_nine_minutes_hold_all() -> None:
    groups = [names.split(",") for names in re.findall(r"`--only (\S+)`", str(every.__doc__))]
    assert sorted(name for group in groups for name in group) == sorted(every.LIMITS)
    assert all(sum(every.LIMITS[name] for name in group) <= 540 for group in groups)


def test_what_raises_ends_its_piece_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def piece() -> Iterator[Figure]:
        yield Figure("piece.x", 1, "x", "")
        raise ValueError("of one\nkernel")

    def script(setup: Setup) -> Iterator[Figure]:
        yield from setup.guarded("piece", piece())
        yield Figure("later", 2, "x", "")

    file = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["script", "--tiny", "--json", str(file)])
    with pytest.raises(SystemExit, match="1"):
        common.main(script, "")
    found = json.loads(file.read_text())
    assert {name: one["value"] for name, one in found.items()} == {"piece.x": 1, "piece.failed": None, "later": 2}
    assert found["piece.failed"]["baseline"] == "ValueError: of one kernel"
    assert "in piece" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")],
)
def test_what_does_not_fit_is_none_and_other_errors_are_errors(error: Exception, tmp_path: Path) -> None:
    def fails(error: Exception) -> int:
        raise error

    setup = Setup("cpu", True, None, tmp_path)
    assert setup.if_fits(lambda: 3) == 3
    assert setup.if_fits(lambda: fails(error)) is None
    with pytest.raises(RuntimeError, match="illegal"):
        setup.if_fits(lambda: fails(RuntimeError("an illegal memory access")))


def test_kernels_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator's row has the time of its kernels, and a range's on the GPU's track that of all within."""

    def row(key: str, device: str, spent: float, named: bool = False) -> Any:
        device_type = f"DeviceType.{device}"
        return SimpleNamespace(
            key=key, count=1, device_type=device_type, self_device_time_total=spent, is_user_annotation=named
        )

    rows = [row("aten::mm", "CPU", 30.0), row("gemm", "CUDA", 30.0), row("copy", "CUDA", 10.0)]
    rows += [row("the tower", "CPU", 0.0, True), row("the tower", "CUDA", 35.0, True)]
    gemm, track = SimpleNamespace(name="gemm", duration=30.0), SimpleNamespace(name="the tower", duration=35.0)
    product = SimpleNamespace(name="aten::mm", device_type="DeviceType.CPU", kernels=[gemm], cpu_children=[])
    tower = SimpleNamespace(name="the tower", device_type="DeviceType.CPU", kernels=[track], cpu_children=[product])

    profiled = SimpleNamespace(events=lambda: [tower, product], key_averages=lambda: rows)
    monkeypatch.setattr(torch.profiler, "profile", lambda: nullcontext(profiled))
    monkeypatch.setattr(kernels, "supported_activities", lambda: {torch.profiler.ProfilerActivity.CUDA})
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    profile = Profile(lambda: None)
    assert profile.whole == pytest.approx(40e-6)
    assert profile.share("the tower") == pytest.approx(0.75)
    assert {figure.baseline.split(",")[0]: figure.value for figure in profile.largest("x", "")} == {
        "gemm": pytest.approx(0.75),
        "copy": pytest.approx(0.25),
    }
