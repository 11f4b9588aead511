"""What runs have left, as values that can be compared."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from sea_pipeline.storage.hashing import fingerprint_of
from tests.support import tiny_runs
from tests.support.programs import Begin
from tests.support.tiny_runs import World, logged, tiny_recipe
from trainer.export.run import ExportSettings, export_model
from trainer.model import checkpoints
from trainer.recipes.recipe import Recipe
from trainer.teacher.run import TeachSettings


def weights(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "model").glob("*.safetensors")}


def values(out: Path) -> list[dict[str, Any]]:
    """What every logged step says, but for the time it took."""
    return [{name: value for name, value in line.items() if name != "seconds"} for line in logged(out)]


def write_run(run: Path, record: dict[str, Any]) -> None:
    """Writes a run's `run.json` as if the run had been begun with these fields."""
    (run / "run.json").write_text(json.dumps(record | {"fingerprint": fingerprint_of(record["fields"])}))


def killed(program: Begin, recipe: Recipe, out: Path, event: str, step: int) -> None:
    """Runs until it kills itself."""
    file = out.parent / "recipe.json"
    file.write_text(recipe.model_dump_json())
    done = program(file, out, event, step, main=tiny_runs.main)
    assert done.wait() == -signal.SIGKILL, done.stderr
    assert not (out / "model").exists()


def copied(whole: Path, out: Path, step: int) -> Path:
    """A run as a kill right after the checkpoint of a step leaves it, with the log a little ahead."""
    shutil.copytree(whole, out)
    shutil.rmtree(out / "model")
    (out / "summary.json").unlink()
    for path in (out / "checkpoints").iterdir():
        if checkpoints.step_of(path) > step:
            shutil.rmtree(path)
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(lines[: step + 1]) + '{"step": 99, "lo')
    return out


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def align_only(tiny: World, model: Path) -> Recipe:
    arguments = {"max_steps": 3, "save_strategy": "no"}
    return tiny_recipe(tiny, model=str(model), loss={"lm": 0}, training_arguments=arguments)


def sharded(model: Path, out: Path) -> Path:
    shutil.copytree(model, out, ignore=shutil.ignore_patterns("*.safetensors"))
    stock = LlavaForConditionalGeneration.from_pretrained(model)
    stock.save_pretrained(out, max_shard_size="20KB")
    assert len(list(out.glob("model-*.safetensors"))) > 3
    return out


def written(source: Path, out: Path, **settings: Any) -> Path:
    return export_model(ExportSettings.of(source=source, out=out, **settings)).out


PARTS = {
    "optimizer": "optimizer.pt",
    "scheduler": "scheduler.pt",
    "weights": "trained.safetensors",
    "random state": "rng_state.pth",
    "trainer state": "trainer_state.json",
    "record": "files.json",
}
HARMS: dict[str, Callable[[Path], object]] = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:100]),
    "emptied": lambda file: file.write_bytes(b""),
    "gone": lambda file: file.unlink(),
    "one bit": lambda file: file.write_bytes(file.read_bytes()[:-90] + bytes([file.read_bytes()[-90] ^ 1])
                                             + file.read_bytes()[-89:]),
}  # fmt: skip
ALL: dict[str, Any] = {name: {"weight": "auto"} for name in ("sea", "das", "sds")} | {"measure_every": 1}
EVEN = {"adam_epsilon": 1e-3}
"""Steps grow with the gradient. With Adam's 1e-8 one that is rounding alone, as that of keys' biases (no softmax
depends on them), moves a weight as far as any other: another processor, another weight."""
ROUNDED = 2**-20
"""What float32 rounds of a softmax's logarithms, about 6: losses are differences of them, and may be near 0."""


def close(ours: Path, theirs: Path) -> None:
    """Two runs logged the same figures, and end with the same weights, to the rounding of sums."""
    for one, other in zip(logged(ours), logged(theirs), strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"seconds", "epoch"}:
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=ROUNDED), (name, one, other)
    mine, others = (load_file(out / "model" / "model.safetensors") for out in (ours, theirs))
    assert mine.keys() == others.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, others[name], rtol=1e-4, atol=1e-6, msg=lambda text, name=name: name + text)


def settings(tiny: World, out: Path, **changes: Any) -> TeachSettings:
    base = {"model": tiny.model, "data": str(tiny.data), "image_root": tiny.data.parent / "images", "out": out}
    return TeachSettings.of(
        **(base | {"codec": "float16", "shard_size": 4, "batch_size": 3, "device": "cpu"} | changes)
    )
