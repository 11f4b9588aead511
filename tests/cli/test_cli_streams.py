"""A command in a pipe: output that nobody reads, that cannot be written, that is closed; and how much it says."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from sea_pipeline import open_labels
from sea_pipeline.cli import app, talk
from sea_pipeline.cli.talk import LOG
from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import STORES_LOGGERS
from sea_pipeline.labels import run as label_run
from tests.support.entries import MODULE
from tests.support.programs import labelling
from tests.support.refused import refuses
from tests.support.world import draw_folder

PROGRAM: Any = typer.main.get_command(app.app)
COMMANDS: dict[str, Any] = PROGRAM.commands
LINES = ["recipes", "recipes --json", "--help", "--version"]


@pytest.fixture
def unread() -> int:
    """A pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES)
def test_output_that_nobody_reads_ends_a_command_in_silence(unread: int, line: str) -> None:
    done = subprocess.run([*MODULE, *line.split()], stdout=unread, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.slow
def test_a_shell_that_reads_a_line_sees_it(label: Any, tmp_path: Path) -> None:
    label(images=str(draw_folder(tmp_path / "photos", 2)))
    shell = f"set -o pipefail; {sys.executable} -m sea_pipeline inspect {tmp_path / 'labels'} | head -1"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 141), "it may have written all of it before"
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


@pytest.mark.slow
def test_messages_that_nobody_reads(unread: int) -> None:
    done = subprocess.run([*MODULE, "train", "nowhere"], stderr=unread, stdout=subprocess.PIPE, check=False)
    assert (done.returncode, done.stdout) == (1, b"")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="of Linux")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("line", LINES)
def test_a_full_disk_under_the_output_is_one_line(line: str, unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*MODULE, *line.split()], stdout=full, stderr=subprocess.PIPE, text=True, check=False,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    said = "error: standard output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.slow
@pytest.mark.parametrize("line", ["recipes >&-", "recipes --json >&-", "recipes 2>&-", "recipes --json >&- 2>&- <&-"])
def test_a_stream_that_is_closed_is_thrown_away(tmp_path: Path, line: str) -> None:
    shell = f"{sys.executable} -m sea_pipeline {line}; echo $? > {tmp_path / 'code'}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert ((tmp_path / "code").read_text(), done.stderr) == ("0\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("name", [[], ["label"]], ids=["sea-pipeline", "label"])
def test_h_is_help(command: Any, name: list[str]) -> None:
    code, stdout, _ = command(*name, "-h")
    assert (code, stdout) == (0, command(*name, "--help")[1])
    assert "-h" in stdout


def test_help_says_the_exit_codes(command: Any) -> None:
    said = " ".join(command("--help")[1].split())
    assert re.findall(r"(\d+) [^;.]+[;.]", said.partition("Exit codes: ")[2]) == ["0", "1", "2", "3", "130"]
    assert "SEA_PIPELINE_LABEL_TOP_N=5" in said


@pytest.fixture
def line(words: Path, tmp_path: Path) -> tuple[object, ...]:
    return labelling(draw_folder(tmp_path / "photos", 3), words, tmp_path / "labels")


