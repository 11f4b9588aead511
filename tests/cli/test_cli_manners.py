"""How every command behaves in a shell: its help, its outputs, its JSON, its way of stopping."""

import fcntl
import json
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import typer.main
from rich.console import Console

from sea_pipeline.cli import app, talk, terminal
from sea_pipeline.cli.tables import labels as label_tables
from sea_pipeline.cli.tables import training as training_tables
from sea_pipeline.core.progress import Pace, progress_line
from sea_pipeline.labels import run as label_run
from sea_pipeline.labels.store import Labels
from tests.support.programs import labelling
from tests.support.report_world import run_folder
from tests.support.world import draw_but_one
from trainer.recipes.paper_rows import named_recipes

COMMANDS: dict[str, Any] = typer.main.get_command(app.app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_in_an_example_that_parses(name: str) -> None:
    program, command, *arguments = example(name)
    assert (program, command) == ("sea-pipeline", name)
    assert arguments
    given = COMMANDS[name].make_context(name, arguments).params
    assert name != "train" or named_recipes(given["recipe"], given["overrides"])


@pytest.mark.slow
def test_a_narrow_terminal_cuts_nothing_from_help(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    for name in COMMANDS:
        shown = command(name, "--help")[1]
        assert max(map(len, shown.splitlines())) == 60
        assert "…" not in re.sub("s3://…|RUN…|, …", "", shown), "dots that no text has"


def example(name: str) -> list[str]:
    """The command line that a command's help ends in."""
    (found,) = re.findall(r"^ *Example: (.+(?:\n.+)*)", COMMANDS[name].help, re.MULTILINE)
    return shlex.split(found)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        (name, option)
        for name in sorted(COMMANDS.keys() - {"label", "teacher", "merge", "select"})
        for option in ("--out", "--save", "--save-figures")
        if any(option in each.opts for each in COMMANDS[name].params)
    ],
)
def test_a_store_is_refused_where_only_this_machine_is_written_to(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, option: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, stderr = command(name, *example(name)[2:], option, "s3://bucket/x.html")
    assert (code, stderr.count("\n")) == (2, 1)
    assert f"'{option}': expected a path of this machine, found s3://bucket/x.html: only label, " in stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_speaks_json(name: str) -> None:
    (option,) = [option for option in COMMANDS[name].params if "--json" in option.opts]
    assert option.help.startswith("Print JSON")


@pytest.fixture
def labelled(words: Path, tmp_path: Path) -> tuple[object, ...]:
    return labelling(draw_but_one(tmp_path / "photos", 5), words, tmp_path / "labels")


def promised(name: str) -> set[str]:
    """The keys that the help of a command's --json names."""
    (option,) = [option for option in COMMANDS[name].params if "--json" in option.opts]
    return set(re.findall(r"`(\w+)`", option.help))


def test_json_of_labels(command: Any, labelled: tuple[object, ...], tmp_path: Path) -> None:
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


def test_json_of_verify(command: Any, labelled: tuple[object, ...], tmp_path: Path) -> None:
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


def test_json_of_report(command: Any, labelled: tuple[object, ...], tmp_path: Path) -> None:
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
        (["export", "x", "--out", "y"], "the folder is there whole or not at all"),
        (
            ["export", "x", "--out", "y", "--push", "me/x"],
            "the folder is there whole or not at all, but it may be uploaded in part; if it is there, go "
            "on with: hf upload --private OWNER/NAME FOLDER",
        ),
    ],
)
def test_ctrl_c_says_how_to_go_on(
    command: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    stopped = Mock(side_effect=KeyboardInterrupt)
    monkeypatch.setattr(label_run, "label_images", stopped)
    monkeypatch.setattr("sea_pipeline.open_labels", stopped, raising=False)
    monkeypatch.setattr("trainer.export.checks.check_export", lambda *_, **__: None)
    monkeypatch.setattr("trainer.export.run.export_model", stopped)
    code, stdout, stderr = command(*arguments)
    assert (code, stdout, stderr.strip()) == (130, "", f"error: stopped; {said}")


def test_ctrl_c_before_the_line_is_parsed(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typer.main, "get_command", Mock(side_effect=KeyboardInterrupt))
    assert command("status", "x") == (130, "", "error: stopped; nothing is left half done\n")


IN_A_CALL = """
import ctypes, signal, sys
from types import ModuleType
from sea_pipeline import cli

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is begun without

def label(*_):
    signal.siginterrupt(signal.SIGINT, False)
    # As a step of torch, it lets no Python of this thread run until it ends.
    ctypes.CDLL(None).scanf(b"%d", ctypes.byref(ctypes.c_int()))

run = sys.modules["sea_pipeline.labels.run"] = ModuleType("run")  # which would import torch
run.label_images = label
sys.argv = ["sea-pipeline", *sys.argv[1:]]
cli.main()
"""


def unread_bytes(pipe: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0])


