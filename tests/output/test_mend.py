"""A damaged folder of labels is brought back by the line that names the damage, followed to the letter."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sea_pipeline import open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.execution.dispatch import StageRun
from sea_pipeline.output import mend
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.plan import read_plan, write_plan
from sea_pipeline.output.verify import check_files
from sea_pipeline.storage import publish
from sea_pipeline.storage.paths import place
from tests.support.contents import content, rows, stored
from tests.support.damage import DAMAGE, OTHERS, Harm, changed, closed, flip, made_a_folder, unreadable
from tests.support.kills import killed_around
from tests.support.refused import refused
from tests.support.world import ColourEncoder, Label, Shelved, draw_but_one, draw_folder

LATER = "another version"
"""The one damage that no run mends: it may be a later program's."""
READ = [
    "dataset.json", "plan.parquet", "words.txt", "words.parquet", "manifest.json", "commits/00001.json",
    "labels/part-00001-of-00003.parquet",
]  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_but_one(tmp_path / "photos", 9)


@pytest.fixture
def whole(label: Label, photos: Path, tmp_path: Path) -> dict[str, bytes]:
    label(images=str(photos))
    return content(tmp_path / "labels")


def follow(advice: str, run: Callable[[], object]) -> None:
    """Does what a line says: removes the file or folder that it names, if it says so, and runs the command again."""
    named = Path(advice.split(": ")[0])
    if "; remove it, and run" in advice:
        shutil.rmtree(named) if named.is_dir() else named.unlink()
    elif "or delete it and run" in advice:
        named.unlink()
    else:
        assert "or run the command that made the folder again" in advice, advice
    run()


def another_plan(path: Path) -> None:
    """Whole, and of fewer images."""
    write_plan(path, list(read_plan(path))[:4], 4)


MENDED = [(name, what, harm) for name, what, harm in DAMAGE if what != LATER]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "what", "harm"), MENDED, ids=[f"{name}: {what}" for name, what, _ in MENDED])
def test_the_advice_brings_back_what_is_damaged(
    label: Label, shelved: Shelved, tmp_path: Path, name: str, what: str, harm: Harm
) -> None:
    photos, whole = shelved(9) / "photos", content(shelved(9) / "labels")
    out = shutil.copytree(shelved(9) / "labels", tmp_path / "labels")
    harm(out / name)
    with pytest.raises(UserError) as found:
        open_labels(out)
    runs: list[StageRun] = []
    follow(str(found.value), lambda: runs.append(label(images=str(photos))))
    if not name.startswith(("commits", "labels", "quarantine")):  # without a manifest, a bad image is read again
        assert runs[0].report.images in ((0, 3) if name == "manifest.json" else (0,))
    assert check_files(Ledger.open(out)).problems == []
    assert len(open_labels(out)) == 8
    assert content(out) == whole
    assert label(images=str(photos)).report.images == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "number", "advice"),
    [
        *((name, errno.EACCES, "give this user the right to read it") for name in READ),
        *((name, errno.EACCES, "give this user the right to read it") for name in ("labels", "commits", ".")),
        ("plan.parquet", errno.EIO, "run the same command again later; if it stays so, restore it from a copy"),
    ],
)
def test_a_file_that_cannot_be_read_is_not_taken_for_damaged(
    label: Label, shelved: Shelved, tmp_path: Path, name: str, number: int, advice: str
) -> None:
    photos, whole = shelved(9) / "photos", content(shelved(9) / "labels")
    out = shutil.copytree(shelved(9) / "labels", tmp_path / "labels")
    for act in (lambda: open_labels(out), lambda: label(images=str(photos))):
        harm = closed(out / name) if (out / name).is_dir() else unreadable(out / name, number)
        with harm, pytest.raises(UserError) as found:
            act()
        assert str(found.value) == f"{out / name}: cannot be read: {os.strerror(number)}; {advice}"
    assert label(images=str(photos)).report.images == 0, "as the message advises"
    assert content(out) == whole


@pytest.mark.slow
@pytest.mark.parametrize("what", [what for what in OTHERS if not what.endswith(("folder", "a file"))])
def test_without_a_manifest_it_is_the_same(label: Label, shelved: Shelved, tmp_path: Path, what: str) -> None:
    photos, whole = shelved(9) / "photos", content(shelved(9) / "labels")
    out = shutil.copytree(shelved(9) / "labels", tmp_path / "labels")
    (out / "manifest.json").unlink()
    name, harm = OTHERS[what]
    harm(out / name)
    label(images=str(photos))
    assert content(out) == whole


