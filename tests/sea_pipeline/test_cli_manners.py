"""How every command behaves in a shell: its help, its completion, its JSON, its way of stopping."""

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from rich.console import Console

from sea_pipeline import cli, console, console_training, label_run
from sea_pipeline.store import Labels
from tests.report_world import run_folder
from tests.world import draw_folder

COMMANDS: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_in_an_example_that_parses(name: str) -> None:
    examples = re.findall(r"^ *Example: (.+(?:\n.+)*)", COMMANDS[name].help, re.MULTILINE)
    assert len(examples) == 1
    program, command, *arguments = shlex.split(examples[0])
    assert (program, command) == ("sea-pipeline", name)
    assert arguments
    COMMANDS[name].make_context(name, arguments)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_speaks_json(name: str) -> None:
    (option,) = [option for option in COMMANDS[name].params if "--json" in option.opts]
    assert option.help.startswith("Print JSON")


def complete(folder: Path, line: str, shell: str = "bash", *, modules: bool = False) -> list[str]:
    """What a shell offers for the last word of a line, which may be empty."""
    words = line.split(" ")
    variables = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    if shell != "bash":
        variables = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    variables["_SEA_PIPELINE_COMPLETE"] = f"complete_{shell}"
    program = "import sys\nfrom sea_pipeline.cli import main\ntry: main()\nfinally:\n"
    program += f"  if {modules}: print({{'numpy', 'torch', 'pyarrow'}} & set(sys.modules))"
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
        ("sea-pipeline train ", ["demo", "jobs/small.yaml"]),
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


def test_a_shell_does_not_wait_for_libraries(checkout: Path) -> None:
    assert complete(checkout, "sea-pipeline report ", modules=True)[-1] == "set()"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_given_its_script(command: Any, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    monkeypatch.setenv("_SEA_PIPELINE_COMPLETE", f"source_{shell}")
    code, stdout, stderr = command()
    assert (code, stderr) == (0, "")
    assert f"_SEA_PIPELINE_COMPLETE=complete_{shell}" in stdout


@pytest.fixture
def labelled(command: Any, words: Path, tmp_path: Path) -> list[object]:
    photos = draw_folder(tmp_path / "photos", 5)
    (photos / "003.png").write_bytes(b"")
    return ["label", "--images", photos, "--wordlist", words, "--top-n", 3, "--out", tmp_path / "labels"]


def promised(name: str) -> set[str]:
    """The keys that the help of a command's --json names."""
    (option,) = [option for option in COMMANDS[name].params if "--json" in option.opts]
    return set(re.findall(r"`(\w+)`", option.help))


def test_json_of_labels(command: Any, labelled: list[object], tmp_path: Path) -> None:
    code, stdout, _ = command(*labelled, "--json")
    made = json.loads(stdout)
    assert (code, stdout.count("\n"), made["folder"]) == (0, 1, str(tmp_path / "labels"))
    assert (made["finished"], made["images_done"], made["images_bad"]) == (True, 4, 1)
    assert (made["run"]["images"], made["run"]["bad"], made["run"]["failed"]) == (4, 1, {})
    assert made["run"]["images_per_second"] == pytest.approx(4 / made["run"]["seconds"], rel=0.2)
    again = json.loads(command(*labelled, "--json")[1])
    assert (again["images_done"], again["run"]["images"], again["run"]["images_per_second"]) == (4, 0, None)
    status = json.loads(command("status", tmp_path / "labels", "--json")[1])
    assert status == {key: value for key, value in again.items() if key not in ("folder", "run")}
    assert promised("label") == {"folder", "run"}
    assert promised("status") == set(status)


def test_json_of_verify(command: Any, labelled: list[object], tmp_path: Path) -> None:
    command(*labelled)
    folder = tmp_path / "labels"
    found = json.loads(command("verify", folder, "--json")[1])
    assert promised("verify") == set(found)
    assert (found["shards_missing"], found["problems"]) == (0, [])
    assert found["files"] > 2
    (shard,) = (folder / "labels").iterdir()
    shard.write_bytes(b"?")
    code, stdout, stderr = command("verify", folder, "--json")
    (problem,) = json.loads(stdout)["problems"]
    assert (code, str(shard) in problem, problem in stderr.replace("\n", " ")) == (1, True, True)


def test_json_of_report(command: Any, labelled: list[object], tmp_path: Path) -> None:
    command(*labelled)
    run_folder(tmp_path / "run")
    out = tmp_path / "report.html"
    code, stdout, _ = command("report", tmp_path / "labels", tmp_path / "run", "--out", out, "--images", 0, "--json")
    made = json.loads(stdout)
    assert code == 0
    assert promised("report") == set(made)
    assert made == {"out": str(out), "photos": 4, "gone": 0, "runs": 1, "bytes": out.stat().st_size}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["label"], "finished shards are kept; run the same command again to go on"),
        (["inspect", "runs/labels/x"], "nothing is left half done"),
    ],
)
def test_ctrl_c_says_how_to_go_on(
    command: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(label_run, "label_images", stopped)
    monkeypatch.setattr("sea_pipeline.open_labels", stopped, raising=False)
    code, stdout, stderr = command(*arguments)
    assert (code, stdout, stderr.strip()) == (130, "", f"error: stopped; {said}")


BAR = """
import time
from sea_pipeline import console
with console.progress("labelling", 8, 2) as advance:
    for _ in range(3):
        advance(1)
        time.sleep(0.25)
console.output.print("a result")
console.messages.print("a message")
"""


def shown(variables: dict[str, str] | None = None) -> tuple[str, str]:
    """stdout, a pipe, and stderr, a terminal."""
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", BAR], stdout=subprocess.PIPE, stderr=theirs, text=True, check=True,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"} | (variables or {}),
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(ours)
    return done.stdout, seen.decode()


