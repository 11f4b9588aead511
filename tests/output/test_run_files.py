"""The small files of a training run: what is damaged in them is one line, and the advice of the line works."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sea_pipeline.core.errors import UserError
from sea_pipeline.output.run_files import RunFile, SummaryFile, read_log, read_run_file
from tests.support.damage import Harm, changed, made_a_folder, replaced
from tests.support.report_world import run_folder
from tests.support.world import draw

DAMAGE: dict[str, tuple[str, Harm]] = {
    f"{name}: {what}": (name, harm)
    for name in ("run.json", "summary.json", "views.json")
    for what, harm in {
        "empty": lambda path: path.write_bytes(b""),
        "cut": lambda path: path.write_bytes(path.read_bytes()[:-20]),
        "not UTF-8": lambda path: path.write_bytes(b"\xff" + path.read_bytes()),
        "a list": lambda path: path.write_bytes(b"[]"),
        "NaN": lambda path: replaced(path, b"{", b'{"more": NaN,'),
        "deep": lambda path: path.write_bytes(b'{"a":' * 99_999),
    }.items()
}
DAMAGE |= {
    "a recipe that is a list": ("run.json", lambda path: changed(path, "recipe", value=[])),
    "fields that are text": ("run.json", lambda path: changed(path, "fields", value="x")),
    "a version that is a number": ("run.json", lambda path: changed(path, "versions", value={"torch": 2})),
    "a negative count": ("summary.json", lambda path: changed(path, "steps", value=-1)),
    "steps that are text": ("summary.json", lambda path: changed(path, "steps", value="8")),
    "a metric that is text": ("summary.json", lambda path: changed(path, "end", value={"loss": "low"})),
    "no images of views": ("views.json", lambda path: changed(path, "images", value=None)),
    "a box of three edges": ("views.json", lambda path: changed(path, "images", 0, "box", value=[0, 0, 1])),
    "a box of text": ("views.json", lambda path: changed(path, "images", 0, "box", value=list("abcd"))),
    "a word beyond the texts": (
        "views.json",
        lambda path: changed(path, "images", 0, "after", "nearest", value=["x"]),
    ),
    "a folder for views": ("views.json", made_a_folder),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_run_is_one_line_and_its_advice_ends_in_a_report(command: Any, tmp_path: Path, what: str) -> None:
    draw(tmp_path / "one.png", [["red"]])
    run = run_folder(tmp_path / "run", views={})
    name, harm = DAMAGE[what]
    kept = (run / name).read_bytes()
    asked = ("report", run, "--images", 0, "--out", tmp_path / "report.html")
    assert command(*asked)[0] == 0
    harm(run / name)
    code, stdout, said = command(*asked)
    assert (code, stdout, said.count("\n")) == (1, "", 1)
    assert said.startswith(f"error: {run / name}: ")
    if name == "views.json":
        assert said.endswith("; remove it, and run the same command again, which makes it anew or goes without\n")
        if (run / name).is_dir():
            (run / name / "notes").unlink()
            (run / name).rmdir()
        else:
            (run / name).unlink()
    else:
        assert said.endswith("; restore it\n")
        (run / name).write_bytes(kept)
    assert command(*asked)[0] == 0


def test_what_is_damaged_in_the_log_ends_it(command: Any, tmp_path: Path) -> None:
    lines = [b'{"step": 0, "seconds": 0.5, "loss": NaN}', b'{"step": 1, "seconds": 1, "loss": 2.0}']
    for half in (b"\xff\xfe", b"[]", b'{"step": "2", "seconds": 1}', b'{"loss": 1}', b"{", b'{"a":' * 99_999):
        run = run_folder(tmp_path / f"run{half[:4].hex()}{len(half)}")
        (run / "metrics.jsonl").write_bytes(b"\n".join([*lines, half, lines[1]]))
        assert [line["step"] for line in read_log(run / "metrics.jsonl")] == [0, 1]
        assert command("report", run, "--images", 0, "--out", tmp_path / "report.html")[0] == 0
    assert read_log(tmp_path / "absent") == []


@pytest.mark.parametrize("record", [RunFile, SummaryFile])
def test_what_is_read_is_what_is_there(tmp_path: Path, record: Callable[..., Any]) -> None:
    path = tmp_path / "file.json"
    for good in ({}, {"steps": 3}, {"later": [1, None]}, {"fields": {}, "start": {"loss": 1}, "seconds": 2}):
        path.write_text(json.dumps(good))
        assert read_run_file(path, record) == good  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"absent: cannot be read: .*; restore it"):
        read_run_file(tmp_path / "absent", record)  # type: ignore[arg-type]
