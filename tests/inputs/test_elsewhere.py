"""Labels on systems that lack what POSIX has, and names of files in locales that are not UTF-8."""

import json
import os
import subprocess
import sys
from pathlib import Path, PureWindowsPath
from typing import Any
from unittest.mock import Mock

import pytest

from sea_pipeline import open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.execution import shard
from sea_pipeline.output import begin
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.records import File
from sea_pipeline.storage import locks
from sea_pipeline.storage.scratch import is_abandoned, scratch_name
from tests.fuzz.web import Faults, served
from tests.support.installed import HIDING
from tests.support.paths import ROOT
from tests.support.photo_forms import copy_to, failing_s3, photos_in, write_list, write_parquet, write_tars
from tests.support.programs import labelling
from tests.support.world import Label, Shelved, draw_folder

pytestmark = pytest.mark.usefixtures("no_long_waits")
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
IMPORTING = """
import importlib, pkgutil, sys
def all_of_it():
    import sea_pipeline
    for found in pkgutil.walk_packages(sea_pipeline.__path__, "sea_pipeline."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    return [name for name in sys.modules if name.startswith("sea_pipeline.")]
"""
READING = """
for name in [name for name in sys.modules if name.partition(".")[0] == "sea_pipeline"]:
    del sys.modules[name]
count = len(all_of_it())
from sea_pipeline import open_labels
from sea_pipeline.label_cache import label_cache
store = open_labels(sys.argv[1])
found = store[store.ids[0]]
kept = label_cache(store, sys.argv[2])[store.ids[0]]
assert (kept.word_ids == found.word_ids).all()
bad = list(store.quarantine())
print(json.dumps([count, store.ids, found.word_ids.tolist(), len(list(store.tables())), len(bad)]))
"""


def python(*arguments: object, **variables: str) -> subprocess.CompletedProcess[bytes]:
    command, environment = [sys.executable, *map(str, arguments)], {**os.environ, **variables}
    return subprocess.run(command, env=environment, capture_output=True, check=False, cwd=ROOT)


@pytest.mark.slow
def test_every_file_is_imported_and_labels_are_read_without_what_windows_lacks(
    shelved: Shelved, tmp_path: Path
) -> None:
    """Libraries are loaded before, as they have a form of their own for Windows."""
    labels = shelved(9) / "labels"
    done = python("-W", "ignore", "-c", IMPORTING + "all_of_it()" + WINDOWS + READING, labels, tmp_path / "kept")
    assert done.returncode == 0, done.stderr
    store = open_labels(labels)
    count, ids, words, groups, bad = json.loads(done.stdout)
    assert (ids, words, bad) == (store.ids, store[store.ids[0]].word_ids.tolist(), 1)
    assert groups == len(list(store.tables()))
    assert count > 90


def test_writing_without_locks_is_refused_in_a_line(label: Label, tmp_path: Path, monkeypatch: Any) -> None:
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
    monkeypatch.setattr(os, "kill", Mock(side_effect=AssertionError("Ctrl-C for a whole group of processes")))
    monkeypatch.setattr(os, "name", "nt")
    assert not is_abandoned(PureWindowsPath(scratch_name("x")))  # type: ignore[arg-type]


def test_paths_in_records_have_slashes_and_are_joined_as_the_system_does(shelved: Shelved) -> None:
    manifest = json.loads((shelved(9) / "labels" / "manifest.json").read_text())
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
    done = python("-W", "ignore", "-c", LISTED, odd, **variables)
    assert done.returncode == 0, done.stderr
    read, encoding = json.loads(done.stdout)
    assert encoding != "utf-8"
    assert read == {path.relative_to(odd).as_posix(): path.stat().st_size for path in odd.rglob("*.png")}


@pytest.mark.slow
@pytest.mark.parametrize("which", ["ascii", "latin"])
def test_commands_work_whatever_the_locale(label: Label, odd: Path, which: str, request: pytest.FixtureRequest) -> None:
    """The program goes over to UTF-8, and writes what the terminal's encoding lacks as an escape."""
    variables = ASCII if which == "ascii" else request.getfixturevalue("latin")
    out = odd.parent / "labels-\u00df"
    label(images=str(odd), out=out)
    done = python("-m", "sea_pipeline", "inspect", out, "\u732b.png", **variables)
    assert done.returncode == 0, done.stderr
    assert b"\\u732b.png" in done.stdout
    done = python("-m", "sea_pipeline", "inspect", out, "\u72ac.png", **variables)
    assert done.returncode == 1
    encoding = "ascii" if which == "ascii" else "latin-1"
    for part in ("labels-\u00df", "\u72ac.png"):
        assert part.encode(encoding, "backslashreplace") in done.stderr


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
        code, _, said = command(*labelling(f"{server.url}/{images}", words, out, "--max-bad", 1, *more))
    return code, said