@pytest.mark.slow
@pytest.mark.parametrize("quiet", [False, True])
def test_ctrl_c_is_heard_while_a_long_call_goes_on(tmp_path: Path, quiet: bool) -> None:
    line = [sys.executable, "-c", IN_A_CALL, "label", "--out", str(tmp_path / "out"), *(["--quiet"] if quiet else [])]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as it:
        assert it.stdin is not None
        assert it.stderr is not None
        it.stdin.write("1")
        it.stdin.flush()
        while it.poll() is None and unread_bytes(it.stdin.fileno()):  # the call reads it, and waits for more
            time.sleep(0.01)
        it.send_signal(signal.SIGINT)
        if not quiet:  # it is said before the call ends
            assert it.stderr.readline() == "stopping: what is running now ends first\n"
            assert it.poll() is None
        it.stdin.write("\n")
        it.stdin.close()
        ended = "error: stopped; finished shards are kept; run the same command again to go on\n"
        assert (it.stderr.read(), it.wait()) == (ended, 130)


LIMITS = "the system gives this process no more; raise its limits (ulimit -v, ulimit -u), or end other programs"


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (OSError("it looks like\nno file"), "it looks like no file"),
        (BrokenPipeError(32, "Broken pipe"), "Broken pipe"),  # another one than the output
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError(2, "No such file or directory", "x.json"), "x.json: No such file or directory"),
        (OSError(28, "No space left on device", "x.json", None, "y.json"), "y.json: No space left on device"),
        (RuntimeError("can't start new thread"), f"can't start new thread; {LIMITS}"),
        (
            ImportError("x.so: failed to map segment from shared object"),
            f"x.so: failed to map segment from shared object; {LIMITS}",
        ),
        (MemoryError(), f"MemoryError; {LIMITS}"),
        (OSError(12, "Cannot allocate memory"), f"Cannot allocate memory; {LIMITS}"),
    ],
)
def test_what_the_system_refuses_is_one_line(
    command: Any, monkeypatch: pytest.MonkeyPatch, problem: Exception, said: str
) -> None:
    monkeypatch.setattr(label_run, "label_images", Mock(side_effect=problem))
    assert command("label") == (1, "", f"error: {said}\n")


