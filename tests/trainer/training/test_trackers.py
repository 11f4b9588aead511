"""Each run has a run of its own at a tracker. A stand-in has what transformers calls of wandb's package."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.own_package import own_package
from tests.support.tiny_runs import World, tiny_recipe
from trainer.training.arguments import training_arguments
from trainer.training.run import train, train_stages
from trainer.training.trackers import ending_trackers

WANDB = """
run, begun = None, []


class Run:
    def __init__(self, name):
        self.name, self.lines, self.summary = name, [], {}

    def _label(self, **_):
        pass


class Config(dict):
    def update(self, values, allow_val_change=False):
        super().update(values)


config = Config()


def init(project=None, name=None):
    global run
    run = Run(name)
    begun.append(run)


def log(line):
    run.lines.append(line)


def finish():
    global run
    run = None


def define_metric(*_, **__):
    pass
"""


@pytest.fixture
def wandb(tmp_path: Path) -> Iterator[Any]:
    files = {
        "__init__.py": WANDB,
        "sdk/__init__.py": "",
        "sdk/lib/__init__.py": "",
        "sdk/lib/config_util.py": "class ConfigError(Exception):\n    pass\n",
    }
    with own_package("wandb", files, tmp_path / "site") as package:
        yield package


ARGUMENTS = {"max_steps": 2, "save_strategy": "no", "report_to": "wandb"}


@pytest.mark.slow
def test_stages_are_runs_of_their_own(wandb: Any, tiny: World, tmp_path: Path) -> None:
    data = {"evaluate": str(tiny.held_out)}
    stage = tiny_recipe(tiny, training_arguments=ARGUMENTS, data=data)
    own = tiny_recipe(tiny, training_arguments=ARGUMENTS | {"run_name": "mine"}, data=data)
    train_stages({"first": stage, "second": stage, "third": own}, tmp_path / "recipe")
    assert [run.name for run in wandb.begun] == ["recipe/first", "recipe/second", "mine"]
    for run in wandb.begun:
        steps = [line["train/global_step"] for line in run.lines]
        assert sorted(steps) == steps, "one run's steps"
        assert any("eval/lm_loss" in line and line["train/global_step"] == 2 for line in run.lines)
    assert wandb.run is None


@pytest.mark.slow
def test_a_run_that_was_there_stays(wandb: Any, tiny: World, tmp_path: Path) -> None:
    wandb.init(name="the user's")
    train(tiny_recipe(tiny, training_arguments=ARGUMENTS), tmp_path / "out")
    assert [run.name for run in wandb.begun] == ["the user's"]
    assert wandb.run is wandb.begun[0]
    assert {line["train/global_step"] for line in wandb.run.lines} == {1, 2}


@pytest.mark.parametrize(
    ("package", "asked", "end"), [("swanlab", "get_run", "finish"), ("mlflow", "active_run", "end_run")]
)
def test_others_that_stay_open_are_ended_too(
    package: str, asked: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    other = SimpleNamespace(**{asked: lambda: opened[-1] if opened else None, end: opened.clear})
    monkeypatch.setitem(sys.modules, package, other)
    with ending_trackers():
        opened.append("ours")
    assert opened == []
    opened.append("the user's")
    with ending_trackers():
        pass
    assert opened == ["the user's"]


def test_what_cannot_be_ended_costs_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise ConnectionError

    broken = SimpleNamespace(run=None, finish=fails)
    monkeypatch.setitem(sys.modules, "wandb", broken)
    with ending_trackers():
        broken.run = "open"
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace())  # another package of this name
    with ending_trackers():
        pass


def test_a_run_is_named_by_its_folder(tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tiny_recipe(tiny)
    assert training_arguments(recipe, Path("runs/x/pretrain")).run_name == "x/pretrain"
    assert training_arguments(recipe, Path("x")).run_name == f"{tmp_path.name}/x"
    own = tiny_recipe(tiny, training_arguments={"run_name": "mine"})
    assert training_arguments(own, Path("x")).run_name == "mine"