@pytest.mark.parametrize("place", ["before", "behind", "variable"])
def test_quiet_leaves_results_warnings_and_errors(
    command: Any, line: tuple[object, ...], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    if place == "variable":
        monkeypatch.setenv("SEA_PIPELINE_QUIET", "1")
    before, behind = (["--quiet"] if place == each else [] for each in ("before", "behind"))
    code, stdout, stderr = command(*before, *line, *behind)
    assert (code, stderr) == (0, "")
    assert "3 labelled, 0 bad" in stdout
    assert command("status", "nowhere", "--quiet")[2].startswith("error: nowhere: ")


def test_verbose_says_more_and_where_an_error_came_from(command: Any, line: tuple[object, ...], tmp_path: Path) -> None:
    plain = command(*line)[2]
    assert plain.splitlines() == [
        f"the labels go to {tmp_path / 'labels'}",
        f"embedding 8 words once; kept in {tmp_path / 'cache' / 'words'}",
    ]
    (tmp_path / "labels" / "manifest.json").unlink()
    (tmp_path / "labels" / "commits" / "00000.json").unlink()
    said = command(*line, "--verbose")[2]
    assert "shard 0: 3 images" in said
    said = command("status", "nowhere", "--verbose")[2]
    assert said.startswith("error: nowhere: ")
    assert "Traceback" in said
    assert "Traceback" not in command("status", "nowhere")[2]


def test_a_program_that_uses_us_decides_what_it_hears(
    label: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos = str(draw_folder(tmp_path / "photos", 2))
    label(images=photos)
    assert not caplog.records
    caplog.set_level(logging.DEBUG, "sea_pipeline")
    label(images=photos, out=tmp_path / "again")
    assert any("shard 0: 2 images" in record.getMessage() for record in caplog.records)
    assert {record.name.partition(".")[0] for record in caplog.records if "shard" in record.getMessage()} == {
        "sea_pipeline"
    }
    assert LOG.level == logging.DEBUG


def test_the_log_is_as_it_was_when_a_command_has_ended(command: Any) -> None:
    clients = [logging.getLogger(name) for name in STORES_LOGGERS]
    before = LOG.handlers[:], LOG.level, LOG.propagate, [client.level for client in clients]
    command("status", "nowhere", "--verbose")
    assert (LOG.handlers, LOG.level, LOG.propagate, [client.level for client in clients]) == before


@pytest.mark.parametrize("verbose", [False, True])
def test_stores_clients_show_tracebacks_with_verbose_alone(verbose: bool) -> None:
    with talk.heard():
        talk.set_level(quiet=False, verbose=verbose)
        assert {logging.getLogger(name).isEnabledFor(logging.ERROR) for name in STORES_LOGGERS} == {verbose}


def test_a_variable_of_the_environment_stands_for_an_option(
    command: Any, line: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEA_PIPELINE_LABEL_TOP_N", "2")
    monkeypatch.setenv("SEA_PIPELINE_LABEL_OUT", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("SEA_PIPELINE_LABEL_JSON", "1")
    monkeypatch.setenv("SEA_PIPELINE_LABEL_QUIET", "true")
    code, stdout, stderr = command(*line[:5])
    assert (code, stderr) == (0, "")
    assert json.loads(stdout)["folder"] == str(tmp_path / "elsewhere")
    assert open_labels(tmp_path / "elsewhere").top_n == 2
    assert json.loads(command(*line)[1])["folder"] == str(tmp_path / "labels"), "the command line comes first"
    monkeypatch.setenv("SEA_PIPELINE_LABEL_TOP_N", "three")
    code, _, stderr = command(*line[:5])
    assert (code, stderr.count("\n")) == (2, 1)
    assert "SEA_PIPELINE_LABEL_TOP_N" in stderr


def test_every_option_has_a_variable_of_its_own() -> None:
    every = [each for command in (PROGRAM, *COMMANDS.values()) for each in command.params]
    options = [(each.opts[0], each.envvar) for each in every if each.param_type_name == "option"]
    without = {option for option, name in options if not name}
    assert without == {"--version", "--install-completion", "--show-completion"}, "as --help says"
    names = [name for _, name in options if name]
    assert len(names) == len(set(names))
    assert "SEA_PIPELINE_CACHE" not in names
    assert {"SEA_PIPELINE_TRAIN_SET", "SEA_PIPELINE_EXPORT_FORMAT", "SEA_PIPELINE_EVAL_COMMANDS_GPUS"} <= set(names)


def test_several_values_in_a_variable_are_apart_by_space(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEA_PIPELINE_TRAIN_SET", "seed=x loss.lm=y")
    assert "loss.lm" in refuses(command, "seed", "train", "small")


def test_a_problem_is_told_once(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that sets up logging for all would print it again."""

    def fail(*_: object, **__: object) -> None:
        logging.basicConfig(force=True)
        raise UserError("it does not fit")

    monkeypatch.setattr(label_run, "label_images", fail)
    handlers = logging.root.handlers[:]
    try:
        assert command("label") == (1, "", "error: it does not fit\n")
    finally:
        logging.root.handlers[:] = handlers


@pytest.mark.slow
def test_control_characters_of_names_do_not_reach_the_terminal(command: Any, words: Path, tmp_path: Path) -> None:
    photos, out = draw_folder(tmp_path / "photos", 2), tmp_path / "labels"
    names = ["\x1b[31mred.png", "\x9b7m.png", "\x08\x7f.png"]
    for name in names:
        (photos / name).write_bytes(b"no image")
    said = "".join(command(*labelling(photos, words, out, "--max-bad", 1))[1:])
    said += command("status", out)[1]
    for name in names:
        said += command("inspect", out, name)[2]
        assert said.count(ascii(name)[1:-1]) == 2, said
    assert not set(said) & {*map(chr, range(32)), *map(chr, range(127, 160))} - {"\n"}
    assert {bad["image_id"] for bad in open_labels(out).quarantine()} == set(names)