BAR = """
import time
from sea_pipeline.cli import talk, terminal
with talk.heard(), terminal.progress("labelling", 8, 2) as advance:
    for _ in range(3):
        advance(1)
        time.sleep(0.25)
terminal.output.print("a result")
terminal.messages.print("a message")
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
    assert re.search(r"labelling .* 5/8 \d+\.\d/s after 0:00:0\d, 0:00:0\d left", plain)
    assert not re.search(r"[23]/8 [^\r]* left", plain)  # one update is too few for a forecast
    assert "a message" in plain
    assert "\x1b[36m" in seen


def test_no_color_is_heeded() -> None:
    seen = shown({"NO_COLOR": "1"})[1]
    assert "5/8" in seen
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", seen)


@pytest.mark.slow
def test_a_narrow_terminal_keeps_the_bar_on_one_line() -> None:
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown({"COLUMNS": "40"})[1])
    bars = [line for line in re.split(r"[\r\n]+", plain) if "labelling" in line]
    assert bars
    assert all(len(line) <= 40 for line in bars)


def test_a_pipe_gets_results_alone() -> None:
    done = subprocess.run([sys.executable, "-c", BAR], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("a result\n", "a message\n")


def test_a_pipe_gets_a_line_now_and_then_while_something_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "EVERY", 0.05)
    said: list[str] = []

    def wait_for(line: str) -> None:
        while not any(re.fullmatch(line, each) for each in said):
            time.sleep(0.01)
            said.extend(capsys.readouterr().err.splitlines())

    with talk.heard():
        begun = time.monotonic()
        with terminal.progress("training", 1_010, 1_000) as advance:
            advance(1)
            wait_for("training: 1,001 of 1,010 done")  # one update is too few for a forecast
            advance(1)
            advance(1)
            wait_for(r"training: 1,003 of 1,010 done, about \d+ s left")
        said.extend(capsys.readouterr().err.splitlines())
        assert len(said) <= (time.monotonic() - begun) / 0.05
        talk.set_level(quiet=True, verbose=False)
        with terminal.progress("training", 1_010, 1_000) as advance:
            advance(1)
            time.sleep(0.2)
        assert capsys.readouterr().err == ""


def test_a_forecast_is_by_all_items_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("sea_pipeline.core.progress.time", SimpleNamespace(monotonic=lambda: now))
    pace = Pace(120, already=20)
    now = 110.0
    pace.advance(10)
    assert pace.seconds_left() is None
    now = 130.0
    pace.advance(20)
    assert pace.seconds_left() == pytest.approx(70)
    pace.advance(-30)  # a shard begins again
    assert pace.seconds_left() is None
    assert progress_line("x", 1, 2, 119.4).endswith("about 119 s left")
    assert progress_line("x", 1, 2, 170).endswith("about 3 min left")


@pytest.mark.parametrize(("columns", "explained"), [(20, False), (42, False), (50, False), (120, True)])
def test_narrow_tables_keep_names_and_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int, explained: bool
) -> None:
    monkeypatch.setattr(terminal, "output", Console(width=columns, highlight=False, soft_wrap=True))
    metrics = {"meaningful_chance": 0.125, "lm_loss": 4.5}
    training_tables.metrics_table({"start": metrics, "without SEA": metrics, "with SEA": metrics})
    loss, chance = (line.split() for line in capsys.readouterr().out.splitlines()[-2:])
    assert loss[:4] == ["lm_loss", "4.500", "4.500", "4.500"]
    assert chance[:4] == ["meaningful_chance", "0.125", "0.125", "0.125"]
    assert (len(loss) > 4) is explained


def test_a_line_while_training_has_the_chief_metrics(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "say", print)
    values = {"tacs": 0.5, "lm_loss": 4.5, "lm_loss_se": 0.25, "trained_tokens": 175.0, "lm_loss_other": 5.0}
    training_tables.train_reporter().metrics("step 8", values)
    training_tables.train_reporter().metrics("step 9", {"trained_tokens": 175.0})
    assert capsys.readouterr().out == "step 8: lm_loss 4.500 ± 0.250, tacs 0.500\nstep 9: trained_tokens 175\n"


@pytest.mark.parametrize(("columns", "word"), [(20, "r"), (40, "red"), (90, "reddish")])
def test_a_narrow_grid_is_one_line_a_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int, word: str
) -> None:
    monkeypatch.setattr(terminal, "output", Console(width=columns, highlight=False, soft_wrap=True))
    ids, scores = np.zeros((20, 1), np.int32), np.ones((20, 1), np.float32)
    label_tables.image_tables("x.png", Labels(ids, scores, (2, 10), (0, 0, 1, 1)), ("reddish",))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
    assert rows == [[word] * 10] * 2
