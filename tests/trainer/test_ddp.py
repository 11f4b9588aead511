"""Two processes do what one does with twice the micro-batches."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.test_architecture import ROOT
from tests.tiny_runs import World, logged, tiny_recipe
from trainer.train import train

TERMS: dict[str, Any] = {"sea": {"weight": 1}, "das": {"weight": 0.5}, "sds": {"weight": 0.01}, "measure_every": 2}


@pytest.mark.parametrize("rates", [{}, {"llm": 1e-4, "vision": 1e-4}], ids=["projector", "everything"])
def test_two_processes_train_as_one(tiny: World, deep: Path, tmp_path: Path, rates: dict[str, float]) -> None:
    arguments = {"per_device_train_batch_size": 2, "max_steps": 4, "save_strategy": "no"}
    recipe = tiny_recipe(tiny, model=str(deep), loss=TERMS, learning_rates=rates, training_arguments=arguments)
    file = tmp_path / "recipe.json"
    file.write_text(recipe.model_dump_json())
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launch, "-m", "tests.tiny_runs", str(file), str(tmp_path / "two")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    train(tiny_recipe(tiny, model=str(deep), loss=TERMS, learning_rates=rates,
                      training_arguments=arguments | {"gradient_accumulation_steps": 2}), tmp_path / "one")  # fmt: skip
    for ours, theirs in zip(logged(tmp_path / "two"), logged(tmp_path / "one"), strict=True):
        for name in ("loss_lm", "loss_sea", "loss_das", "loss_sds"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3), json.dumps([ours, theirs])
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: name + text)