def test_a_terminal_shows_how_far_and_how_long() -> None:
    stdout, seen = shown()
    assert stdout == "a result\n"
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    assert re.search(r"labelling .* 5/8 \d+\.\d/s 0:00:0\d left 0:00:0\d", plain)
    assert "a message" in plain
    assert "\x1b[36m" in seen


def test_no_color_is_heeded() -> None:
    seen = shown({"NO_COLOR": "1"})[1]
    assert "5/8" in seen
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", seen)


@pytest.mark.parametrize("columns", [40, 60])
def test_a_narrow_terminal_keeps_the_bar_on_one_line(columns: int) -> None:
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown({"COLUMNS": str(columns)})[1])
    bars = [line for line in re.split(r"[\r\n]+", plain) if "labelling" in line]
    assert bars
    assert all(len(line) <= columns for line in bars)


def test_a_pipe_gets_results_alone() -> None:
    done = subprocess.run([sys.executable, "-c", BAR], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("a result\n", "a message\n")


@pytest.mark.parametrize(("columns", "explained"), [(42, False), (50, False), (120, True)])
def test_narrow_tables_keep_names_and_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int, explained: bool
) -> None:
    monkeypatch.setattr(console, "output", Console(width=columns, highlight=False, soft_wrap=True))
    metrics = {"meaningful_chance": 0.125, "lm_loss": 4.5}
    console_training.metrics_table({"start": metrics, "without SEA": metrics, "with SEA": metrics})
    loss, chance = (line.split() for line in capsys.readouterr().out.splitlines()[-2:])
    assert loss[:4] == ["lm_loss", "4.500", "4.500", "4.500"]
    assert chance[:4] == ["meaningful_chance", "0.125", "0.125", "0.125"]
    assert (len(loss) > 4) is explained


@pytest.mark.parametrize(("columns", "word"), [(20, "r"), (40, "red"), (90, "reddish")])
def test_a_narrow_grid_is_one_line_a_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int, word: str
) -> None:
    monkeypatch.setattr(console, "output", Console(width=columns, highlight=False, soft_wrap=True))
    ids, scores = np.zeros((20, 1), np.int32), np.ones((20, 1), np.float32)
    console.image_tables("x.png", Labels(ids, scores, (2, 10), (0, 0, 1, 1)), ("reddish",))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
    assert rows == [[word] * 10] * 2