def test_an_image_that_is_refused_is_a_bad_image(command: Any, words: Path, pages: Path, tmp_path: Path) -> None:
    refused = dict(zip(photos_in(pages / "photos"), (400, 401, 403, 404, 410, 451), strict=True))
    faults: Faults = {f"photos/{name}": (1, status) for name, status in refused.items()}
    assert labelled(command, words, pages, faults, "list.csv", tmp_path / "out")[0] == 0
    expected = {401: "PermissionError", 403: "PermissionError", 404: "FileNotFoundError"}
    found = {bad["image_id"]: (bad["stage"], bad["error"]) for bad in open_labels(tmp_path / "out").quarantine()}
    assert found == {name: ("read", expected.get(status, "OSError")) for name, status in refused.items()}


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 403])
def test_a_shard_that_a_server_refuses_makes_no_image_bad(
    label: Label, pages: Path, tmp_path: Path, status: int
) -> None:
    """But one image of it alone, or as many as are allowed, or images that may be on many servers, or beside others."""
    names = sorted(photos_in(pages / "photos"))
    settings: dict[str, Any] = {"images": str(pages / "list.csv"), "shard_size": 3, "max_bad": 0.5}
    label(**settings, image_root=pages / "photos", out=tmp_path / "whole")
    faults: Faults = {f"photos/{name}": (1, status) for name in names[:3]}
    with served(pages, faults) as server:
        root = f"{server.url}/photos"
        said = (
            rf"labels: shard 0: 3 of its 3 images are refused, such as {root}/{names[0]}: {status}, .*; renew the cre"
        )
        with pytest.raises(UserError, match=said):
            label(**settings, image_root=root)
        assert Ledger.open(tmp_path / "labels").missing() == [0, 1]
        assert label(**settings | {"max_bad": 1}, image_root=root, out=tmp_path / "allowed").report.bad == 3
        write_list(tmp_path / "list.csv", [{"path": f"{root}/{name}"} for name in names])
        many = settings | {"images": str(tmp_path / "list.csv"), "image_root": "http://"}
        assert label(**many, out=tmp_path / "many").report.bad == 3
        server.faults[f"photos/{names[0]}"] = 2, status  # and so in the middle of the shard
        server.asked.clear()
        with pytest.raises(UserError, match="shard 0: 2 of its 3 images are refused"):
            label(**settings, image_root=root)
        del server.faults[f"photos/{names[0]}"]
        assert label(**settings, image_root=root, out=tmp_path / "beside").report.bad == 2
        faults.clear()
        label(**settings, image_root=root)
    assert open_labels(tmp_path / "labels").ids == open_labels(tmp_path / "whole").ids
    with served(pages, {f"photos/{names[0]}": (1, status)}) as server:
        assert label(**settings, image_root=f"{server.url}/photos", out=tmp_path / "one").report.bad == 1


@pytest.mark.parametrize("images", ["t/photos-000.tar", "x.parquet"])
def test_a_file_that_a_server_refuses_makes_no_image_bad(
    label: Label, pages: Path, monkeypatch: pytest.MonkeyPatch, images: str
) -> None:
    """From its first shard on, when it has been listed."""
    with served(pages, {}) as server:
        process = shard._process

        def refused(*given: Any) -> Any:
            server.faults[images] = 1, 403
            server.asked.clear()
            return process(*given)

        monkeypatch.setattr(shard, "_process", refused)
        with pytest.raises(UserError, match=r"shard 0: 2 of its 2 images are refused, .*: 403, Forbidden; renew"):
            label(images=f"{server.url}/{images}", shard_size=2, max_bad=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("images", ["t/photos-{000..002}.tar", "x.parquet", "list.csv", "photos"])
def test_a_refusal_in_the_middle_of_a_listing_is_one_line_or_bad_images(
    command: Any, words: Path, pages: Path, tmp_path: Path, images: str
) -> None:
    """From the first, the second, the third request on."""
    file = {"photos": "photos/", "t/photos-{000..002}.tar": "t/photos-001.tar"}.get(images, images)
    for request, status in enumerate((403, 410, 403), 1):
        out = tmp_path / f"out{request}"
        code, said = labelled(command, words, pages, {file: (request, status)}, images, out)
        refused_or_named(code, said, out)
        assert not code or images.partition("/")[0].removesuffix(".csv") in said


def refused_or_named(code: int, said: str, out: Path) -> None:
    """Every image is labelled or in the quarantine, or one line ends the command."""
    assert "Traceback" not in said
    if code:
        assert (code, said.count("\n"), said[:7]) == (1, 1, "error: ")
    else:
        store = open_labels(out)
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
            out = tmp_path / f"out{good}"
            code, _, said = command(*labelling(f"s3://bucket/in/{images}", words, out, "--max-bad", 1, *more))
        refused_or_named(code, said, out)
