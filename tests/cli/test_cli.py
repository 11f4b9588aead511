"""Every command: what it prints, how it exits, and one typical mistake."""

import json
import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from sea_pipeline import __version__, open_labels
from sea_pipeline.cli.tables import labels as label_tables
from sea_pipeline.labels.statistics import statistics
from tests.support.clock import Clock
from tests.support.programs import labelling
from tests.support.refused import refuses
from tests.support.world import ColourEncoder, draw_but_one, draw_folder


@pytest.fixture
def labelled(command: Any, words: Path, tmp_path: Path) -> Path:
    photos, out = draw_but_one(tmp_path / "photos", 5), tmp_path / "labels"
    code, stdout, stderr = command(*labelling(photos, words, out))
    assert code == 0, stderr
    assert "4 labelled, 1 bad" in stdout
    assert "1 of 1 done" in stdout
    assert str(out) in stderr
    return out


def test_help_teaches_every_command(command: Any) -> None:
    code, stdout, _ = command("--help")
    assert code == 0
    for name in ("label", "inspect", "status", "verify", "demo"):
        assert name in stdout
        assert command(name, "--help")[0] == 0
    assert command("--version")[1] == f"sea-pipeline {__version__}\n"


def test_the_options_are_those_that_are_scripted_against(command: Any) -> None:
    options = "images image-root wordlist encoder top-n out limit device search shard-size max-bad"
    stdout = command("label", "--help")[1]
    assert [option for option in options.split() if f"--{option}" not in stdout] == []


def test_loading_a_model_is_no_waiting_for_images(
    command: Any, encoder: ColourEncoder, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    for module in ("labels.stage", "execution.run_report"):
        monkeypatch.setattr(f"sea_pipeline.{module}.time", clock)
    monkeypatch.setattr(encoder, "load", lambda: clock.passes(100))
    stdout = command(*labelling(draw_folder(tmp_path / "photos", 5), words, tmp_path / "labels"))[1]
    said = re.search(r"^time +load (\d+)%", stdout, re.MULTILINE)
    assert said is not None, stdout
    assert 90 < int(said[1]) <= 100


def test_inspect_prints_figure_6(command: Any, labelled: Path) -> None:
    code, stdout, _ = command("inspect", labelled)
    assert code == 0
    for expected in ("words used", "of 8", "words below zero", "SEA Fig. 6a", "SEA Fig. 6b"):
        assert expected in stdout
    numbers = json.loads(command("inspect", labelled, "--json")[1])
    assert (numbers["images"], numbers["crops"]) == (4, 0)
    assert numbers["patches"] == 48
    assert sum(numbers["score_histogram"]["counts"]) == numbers["labels"]
    assert 0 < numbers["share_below_zero"] < 1
    assert numbers["most_frequent"][0]["labels"] >= numbers["most_frequent"][1]["labels"]


def test_the_demo_leaves_figure_6_to_inspect(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_labels(labelled)
    label_tables.statistics_tables(statistics(store), store.words, histograms=False)
    said = capsys.readouterr().out
    assert "words used" in said
    assert "most frequent words" in said
    assert "Fig. 6" not in said


def test_inspect_of_one_image(command: Any, labelled: Path) -> None:
    code, stdout, _ = command("inspect", labelled, "a/001.png")
    assert code == 0
    assert "best word of each patch" in stdout
    answer = json.loads(command("inspect", labelled, "a/001.png", "--json")[1])
    assert answer["grid"] == [3, 4]
    assert len(answer["words"]) == len(answer["scores"]) == 12
    refuses(command, "'003.png' was not labelled: read: the file holds 0 bytes", "inspect", labelled, "003.png")
    refuses(command, "'a/100.png' is none of the 4 images; the nearest is 'a/00", "inspect", labelled, "a/100.png")


def test_status_and_verify(command: Any, labelled: Path) -> None:
    answer = json.loads(command("status", labelled, "--json")[1])
    assert (answer["finished"], answer["images_done"], answer["images_bad"]) == (True, 4, 1)
    assert answer["reasons"] == {"read: EmptyFile": 1}
    stdout = command("status", labelled)[1]
    assert "labels, finished" in stdout
    assert "003.png" in stdout
    assert "the file holds 0 bytes" in stdout
    code, stdout, _ = command("verify", labelled)
    assert code == 0
    assert stdout.rstrip().endswith("as written")


@pytest.mark.parametrize(
    ("code", "line", "expected"),
    [
        (1, "label --top-n 0 --max-bad 2", "--top-n: input should be greater than or equal to 1, found 0; --max-bad"),
        (1, "label --device cuda:99", "--device cuda:99"),
        (1, "status nowhere", "nowhere: expected a folder that sea-pipeline wrote"),
        (1, "verify nowhere", "nowhere"),
        (1, "inspect nowhere", "nowhere"),
        (2, "label --imges x", "--imges"),
        (2, "label --top-n three", "--top-n"),
        (2, "label --precision float8", "--precision"),
        (2, "lable", "lable"),
        (2, "inspect", "see sea-pipeline inspect --help"),
        (2, "label --out", "'--out' requires an argument; see sea-pipeline label --help"),
        (2, "plan --images 0", "--images"),
    ],
)
def test_a_mistake_is_one_line_and_exit_1_or_2(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, line: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found, stdout, stderr = command(*line.split())
    assert (found, stdout) == (code, "")
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert expected in stderr


def test_names_are_printed_as_they_are(command: Any, words: Path, tmp_path: Path) -> None:
    photos, out = draw_folder(tmp_path / ":cat: [b]", 2), tmp_path / "[/b]"
    code, stdout, stderr = command(*labelling(photos, words, out))
    assert (code, "[/b]" in stderr) == (0, True)
    assert ":cat: [b]" in stdout.replace("\n", "")
    assert "[/b]" in command("verify", out)[1]


@pytest.mark.parametrize("name", ["x" * 300, "ph\udce9"])
def test_a_name_that_no_file_can_have_is_one_line(command: Any, words: Path, tmp_path: Path, name: str) -> None:
    photos = draw_folder(tmp_path / "photos", 1)
    for arguments in (["--images", name], ["--images", photos, "--out", name], ["--wordlist", name]):
        refuses(command, "", "label", "--wordlist", words, "--top-n", 3, *arguments)


@pytest.mark.parametrize("step", ["load", "patches"])
def test_failed_shards_exit_3(
    command: Any, encoder: ColourEncoder, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(encoder, step, Mock(side_effect=RuntimeError("no kernel image")))
    code, stdout, _ = command(*labelling(draw_folder(tmp_path / "photos", 2), words, tmp_path / "out"))
    assert code == 3
    assert "shard 0 failed" in stdout
    assert "no kernel image" in stdout


def test_the_default_folder_tells_settings_apart(command: Any, words: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    photos = draw_folder(tmp_path / "photos", 3)
    for extra in (["--top-n", 3], ["--top-n", 2], ["--top-n", 3, "--limit", 2], ["--top-n", 3]):
        assert command("label", "--images", photos, "--wordlist", words, *extra)[0] == 0
    assert command("label", "--images", photos, "--wordlist", words, "--top-n", 3, "--shard-size", 1)[0] == 0
    other = draw_folder(tmp_path / "other" / "photos", 3)
    assert command("label", "--images", other, "--wordlist", words, "--top-n", 3)[0] == 0
    names = sorted(path.name for path in (tmp_path / "runs" / "labels").iterdir())
    assert len(names) == 5
    assert all(name.startswith("photos-packaged-colours-n") for name in names)
