"""Runs that are repeated or resumed, and folders that they are refused."""

import errno
import json
import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import ImageFile

from sea_pipeline import open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.execution import shard
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.verify import check_files
from tests.support.contents import content
from tests.support.refused import refused
from tests.support.world import ColourEncoder, Label, draw_folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_folder(tmp_path / "photos", 18)


def test_only_what_is_missing_is_done_again(label: Label, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels"
    label(images=str(photos))
    whole = content(out)
    (out / "commits" / "00001.json").unlink()
    (out / "labels" / "part-00003-of-00005.parquet").write_bytes(b"short")
    (out / "commits" / "00004.json").write_text("{half")
    (out / "manifest.json").unlink()
    again = label(images=str(photos))
    assert again.report.images == 4 + 4 + 2
    assert content(out) == whole


def test_images_that_moved_as_they_are_are_the_same(label: Label, photos: Path, tmp_path: Path) -> None:
    label(images=str(photos))
    assert label(images=str(photos.rename(tmp_path / "moved"))).report.images == 0


def test_a_passing_fault_costs_an_attempt(
    label: Label, encoder: ColourEncoder, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label(images=str(photos), out=tmp_path / "whole")
    plain, calls = encoder.patches, 0

    def once(pixels: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("a passing fault")
        return plain(pixels)

    monkeypatch.setattr(encoder, "patches", once)
    run = label(images=str(photos))
    assert not run.report.failed
    assert content(tmp_path / "labels") == content(tmp_path / "whole")
    assert json.loads((tmp_path / "labels" / "commits" / "00002.json").read_text())["attempt"] == 2
    assert "a passing fault" in (tmp_path / "labels" / "logs" / "00002-attempt-1.log").read_text()


def test_a_commit_names_the_packages_that_build_encoders(label: Label, photos: Path) -> None:
    """Those that are installed, next to the others; the fingerprint does not depend on them."""
    commit = next(label(images=str(photos)).ledger.commits())
    assert {"sea-pipeline", "torch", "pyarrow", "pillow", "numpy"} <= commit.versions.keys()
    packages = ("open_clip_torch", "timm", "transformers", "tokenizers")
    there = {name: version(name) for name in packages if find_spec(name.removesuffix("_torch"))}
    assert there
    assert {name: commit.versions[name] for name in packages if name in commit.versions} == there


def test_a_shard_that_fails_is_listed_and_the_others_are_done(
    label: Label, encoder: ColourEncoder, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, fail = encoder.patches, True

    def broken(pixels: torch.Tensor) -> torch.Tensor:
        if fail and len(pixels) == 2:  # only the last shard has two pictures
            raise RuntimeError("can't start new thread")
        return plain(pixels)

    monkeypatch.setattr(encoder, "patches", broken)
    run = label(images=str(photos))
    assert run.report.failed[4].startswith("RuntimeError: can't start new thread; ")
    assert "raise its limits (ulimit -v, ulimit -u)" in run.report.failed[4]
    assert run.report.images == 16
    with pytest.raises(ValueError, match="4 of 5 shards are done"):
        open_labels(tmp_path / "labels")
    fail = False
    assert label(images=str(photos)).report.images == 2
    assert len(open_labels(tmp_path / "labels")) == 18


NEVER = 1 << 30


def sick(monkeypatch: pytest.MonkeyPatch, times: dict[str, int], number: int = errno.EIO) -> None:
    """Files that cannot be read so many times, or NEVER, as on a disk with a sick sector."""
    plain, left = Path.read_bytes, dict(times)

    def read_bytes(path: Path) -> bytes:
        if left.get(path.name, 0) > 0:
            left[path.name] -= 1
            raise OSError(number, os.strerror(number), str(path))
        return plain(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    monkeypatch.setattr(shard, "_PAUSES", (0.0, 0.0))


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_an_image_that_can_never_be_read_does_not_fail_its_shard(
    label: Label, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    label(images=str(photos), out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        sick(patch, {"006.png": NEVER}, number)
        run = label(images=str(photos))
        assert (run.report.images, run.report.bad, run.report.failed) == (17, 1, {})
        (bad,) = open_labels(tmp_path / "labels").quarantine()
        assert (bad["image_id"], bad["stage"], bad["error"]) == ("006.png", "read", "OSError")
        assert bad["message"].endswith("; tried again and again; when it can be read, give --retry-bad")
        assert label(images=str(photos)).report.images == 0
    assert label(images=str(photos), retry_bad=True).report.failed == {}
    assert content(tmp_path / "labels") == content(tmp_path / "whole")


def test_a_fault_that_passes_makes_no_image_bad(label: Label, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one shard another image fails in each attempt, as on a network drive under load."""
    sick(monkeypatch, {"006.png": 1, "007.png": 2})
    run = label(images=str(photos))
    assert (run.report.images, run.report.bad, run.report.failed) == (18, 0, {})


def test_a_disk_that_reads_nothing_makes_no_image_bad(
    label: Label, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label(images=str(photos), out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        sick(patch, {path.name: NEVER for path in photos.rglob("*.png")})
        run = label(images=str(photos))
        assert (run.report.images, run.report.bad, list(run.report.failed)) == (0, 0, [0, 1, 2, 3, 4])
    label(images=str(photos))
    assert content(tmp_path / "labels") == content(tmp_path / "whole")


def test_a_labelled_image_that_cannot_be_read_now_lets_the_folder_go_on(
    label: Label, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label(images=str(photos))
    sick(monkeypatch, {"000.png": NEVER})  # the first of the first shard, by which a folder knows its images
    assert label(images=str(photos)).report.images == 0
    draw_folder(photos / "more", 3)
    assert label(images=str(photos), extend=True).report.images == 2  # more/000.png is sick, too


@pytest.mark.parametrize(
    "fault", [MemoryError(), RuntimeError("Pixel allocation failed: Out of memory")], ids=["pixels", "codec"]
)
def test_too_little_memory_makes_no_image_bad(
    label: Label, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    plain, faults = ImageFile.ImageFile.load, 100

    def load(image: ImageFile.ImageFile) -> Any:
        nonlocal faults
        faults -= 1
        if faults >= 0:
            raise fault
        return plain(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    failed = label(images=str(photos)).report
    assert (failed.images, failed.bad, len(failed.failed)) == (0, 0, 5)
    assert "Cannot allocate memory" in failed.failed[0]
    faults = 1
    run = label(images=str(photos))
    assert (run.report.images, run.report.bad) == (18, 0)
    assert list(open_labels(tmp_path / "labels").quarantine()) == []


def test_an_image_root_that_vanishes_stops_the_run(
    label: Label, encoder: ColourEncoder, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label(images=str(photos), out=tmp_path / "whole")
    plain = encoder.patches

    def unmount(pixels: torch.Tensor) -> torch.Tensor:
        if photos.exists():
            photos.rename(tmp_path / "unmounted")
        return plain(pixels)

    with monkeypatch.context() as patch:
        patch.setattr(encoder, "patches", unmount)
        with pytest.raises(UserError, match="photos: is gone; bring it back"):
            label(images=str(photos))
    (tmp_path / "unmounted").rename(photos)
    label(images=str(photos))
    assert content(tmp_path / "labels") == content(tmp_path / "whole")


def test_mended_input_is_read_again(label: Label, photos: Path, tmp_path: Path) -> None:
    """A run with the wrong image root stops; with the right one the same folder finishes."""
    data = tmp_path / "data.json"
    ids = [str(path.relative_to(photos)) for path in photos.rglob("*.png")]
    data.write_text(json.dumps([{"image": image_id, "conversations": []} for image_id in ids]))
    with refused(match=r"4 fail in read: FileNotFoundError, such as .*nowhere/000\.png.* --image-root, "):
        (tmp_path / "nowhere").mkdir()
        label(images=str(data), image_root=tmp_path / "nowhere")
    assert label(images=str(data), image_root=photos).report.images == 18
    label(images=str(photos), out=tmp_path / "whole")
    found, expected = content(tmp_path / "labels"), content(tmp_path / "whole")
    assert {name for name in found if found[name] != expected.get(name)} == {"dataset.json"}  # another source
    assert check_files(Ledger.open(tmp_path / "labels")).problems == []


def test_mostly_broken_input_stops_the_run_and_nothing_is_lost(label: Label, photos: Path, tmp_path: Path) -> None:
    for number in (0, 3, 6, 9, 12, 15):
        (photos / f"{number:03d}.png").write_bytes(b"broken")
    with refused(
        "4 fail in decode: UnidentifiedImageError, such as",
        "mend the input, or give a larger --max-bad, and run the command again",
        match=r"4 of 18 images are bad so far, more than --max-bad 0\.01 allows",
    ):
        label(images=str(photos))
    with pytest.raises(ValueError, match="shards are done"):
        open_labels(tmp_path / "labels")
    run = label(images=str(photos), max_bad=0.5)
    store = open_labels(tmp_path / "labels")
    assert len(store) == 12
    assert run.report.bad == 6
    assert [bad["image_id"] for bad in store.quarantine()] == [f"{n:03d}.png" for n in (0, 3, 6, 9, 12, 15)]


def test_images_without_rights_are_a_matter_of_rights_first(
    label: Label, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sick(monkeypatch, {path.name: NEVER for path in photos.rglob("*.png")}, errno.EACCES)
    with refused(match=r"4 fail in read: PermissionError, .*; get the right to read them, or mend the input, or give"):
        label(images=str(photos))


def test_max_bad_0_allows_none_and_needs_no_example(
    label: Label, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may take the shards of bad images back meanwhile."""
    (photos / "003.png").write_bytes(b"")
    monkeypatch.setattr(Ledger, "quarantined", lambda _: iter(()))
    said = r"1 of 18 images are bad so far.*; 1 fail in read: EmptyFile; see all with sea-pipeline status"
    with pytest.raises(UserError, match=said):
        label(images=str(photos), max_bad=0)


def test_one_bad_image_never_stops_a_small_run_and_is_in_a_table(label: Label, photos: Path, tmp_path: Path) -> None:
    (photos / "003.png").write_bytes(b"")
    assert label(images=str(photos)).report.bad == 1
    assert len(open_labels(tmp_path / "labels")) == 17
    (table,) = (pq.read_table(path) for path in (tmp_path / "labels" / "quarantine").iterdir())
    assert table.column_names == ["image_id", "uri", "stage", "error", "message", "image_sha256"]
    assert check_files(Ledger.open(tmp_path / "labels")).problems == []
