"""The program's first moment: Ctrl-C during its imports, and a working folder that is gone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.entries import MODULE, SCRIPT
from tests.support.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("start", [MODULE, SCRIPT], ids=["module", "script"])]

TYPED = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit(7)\n"
"""A library during whose import Ctrl-C is typed."""
AGAIN = """
import atexit, os, signal
class Late:
    def __del__(self, kill=os.kill, me=os.getpid(), what=signal.SIGINT):
        kill(me, what)
{late}
os.kill(os.getpid(), signal.SIGINT)
"""
"""A library during whose import Ctrl-C is typed, and once more as Python ends."""
EXECUTED = "os.execv(sys.argv[1], sys.argv[1:])"


def begun(before: str, line: list[str], cwd: Path, path: list[Path]) -> tuple[int, str]:
    """The exit code and the messages of a program, begun after some code."""
    done = subprocess.run(
        [sys.executable, "-c", f"import os, signal, sys; {before}; {EXECUTED}", *line],
        cwd=cwd, env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("library", "said"),
    [
        ("typer", "nothing is left half done"),
        ("yaml", "run the same command again to go on from the newest checkpoint, if there is one"),
    ],
)
def test_ctrl_c_during_an_import_is_one_line(tmp_path: Path, start: list[str], library: str, said: str) -> None:
    """Those of the program, and then those of a command, which has a line of its own."""
    (tmp_path / f"{library}.py").write_text(TYPED)
    before = "signal.signal(signal.SIGINT, signal.SIG_DFL)"
    code, stderr = begun(before, [*start, "train", "small"], ROOT, [tmp_path, ROOT])
    assert (code, stderr.strip()) == (130, f"error: stopped; {said}")


@pytest.mark.parametrize("late", ["atexit.register(Late().__del__)", "os.late = Late()"], ids=["exit", "teardown"])
def test_ctrl_c_while_the_program_ends_is_no_more_than_the_first(tmp_path: Path, start: list[str], late: str) -> None:
    (tmp_path / "yaml.py").write_text(AGAIN.format(late=late))
    before = "signal.signal(signal.SIGINT, signal.SIG_DFL)"
    code, stderr = begun(before, [*start, "train", "small"], ROOT, [tmp_path, ROOT])
    assert (code, stderr.count("\n")) == (130, 1)


def test_ctrl_c_that_is_ignored_stays_so(tmp_path: Path, start: list[str]) -> None:
    """A shell begins jobs in the background like this."""
    (tmp_path / "typer.py").write_text(TYPED)
    before = "signal.signal(signal.SIGINT, signal.SIG_IGN)"
    assert begun(before, [*start, "train", "small"], ROOT, [tmp_path, ROOT]) == (7, "")


@pytest.mark.parametrize("line", ["train small", "--version"])
def test_a_working_folder_that_is_gone_is_one_line(tmp_path: Path, start: list[str], line: str) -> None:
    said = "error: the working folder no longer exists; change into one that does\n"
    assert begun("os.rmdir(os.getcwd())", [*start, *line.split()], tmp_path, [ROOT]) == (1, said)
