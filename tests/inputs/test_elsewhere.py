"""Labels on systems that lack what POSIX has, and names of files in locales that are not UTF-8."""

import json
import os
import subprocess
import sys
from pathlib import Path, PureWindowsPath
from typing import Any

import pytest

from sea_pipeline import open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs import sources
from sea_pipeline.inputs.sources.files import LocalFiles
from sea_pipeline.output import begin
from sea_pipeline.output.records import File
from sea_pipeline.storage import locks
from sea_pipeline.storage.paths import is_url, place
from sea_pipeline.storage.scratch import is_abandoned, scratch_name
from tests.fuzz.web import Faults, served
from tests.support.installed import HIDING
from tests.support.photo_forms import copy_to, failing_s3, photos_in, write_list, write_parquet, write_tars
from tests.support.world import Label, draw_folder

pytestmark = pytest.mark.usefixtures("no_long_waits")
ROOT = Path(__file__).parent.parent.parent
POSIX = ["fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline", "crypt", "nis", "spwd"]
"""Modules that Windows lacks."""
NAMES = {
    "os": "fork forkpty kill killpg getuid geteuid getgid getpgid getppid setsid sysconf statvfs sched_getaffinity "
    "nice O_DIRECTORY O_NOFOLLOW O_CLOEXEC O_NONBLOCK O_SYNC uname getloadavg register_at_fork chown lchown mkfifo "
    "fchmod fchown wait waitpid WNOHANG",
    "signal": "SIGKILL SIGHUP SIGUSR1 SIGUSR2 SIGALRM SIGCHLD SIGPIPE SIGQUIT pthread_sigmask setitimer alarm",
    "socket": "AF_UNIX",
    "time": "tzset",
}
"""By module, names of it that Windows lacks."""
THERE = "numpy, pyarrow.parquet, pydantic, PIL.Image, platformdirs, fsspec, yaml, typer, rich.progress, torch, ijson"
"""Libraries that have a form of their own for Windows: ours alone must do without."""
WINDOWS = f"""
import {THERE}, multiprocessing, subprocess, tempfile, asyncio, uuid, logging
{HIDING % POSIX}
import json, os, pathlib, pkgutil
import importlib, signal, socket, time
for module in {POSIX}:
    sys.modules.pop(module, None)
for module, names in {NAMES}.items():
    for name in names.split():
        if hasattr(sys.modules[module], name):
            delattr(sys.modules[module], name)
plain = os.open
def without_folders(path, *given, **named):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return plain(path, *given, **named)
os.open = without_folders
"""
READING = """
from sea_pipeline import open_labels
from sea_pipeline.label_cache import label_cache
store = open_labels(sys.argv[1])
found = store[store.ids[0]]
kept = label_cache(store, sys.argv[2])[store.ids[0]]
assert (kept.word_ids == found.word_ids).all()
print(json.dumps([store.ids, found.word_ids.tolist(), len(list(store.tables())), len(list(store.quarantine()))]))
"""
IMPORTING = """
def all_of_it():
    import sea_pipeline
    for found in pkgutil.walk_packages(sea_pipeline.__path__, "sea_pipeline."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    return [name for name in sys.modules if name.startswith("sea_pipeline.")]
"""
IMPORTED = """
for name in [name for name in sys.modules if name.partition(".")[0] == "sea_pipeline"]:
    del sys.modules[name]
print(len(all_of_it()))
"""


