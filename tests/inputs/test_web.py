"""Inputs over HTTP whose server refuses or breaks off: the image is named, or the input in one line."""

from pathlib import Path
from typing import Any

import pytest

from sea_pipeline import open_labels
from tests.fuzz.web import Faults, served
from tests.support.photo_forms import copy_to, failing_s3, photos_in, write_list, write_parquet, write_tars
from tests.support.world import draw_folder

pytestmark = pytest.mark.usefixtures("no_long_waits")
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
