"""What shells offer while a command line is typed."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer.recipes.names import recipe_names


def complete(folder: Path, line: str, shell: str = "bash", *, modules: bool = False) -> list[str]:
    """What a shell offers for the last word of a line, which may be empty."""
    words = line.split(" ")
    variables = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    if shell != "bash":
        variables = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    variables["_SEA_PIPELINE_COMPLETE"] = f"complete_{shell}"
    program = "import sys\nfrom sea_pipeline.cli import main\ntry: main()\nfinally:\n"
    program += f"  if {modules}: print({{'numpy', 'torch', 'pyarrow', 'trainer.recipes.recipe'}} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=os.environ | variables, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if line]  # bash is given an empty line for nothing


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("checkout")
    for name in (
        "runs/labels/mine/dataset.json", "runs/demo/labels/dataset.json", "runs/targets/his/dataset.json",
        "runs/train/a/run.json", "runs/train/a/model/config.json", "runs/demo/demo/align/run.json",
        "runs/models/start/config.json", "jobs/small.yaml", "jobs/README.md", "runs/labels/other/x.txt",
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("sea-pipeline in", ["inspect", "init"]),
        ("sea-pipeline label --precision ", ["float32", "bfloat16", "float16"]),
        ("sea-pipeline label --wordlist m", ["mine:"]),
        ("sea-pipeline inspect ", ["runs/demo/labels", "runs/labels/mine"]),
        ("sea-pipeline status runs/t", ["runs/targets/his"]),
        ("sea-pipeline train ", [*recipe_names(), "jobs/small.yaml"]),
        ("sea-pipeline recipes sea-table3-t", ["sea-table3-tower", "sea-table3-tower-sea"]),
        ("sea-pipeline evaluate ", ["runs/train/a/model", "runs/models/start"]),
        ("sea-pipeline evaluate x --labels runs/l", ["runs/labels/mine"]),
        ("sea-pipeline report runs/demo/", ["runs/demo/labels", "runs/demo/demo/align"]),
        ("sea-pipeline export runs/train/", ["runs/train/a", "runs/train/a/model"]),
        ("sea-pipeline inspect elsewhere/", []),
    ],
)
def test_bash_is_offered_what_lies_there(checkout: Path, line: str, offered: list[str]) -> None:
    assert sorted(complete(checkout, line)) == sorted(offered)


def test_zsh_and_fish_are_offered_the_same(checkout: Path) -> None:
    assert "runs/labels/mine" in "\n".join(complete(checkout, "sea-pipeline inspect runs/l", "zsh"))
    assert complete(checkout, "sea-pipeline inspect runs/l", "fish") == ["runs/labels/mine"]


@pytest.mark.parametrize("name", ["report", "train"])
def test_a_shell_does_not_wait_for_libraries(checkout: Path, name: str) -> None:
    assert complete(checkout, f"sea-pipeline {name} ", modules=True)[-1] == "set()"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_given_its_script(command: Any, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    monkeypatch.setenv("_SEA_PIPELINE_COMPLETE", f"source_{shell}")
    code, stdout, stderr = command()
    assert (code, stderr) == (0, "")
    assert f"_SEA_PIPELINE_COMPLETE=complete_{shell}" in stdout
