"""What is advised of an output folder that is not damaged, followed to the letter: it ends with a folder that opens."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from sea_pipeline import open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.execution.driver import Driver
from sea_pipeline.execution.local import run
from sea_pipeline.inputs.sources import list_samples
from sea_pipeline.labels.stage import LabelStage
from sea_pipeline.output.folder import MANIFEST
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.verify import check_files
from sea_pipeline.storage.publish import publish_folder
from tests.support.contents import stored
from tests.support.photo_forms import (
    Photos,
    copy_to,
    photos_in,
    write_dataset,
    write_parquet,
    write_tar,
    write_tars,
)
from tests.support.refused import ran, refused
from tests.support.worker_world import PlantedStage, planted_ledger
from tests.support.world import ColourEncoder, Label, draw_folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_folder(tmp_path / "photos", 9)


def _words(photos: Path, encoder: ColourEncoder) -> dict[str, Any]:
    (photos.parent / "short.txt").write_text("red\ngreen\nblue")
    return {"wordlist": str(photos.parent / "short.txt")}


def _encoder(photos: Path, encoder: ColourEncoder) -> dict[str, Any]:
    encoder.version = "2"
    return {}


def _other_images(photos: Path, encoder: ColourEncoder) -> dict[str, Any]:
    return {"images": str(draw_folder(photos.parent / "others" / "photos", 9, seed=5))}


def _more_images(photos: Path, encoder: ColourEncoder) -> dict[str, Any]:
    draw_folder(photos / "more", 2)
    return {}


def _fewer_images(photos: Path, encoder: ColourEncoder) -> dict[str, Any]:
    (photos / "000.png").unlink()
    return {}


def _a_stranger(photos: Path, encoder: ColourEncoder) -> dict[str, Any]:
    shutil.rmtree(photos.parent / "labels")
    (photos.parent / "labels").mkdir()
    (photos.parent / "labels" / "thesis.tex").write_text("")
    return {}


def _another_place(photos: Path, encoder: ColourEncoder) -> dict[str, Any]:
    return {"images": str(write_tars(photos.parent / "tars", photos_in(photos), 2))}


OTHERS = "holds another run; choose another --out. Differing: "


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda *_: {"top_n": 2}, f"{OTHERS}top_n: 3 there, 2 asked for"),
        (lambda *_: {"shard_size": 5}, f"{OTHERS}shard_size: 4 there, 5 asked for"),
        (lambda *_: {"limit": 7}, f"{OTHERS}images that are gone: 2 (such as "),
        (_words, "wordlist.words: 8 there, 3 asked for"),
        (_encoder, f'{OTHERS}encoder.version: "1" there, "2" asked for'),
        (_fewer_images, f"{OTHERS}images that are gone: 1 (such as '000.png')"),
        (_other_images, "was another one when this folder was begun"),
        (_more_images, "was begun with less: new images: 2"),
        (_a_stranger, "expected an empty folder or one that sea-pipeline began; found 'thesis.tex' in it"),
        (_another_place, "was at another place of its input"),
    ],
    ids=["top_n", "shard_size", "limit", "words", "encoder", "fewer", "other", "more", "stranger", "place"],
)
def test_another_run_is_refused_and_another_out_is_chosen(
    label: Label, encoder: ColourEncoder, photos: Path, tmp_path: Path, change: Callable[..., Any], expected: str
) -> None:
    label(images=str(photos))
    asked = {"images": str(photos)} | change(photos, encoder)
    held = stored(str(tmp_path / "labels"))
    with refused(expected, match="choose another --out"):
        label(**asked)
    assert stored(str(tmp_path / "labels")) == held
    made = label(**asked, out=tmp_path / "another").ledger.root
    assert len(open_labels(made)) >= 7
    assert check_files(Ledger.open(made)).problems == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "extend"),
    [("folder", False), ("folder", True), ("list", True), ("tars", True), ("tar", True), ("limit", False),
     ("unfinished", True)],
)  # fmt: skip
def test_labels_of_the_images_that_are_left_are_selected(
    label: Label, encoder: ColourEncoder, command: Any, photos: Path, tmp_path: Path, form: str, extend: bool
) -> None:
    """Nothing is promised of a tar that is written anew, --limit and a folder that is not finished."""
    held, made = photos_in(photos), tmp_path / "my labels"
    asked: dict[str, Any] = {"images": str(photos), "out": made}
    if form == "list":
        asked = {"images": str(tmp_path / "x.txt"), "image_root": str(photos), "out": made}
        (tmp_path / "x.txt").write_text("\n".join(held))
    elif form.startswith("tar"):
        asked = {"images": str(tmp_path / form), "out": made}
        write_tars(tmp_path / form, held, 3 if form == "tars" else 1)
    ids = set(open_labels(label(**asked).ledger.root).ids)
    if form == "list":
        (tmp_path / "x.txt").write_text("\n".join(list(held)[2:]))
    elif form == "tars":
        min((tmp_path / form).iterdir()).unlink()
    elif form == "tar":
        write_tars(tmp_path / form, dict(list(held.items())[2:]), 1)
    elif form == "limit":
        asked["limit"] = 5
    else:
        (photos / "000.png").unlink()
    if form == "unfinished":
        (made / MANIFEST).unlink()
        next((made / "commits").iterdir()).unlink()
    with pytest.raises(UserError, match=r"choose another --out.*images that are gone") as caught:
        label(**asked, extend=extend)
    line = str(caught.value)
    assert ("select" in line) == (form in {"folder", "list", "tars"})
    if "select" in line:
        found = re.search(r"run sea-pipeline (select .*) NEW, and then the same command with --extend --out NEW", line)
        assert found
        left = {sample.image_id for sample in list_samples(asked["images"], asked.get("image_root")).samples} & ids
        (tmp_path / "ids.txt").write_text("".join(f"{one}\n" for one in left))
        words = [word.replace("ids.txt", str(tmp_path / "ids.txt")) for word in shlex.split(found[1])]
        ran(command, *words, tmp_path / "NEW")
        encoder.patches = None  # type: ignore[method-assign,assignment]  # must not be called
        assert label(**asked | {"out": tmp_path / "NEW"}, extend=True).report.images == 0
        assert set(open_labels(tmp_path / "NEW").ids) == left < ids


@pytest.mark.slow
@pytest.mark.parametrize("form", ["tar", "parquet", "hf", "s3"])
def test_an_input_that_changes_during_a_run_is_put_back(
    label: Label, encoder: ColourEncoder, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """Of the same size, with the images in another order."""
    held, place, labels = photos_in(photos), tmp_path / "in", tmp_path / "labels"
    images = {"tar": f"{place}/x.tar", "parquet": f"{place}/x.parquet", "hf": f"hf:{place}/x:train"}.get(form, "")
    if form == "s3":
        request.getfixturevalue("s3")
        images = f"s3://bucket/{tmp_path.name}/x.tar"

    def write(photos: Photos) -> None:
        shutil.rmtree(place, ignore_errors=True)
        if form == "parquet":
            write_parquet(place / "x.parquet", photos, group=2)
        elif form == "hf":
            cells = [{"bytes": data, "path": name} for name, data in photos.items()]
            write_dataset(place / "x", train={"image_id": list(photos), "image": cells})
        else:
            write_tar(place / "x.tar", photos)
        if form == "s3":
            copy_to(f"s3://bucket/{tmp_path.name}", place)

    def changing(pixels: torch.Tensor) -> torch.Tensor:
        if any(labels.glob("commits/*")):
            write(dict(reversed(held.items())))
        return type(encoder).patches(encoder, pixels)

    write(held)
    with monkeypatch.context() as patch, refused("has changed since this run listed it", match="finished shards"):
        patch.setattr(encoder, "patches", changing, raising=False)
        label(images=images)
    assert [path.name for path in sorted(labels.glob("commits/*"))] == ["00000.json"]
    write(held)
    label(images=images)
    assert label(images=str(photos), out=tmp_path / "whole").ledger.complete
    found, expected = (open_labels(folder) for folder in (labels, tmp_path / "whole"))
    assert all((found[name].word_ids == expected[name].word_ids).all() for name in held)


def test_what_a_killed_run_without_a_lock_left_is_deleted(label: Label, photos: Path, empty_memory: None) -> None:
    store = fsspec.filesystem("memory")
    store.pipe_file("/x/words.txt", b"of a killed run\n")
    with pytest.raises(UserError, match=r"words\.txt: another run with other settings.*or delete the file if no"):
        label(images=str(photos), out="memory://x")
    store.rm_file("/x/words.txt")
    label(images=str(photos), out="memory://x")
    assert len(open_labels("memory://x")) == 9
    draw_folder(photos / "a" / "later", 1, seed=8)
    before = store.cat_file("/x/dataset.json")
    label(images=str(photos), out="memory://x", extend=True)
    store.pipe_file("/x/dataset.json", before)  # as if it had been killed before that
    shutil.rmtree(photos / "a" / "later")
    draw_folder(photos / "b" / "later", 2, seed=9)
    with pytest.raises(UserError, match=r"plan-00001\.parquet: another run extends this folder.*or delete the file"):
        label(images=str(photos), out="memory://x", extend=True)
    assert store.cat_file("/x/dataset.json") == before
    store.rm_file("/x/plan-00001.parquet")
    label(images=str(photos), out="memory://x", extend=True)
    assert len(open_labels("memory://x")) == 11


def test_an_unfinished_folder_is_finished(command: Any, label: Label, photos: Path, tmp_path: Path) -> None:
    label(images=str(photos))
    out = tmp_path / "labels"
    (out / "manifest.json").unlink()
    (out / "commits" / "00001.json").unlink()
    with pytest.raises(UserError, match=r"2 of 3 shards are done; run the same `label` command again"):
        open_labels(out)
    assert "labels, not finished; run the same `label` command again" in command("status", out)[1]
    (out / "commits" / "00001.json").unlink(missing_ok=True)
    assert label(images=str(photos)).report.images == 4
    (out / "manifest.json").unlink()
    assert "as written; not finished yet: run the same `label` command again" in command("verify", out)[1]
    label(images=str(photos))
    assert len(open_labels(out)) == 9


def test_shards_that_another_run_took_back_are_done_again(
    label: Label, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = LabelStage.finish

    def takes_back(stage: LabelStage, ledger: Ledger) -> Any:
        written = finish(stage, ledger)
        ledger.commit_path(0).unlink()
        return written

    with monkeypatch.context() as patch:
        patch.setattr(LabelStage, "finish", takes_back)
        with pytest.raises(UserError, match="another run takes shards back at the same time; run the command again"):
            label(images=str(photos))
    assert label(images=str(photos)).report.images == 4
    assert len(open_labels(tmp_path / "labels")) == 9


def test_what_a_worker_could_not_finish_is_finished(tmp_path: Path) -> None:
    class Pool:
        idle = True

        def give(self, *_: object) -> str:
            return "worker"

        def news(self) -> list[tuple[str, dict[str, str]]]:
            return [("worker", {"failed": "OSError: the disk is gone"})]

    ledger = planted_ledger(tmp_path / "out", images=6)
    stage = PlantedStage(tmp_path / "faults")
    run(ledger, stage, max_bad=1, shards=range(2))
    with pytest.raises(UserError, match="cannot be finished: OSError: the disk is gone; run the same command again"):
        Driver(Pool(), ledger, max_bad=1)._finish()  # type: ignore[arg-type]
    run(ledger, stage, max_bad=1)
    assert ledger.complete
    assert check_files(ledger).problems == []


def test_a_folder_that_is_full_is_removed_or_another_one_chosen(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("")
    with pytest.raises(UserError, match="choose another with --out, or remove this one"), publish_folder(full):
        pass
    for way in (tmp_path / "another", full):
        shutil.rmtree(way, ignore_errors=True)
        with publish_folder(way) as scratch:
            (scratch / "made").write_text("")
        assert [path.name for path in way.iterdir()] == ["made"]


def test_a_plan_of_other_images_is_not_written_again_and_its_own_are_given(
    label: Label, photos: Path, tmp_path: Path
) -> None:
    label(images=str(photos))
    out = tmp_path / "labels"
    held = (out / "plan.parquet").read_bytes()
    (out / "plan.parquet").unlink()
    draw_folder(photos / "more", 2)
    said = r"plan\.parquet: expected a file.*; restore it, or give the very images that .*, or choose another --out"
    for extend in (False, True):
        with pytest.raises(UserError, match=said):
            label(images=str(photos), extend=extend)
    with pytest.raises(UserError, match=r"plan\.parquet: expected a file"):
        label(images=str(photos), top_n=2)
    assert len(open_labels(label(images=str(photos), out=tmp_path / "another").ledger.root)) == 11
    (out / "plan.parquet").write_bytes(held)
    assert len(open_labels(out)) == 9
    (out / "plan.parquet").unlink()
    shutil.rmtree(photos / "more")
    label(images=str(photos))
    assert (out / "plan.parquet").read_bytes() == held
    assert len(open_labels(out)) == 9