def program(text: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", text, *map(str, arguments)],
        env={**os.environ, **variables}, capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip


@pytest.mark.slow
def test_labels_are_read_without_what_windows_lacks(label: Any, tmp_path: Path) -> None:
    photos = draw_folder(tmp_path / "photos", 9)
    (photos / "003.png").write_bytes(b"")
    label(images=str(photos))
    done = program(WINDOWS + READING, tmp_path / "labels", tmp_path / "kept")
    assert done.returncode == 0, done.stderr
    store = open_labels(tmp_path / "labels")
    ids, words, groups, bad = json.loads(done.stdout)
    assert (ids, words, bad) == (store.ids, store[store.ids[0]].word_ids.tolist(), 1)
    assert groups == len(list(store.tables()))


@pytest.mark.slow
def test_nothing_that_windows_lacks_is_needed_to_import_a_file(tmp_path: Path) -> None:
    """Libraries are loaded before, as they have a form of their own for Windows."""
    done = program("import importlib, pkgutil, sys" + IMPORTING + "all_of_it()" + WINDOWS + IMPORTED)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 90


def test_writing_without_locks_is_refused_in_a_line(label: Any, tmp_path: Path, monkeypatch: Any) -> None:
    photos = draw_folder(tmp_path / "photos", 2)
    monkeypatch.setattr(locks, "HAS_LOCKS", False)
    with pytest.raises(UserError, match=r"labels: expected Linux or macOS, whose locks .*; run the same command there"):
        label(images=str(photos))
    with pytest.raises(UserError, match="expected Linux or macOS"), locks.claimed_for_run(tmp_path):
        pass
    with locks.locked(tmp_path) as locked:
        assert not locked
    assert begin.refuse_without_locks is locks.refuse_without_locks


def test_a_dead_process_is_not_asked_for_by_signals_that_windows_takes_for_ctrl_c(monkeypatch: Any) -> None:
    def interrupt(*_: object) -> None:
        raise AssertionError("Ctrl-C for a whole group of processes")

    monkeypatch.setattr(os, "kill", interrupt)
    monkeypatch.setattr(os, "name", "nt")
    assert not is_abandoned(PureWindowsPath(scratch_name("x")))  # type: ignore[arg-type]


@pytest.mark.parametrize("path", [r"C:\runs\labels\x", r"runs\labels\x", r"\\server\share\x", "C:/runs/x"])
def test_paths_with_backslashes_are_of_this_machine(path: str) -> None:
    assert not is_url(path)
    assert isinstance(place(path), Path)


def test_paths_in_records_have_slashes_and_are_joined_as_the_system_does(label: Any, tmp_path: Path) -> None:
    label(images=str(draw_folder(tmp_path / "photos", 3)))
    manifest = json.loads((tmp_path / "labels" / "manifest.json").read_text())
    paths = [File(**file).path for file in manifest["shards"] + manifest["other_files"]]
    assert any("/" in path for path in paths)
    for path in paths:
        assert "\\" not in path
        assert PureWindowsPath(r"C:\x").joinpath(path).parts[1:] == ("x", *path.split("/"))


ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""The one locale of every machine whose encoding is not UTF-8; Python is told not to help itself."""


@pytest.fixture(scope="session")
def latin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A locale of Latin-1, made for the tests where there is none."""
    folder = tmp_path_factory.mktemp("locales")
    name = "en_US.ISO-8859-1"
    try:
        subprocess.run(
            ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(folder / name)], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine cannot make locales")
    return {"LC_ALL": name, "LOCPATH": str(folder)}


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Photos whose names not every encoding has; their folder, too."""
    photos = draw_folder(tmp_path / "fotos-\u00e4", 4)
    for number, name in enumerate(("\u00f6", "\u732b", "\U0001f408")):
        (photos / ("", "a", "b")[number] / f"00{number}.png").rename(photos / f"{name}.png")
    return photos


LISTED = """
import json, sys
from sea_pipeline.inputs.sources import list_samples, open_source
listing = list_samples(sys.argv[1])
source = open_source(listing.root)
read = {sample.image_id: len(source.read(sample.uri)) for sample in listing.samples}
print(json.dumps([read, sys.getfilesystemencoding()]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("which", ["ascii", "latin"])
def test_a_file_that_is_there_is_found_whatever_the_locale(
    odd: Path, which: str, request: pytest.FixtureRequest
) -> None:
    variables = ASCII if which == "ascii" else request.getfixturevalue("latin") | {"PYTHONUTF8": "0"}
    done = program(LISTED, odd, **variables)
    assert done.returncode == 0, done.stderr
    read, encoding = json.loads(done.stdout)
    assert encoding != "utf-8"
    assert read == {path.relative_to(odd).as_posix(): path.stat().st_size for path in odd.rglob("*.png")}


def test_names_stand_for_the_same_files_as_paths_do(odd: Path) -> None:
    files = LocalFiles(odd)
    assert files.read("\u00f6.png") == (odd / "\u00f6.png").read_bytes()
    assert files.open("\u732b.png").read() == (odd / "\u732b.png").read_bytes()
    assert set(files.matching("*.png")) >= {"\u00f6.png", "\u732b.png"}


@pytest.mark.slow
@pytest.mark.parametrize("which", ["ascii", "latin"])
def test_commands_work_whatever_the_locale(odd: Path, words: Path, which: str, request: pytest.FixtureRequest) -> None:
    """The program goes over to UTF-8, and writes what the terminal's encoding lacks as an escape."""
    variables = ASCII if which == "ascii" else request.getfixturevalue("latin")
    out = odd.parent / "labels-\u00df"
    command = [
        sys.executable,
        "-m",
        "tests.support.world",
        "label",
        "--images",
        odd,
        "--wordlist",
        words,
        "--top-n",
        "3",
    ]
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [*map(str, command), "--device", "cpu", "--out", str(out)], env=environment, capture_output=True, cwd=ROOT,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"4 labelled, 0 bad" in done.stdout
    encoding = "ascii" if which == "ascii" else "latin-1"
    assert "labels-\u00df".encode(encoding, "backslashreplace") in done.stderr
    store = open_labels(out)
    assert {"\u00f6.png", "\u732b.png"} < set(store.ids)
    assert sources.open_source(store.image_root).read(store.uri("\u732b.png"))
    shown = [sys.executable, "-m", "tests.support.world", "inspect", str(out), "\u732b.png"]
    done = subprocess.run(shown, env=environment, capture_output=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert b"\\u732b.png" in done.stdout


REFUSALS = (400, 401, 403, 404, 410, 451)


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    photos = draw_folder(tmp_path / "pages" / "photos", 6)
    write_tars(tmp_path / "pages" / "t", photos_in(photos))
    write_parquet(tmp_path / "pages" / "x.parquet", photos_in(photos))
    write_list(tmp_path / "pages" / "list.csv", [{"path": name} for name in photos_in(photos)])
    return tmp_path / "pages"


def labelled(command: Any, words: Path, pages: Path, faults: Faults, images: str, out: Path) -> tuple[int, str]:
    with served(pages, faults) as server:
        more = ("--image-root", f"{server.url}/photos") if images == "list.csv" else ()
        code, _, said = command(
            "label", "--images", f"{server.url}/{images}", "--wordlist", words, "--top-n", 3, "--out", out,
            "--max-bad", 1, "--device", "cpu", *more,
        )  # fmt: skip
    return code, said


@pytest.mark.slow
@pytest.mark.parametrize("status", REFUSALS)
def test_an_image_that_is_refused_is_a_bad_image(
    command: Any, words: Path, pages: Path, tmp_path: Path, status: int
) -> None:
    faults: Faults = {"photos/a/001.png": (1, status)}
    code, _ = labelled(command, words, pages, faults, "list.csv", tmp_path / "out")
    assert code == 0
    store = open_labels(tmp_path / "out")
    (bad,) = store.quarantine()
    assert (len(store), bad["image_id"], bad["stage"]) == (5, "a/001.png", "read")
    assert bad["error"] == {401: "PermissionError", 403: "PermissionError", 404: "FileNotFoundError"}.get(
        status, "OSError"
    )


@pytest.mark.slow
@pytest.mark.parametrize("images", ["t/photos-{000..002}.tar", "x.parquet", "list.csv", "photos"])
@pytest.mark.parametrize("status", [403, 410])
@pytest.mark.parametrize("request_", [1, 2, 3])
def test_a_refusal_in_the_middle_of_a_listing_is_one_line_or_bad_images(
    command: Any, words: Path, pages: Path, tmp_path: Path, images: str, status: int, request_: int
) -> None:
    file = {"photos": "photos/", "t/photos-{000..002}.tar": "t/photos-001.tar"}.get(images, images)
    code, said = labelled(command, words, pages, {file: (request_, status)}, images, tmp_path / "out")
    assert "Traceback" not in said
    if code:
        assert (code, said.count("\n")) == (1, 1)
        assert said.startswith("error: ")
        assert images.partition("/")[0].removesuffix(".csv") in said
    else:
        store = open_labels(tmp_path / "out")
        assert len(store) + len(list(store.quarantine())) == 6


def test_a_server_that_fails_for_a_while_costs_nothing(command: Any, words: Path, pages: Path, tmp_path: Path) -> None:
    faults: Faults = {f"photos/{name}": (1, 503) for name in photos_in(pages / "photos")} | {"list.csv": (2, 500)}
    assert labelled(command, words, pages, faults, "list.csv", tmp_path / "out")[0] == 0
    assert len(open_labels(tmp_path / "out")) == 6


@pytest.mark.slow
@pytest.mark.usefixtures("no_long_waits")
def test_one_file_that_a_server_fails_at_for_ever_is_one_bad_image(label: Label, pages: Path, tmp_path: Path) -> None:
    """504 lasts, unlike the statuses above. A folder that has the image already goes on, too."""
    names, out = photos_in(pages / "photos"), tmp_path / "labels"
    with served(pages, {}) as server:
        given = {"images": f"{server.url}/list.csv", "image_root": f"{server.url}/photos"}
        server.faults = {f"photos/{min(names)}": (1, 504)}
        run = label(**given)
        assert (run.report.images, run.report.bad, run.report.failed) == (5, 1, {})
        (bad,) = open_labels(out).quarantine()
        assert (bad["image_id"], bad["error"]) == (min(names), "PassingError")
        server.faults = {}
        assert label(**given, retry_bad=True).report.failed == {}
        assert len(open_labels(out)) == 6
        server.faults = {f"photos/{name}": (1, 504) for name in names}
        assert label(**given).report.images == 0
        draw_folder(pages / "photos" / "more", 1)
        write_list(pages / "list.csv", [{"path": name} for name in photos_in(pages / "photos")])
        assert label(**given, extend=True).report.images == 1


@pytest.mark.parametrize("images", ["photos", "t/photos-{000..002}.tar", "x.parquet", "list.csv"])
def test_a_bucket_that_refuses_is_one_line(
    command: Any, words: Path, pages: Path, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch, images: str
) -> None:  # fmt: skip
    """Its first answers are good ones, so that it refuses in the middle."""
    copy_to("s3://bucket/in", pages)
    for good in (0, 1, 2):
        with failing_s3(monkeypatch, s3, 403, faults=10_000, all_files=True) as proxy:
            plain, asked = proxy.faulty, iter(range(10_000))
            monkeypatch.setattr(
                proxy, "faulty", lambda path, plain=plain, asked=asked, good=good: next(asked) >= good and plain(path)
            )
            more = ("--image-root", "s3://bucket/in/photos") if images == "list.csv" else ()
            code, _, said = command(
                "label", "--images", f"s3://bucket/in/{images}", "--wordlist", words, "--top-n", 3, "--max-bad", 1,
                "--out", tmp_path / f"out{good}", "--device", "cpu", *more,
            )  # fmt: skip
        assert "Traceback" not in said
        if code:
            assert (code, said.count("\n"), said[:7]) == (1, 1, "error: ")
        else:
            store = open_labels(tmp_path / f"out{good}")
            assert len(store) + len(list(store.quarantine())) == 6