def test_a_shard_with_a_flipped_bit_is_labelled_again(
    label: Label, photos: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """Its size, and here its time, are as they were."""
    shard = tmp_path / "labels" / "labels" / "part-00001-of-00003.parquet"
    then = shard.stat()
    for offset in (4, shard.stat().st_size // 2, shard.stat().st_size - 5):
        flip(shard, offset)
        os.utime(shard, ns=(then.st_atime_ns, then.st_mtime_ns))
        assert label(images=str(photos)).report.images == 4
        assert content(tmp_path / "labels") == whole


def test_what_is_done_again_is_told(command: Any, photos: Path, words: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels"
    asked = ("label", "--images", photos, "--wordlist", words, "--top-n", 3, "--shard-size", 4, "--out", out)
    assert command(*asked)[0] == 0
    flip(out / "labels" / "part-00002-of-00003.parquet", 99)
    (out / "manifest.json").write_text("{")
    code, _, said = command(*asked)
    assert code == 0
    assert "part-00002-of-00003.parquet: damaged: expected sha256" in said
    assert "; shard 2 is done again" in said
    assert "manifest.json: damaged: expected a JSON object" in said
    assert "shard" not in command(*asked)[2]
    assert command("verify", out)[0] == 0


def test_several_at_once(label: Label, photos: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "labels"
    for name in ("words.parquet", "plan.parquet", "words.txt", "manifest.json", "dataset.json"):
        (out / name).unlink()
    (out / "commits" / "00002.json").write_bytes(b"")
    assert label(images=str(photos)).report.images == 1 + 3  # without a manifest, a shard with bad images, too
    assert content(out) == whole


@pytest.mark.slow
@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(b"MM" + path.read_bytes()[2:]),
        lambda path: flip(path, 60),
        another_plan,
        Path.unlink,
    ],
    ids=["begin", "bit", "another", "gone"],
)
def test_a_plan_that_is_damaged_is_not_taken_up_with_a_lost_dataset(
    label: Label, photos: Path, whole: dict[str, bytes], tmp_path: Path, harm: Harm
) -> None:
    out = tmp_path / "labels"
    (out / "dataset.json").write_bytes(b"")
    harm(out / "plan.parquet")
    label(images=str(photos))
    assert content(out) == whole
    (out / "dataset.json").unlink()
    made_a_folder(out / "plan.parquet")
    with pytest.raises(UserError, match=r"plan.parquet: expected a file; found a folder; remove it, and run") as found:
        label(images=str(photos))
    follow(str(found.value), lambda: label(images=str(photos)))
    assert content(out) == whole


@pytest.mark.slow
def test_a_kill_at_any_step_of_mending_loses_nothing(
    label: Label, photos: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """Word list, plan, dataset.json, then the shard with its quarantine and commit, words.parquet, the manifest."""
    kept = shutil.copytree(tmp_path / "labels", tmp_path / "kept")
    for before in (True, False):
        for call in range(1, 9):
            out = tmp_path / "labels"
            shutil.rmtree(out)
            shutil.copytree(kept, out)
            for name in ("words.parquet", "words.txt", "plan.parquet", "dataset.json"):
                (out / name).unlink()
            flip(out / "labels" / "part-00000-of-00003.parquet", 70)
            with killed_around(publish, "_put_in_place", call, before=before):
                label(images=str(photos))
            label(images=str(photos))
            assert content(out) == whole


def test_a_folder_of_another_run_is_not_taken_over(label: Label, photos: Path, whole: object, tmp_path: Path) -> None:
    out = tmp_path / "labels"
    (out / "dataset.json").unlink()
    with pytest.raises(UserError, match=r"expected an empty folder or one that sea-pipeline began; found 'commits'"):
        label(images=str(photos), top_n=2)
    with pytest.raises(UserError, match="found 'commits'"):
        label(images=str(photos), shard_size=3)
    assert not (out / "dataset.json").exists()
    changed(tmp_path / "labels" / "commits" / "00001.json", "finished", value="never")
    label(images=str(photos))
    assert len(open_labels(out)) == 8


def test_a_folder_without_dataset_and_commits_is_begun_anew_by_its_own_run(
    label: Label, photos: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    (out / "dataset.json").unlink()
    shutil.rmtree(out / "commits")
    with pytest.raises(UserError, match="found 'labels'"):
        label(images=str(photos), top_n=2)
    label(images=str(photos))
    assert content(out) == whole
    (out / "dataset.json").unlink()
    shutil.rmtree(out / "labels")
    label(images=str(photos))
    assert content(out) == whole
    for name in ("dataset.json", "manifest.json"):
        (out / name).unlink()
    shutil.rmtree(out / "commits")
    draw_folder(photos / "z", 6, seed=3)
    with pytest.raises(UserError, match="found 'labels'"):
        label(images=str(photos))


def test_the_dataset_of_another_run_is_told_from_another_run(
    label: Label, photos: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = shutil.move(tmp_path / "labels", tmp_path / "kept")
    label(images=str(photos), top_n=2)
    other = (tmp_path / "labels" / "dataset.json").read_bytes()
    with refused(match=r"holds another run; choose another --out\. Differing: top_n: 2 there, 3 asked for"):
        label(images=str(photos))
    shutil.rmtree(tmp_path / "labels")
    shutil.move(out, tmp_path / "labels")
    (tmp_path / "labels" / "dataset.json").write_bytes(other)
    with pytest.raises(
        UserError, match=r"dataset\.json: damaged: fingerprint: expected \w+…, as the commits say"
    ) as found:
        label(images=str(photos))
    follow(str(found.value), lambda: label(images=str(photos)))
    assert content(tmp_path / "labels") == whole


def test_a_folder_of_a_later_version_is_left_alone(label: Label, photos: Path, whole: object, tmp_path: Path) -> None:
    path = tmp_path / "labels" / "dataset.json"
    for key, value in (("schema_version", 3), ("a later key", 1)):
        held = path.read_bytes()
        changed(path, key, value=value)
        later = path.read_bytes()
        with refused(match=r"dataset\.json: (expected schema version 1 or 2, found 3|damaged, or written by)"):
            label(images=str(photos))
        assert path.read_bytes() == later
        path.write_bytes(held)


@pytest.mark.slow
def test_an_extended_folder_is_mended(label: Label, photos: Path, whole: object, tmp_path: Path) -> None:
    out = tmp_path / "labels"
    draw_folder(photos / "z", 6, seed=3)
    label(images=str(photos), extend=True)
    draw_folder(photos / "y", 3, seed=4)
    label(images=str(photos), extend=True)
    kept, wanted = shutil.copytree(out, tmp_path / "kept"), content(out) | {"plans": plans(out)}
    for names in (
        ("plan.parquet",), ("plan-00001.parquet",), ("plan-00002.parquet", "words.txt"), ("dataset.json",),
        ("dataset.json", "manifest.json"), ("dataset.json", "manifest.json", "words.txt", "words.parquet"),
    ):  # fmt: skip
        shutil.rmtree(out)
        shutil.copytree(kept, out)
        for name in names:
            (out / name).unlink()
        with pytest.raises(UserError, match="|".join(names)):
            open_labels(out)
        again = label(images=str(photos)).report.images
        assert again == (
            3 if "manifest.json" in names else 0
        )  # the shard with a bad image was accepted by the manifest
        assert content(out) | {"plans": plans(out)} == wanted
        assert len(rows(open_labels(out))) == 17
    for name in ("plan.parquet", "plan-00001.parquet"):
        (out / name).unlink()
    with pytest.raises(UserError, match=r"plan\.parquet: expected a file.*restore it, or give the very images"):
        label(images=str(photos))


def plans(out: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(out.glob("plan*")))


def test_only_its_own_shards_are_looked_at_by_one_of_many(
    label: Label, photos: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    look = mend._damage
    monkeypatch.setattr(mend, "_damage", lambda ledger, shard: (seen.append(shard), look(ledger, shard))[1])
    flip(tmp_path / "labels" / "labels" / "part-00002-of-00003.parquet", 50)
    label(images=str(photos), crew={"shard_range": "1/3"})
    assert seen == [0]
    label(images=str(photos), crew={"shard_range": "3/3"})
    assert content(tmp_path / "labels") == whole


def test_a_store_elsewhere_is_mended(label: Label, photos: Path, empty_memory: None) -> None:
    label(images=str(photos), out="memory://x")
    wanted = stored("memory://x")
    root = place("memory://x")
    for name in ("words.parquet", "plan.parquet", "dataset.json", "commits/00001.json", "quarantine/00000.parquet"):
        (root / name).unlink()
        with pytest.raises(UserError, match=name.replace("/", ".")):
            open_labels("memory://x")
        label(images=str(photos), out="memory://x")
        assert stored("memory://x") == wanted
    assert len(open_labels("memory://x")) == 8


def test_a_folder_in_a_files_place_stops_the_run_before_it_works(
    label: Label, photos: Path, whole: object, tmp_path: Path, encoder: ColourEncoder
) -> None:
    made_a_folder(tmp_path / "labels" / "words.parquet")
    encoder.patches = None  # type: ignore[method-assign,assignment]  # must not be called
    with pytest.raises(UserError, match=r"words\.parquet: expected a file; found a folder; remove it, and run"):
        label(images=str(photos))
    assert (tmp_path / "labels" / "words.parquet" / "notes").read_text() == "of mine"
