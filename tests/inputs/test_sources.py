"""Every source of the same photos gives the same labels, whole or interrupted."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sea_pipeline import open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.sources import list_samples, open_source
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.report.figures import photo_of
from tests.support.contents import content
from tests.support.photo_forms import Photos, copy_to, failing_s3, photos_in, write_list, write_parquet, write_tars
from tests.support.programs import Begin, labelling
from tests.support.refused import refused
from tests.support.world import BATCHES, Label, draw_folder

pytestmark = pytest.mark.usefixtures("no_long_waits")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve photos, one of them with what URLs and shells take for special in its name, and a bad one."""
    folder = draw_folder(tmp_path / "photos", 11)
    (folder / "a" / "004.png").rename(folder / "a" / "ü ::#%41?*[0].png")
    (folder / "b" / "zzz.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def said() -> dict[str, Any]:
    return {}


@pytest.fixture
def whole(label: Label, folder: Path, tmp_path: Path, said: dict[str, Any]) -> dict[str, Any]:
    """What the labels of the folder say; they are made once."""
    if not said:
        label(images=str(folder), out=tmp_path / "whole", max_bad=0.5)
        said |= rows(tmp_path / "whole")
    return said


def rows(folder: Path) -> dict[str, Any]:
    """What labels say, but for where the images were."""
    store = open_labels(folder)
    labels = {row["image_id"]: row for table in store.tables() for row in table.drop_columns("uri").to_pylist()}
    bad = {row["image_id"]: (row["stage"], row["error"], row["image_sha256"]) for row in store.quarantine()}
    return {"order": store.ids, "labels": labels, "bad": bad}


def form(name: str, folder: Path, place: Path) -> dict[str, Any]:
    """The settings that label the photos of `folder` in another form, written below `place`."""
    photos = photos_in(folder)
    place.mkdir(exist_ok=True)
    llava = [{"image": name, "conversations": []} for name in reversed(photos)]
    if name == "folder":
        return {"images": str(folder)}
    if name == "json":
        (place / "data.json").write_text(json.dumps(llava))
        return {"images": str(place / "data.json"), "image_root": folder}
    if name == "jsonl":
        (folder / "data.jsonl").write_text("\n".join(map(json.dumps, llava)))
        return {"images": str(folder / "data.jsonl")}
    if name in ("csv", "tsv"):
        listed = write_list(place / f"list.{name}", [{"n": "1", "path": name} for name in photos])
        return {"images": str(listed), "image_root": str(folder)}
    if name == "txt":
        (folder / "list.txt").write_text("\n".join(photos) + "\n\n")
        return {"images": f"file://{folder}/list.txt"}
    if name == "csv of ids":
        rows = [{"id": name, "image": f"{folder}/{name}"} for name in photos]
        return {"images": str(write_list(folder / "ids.csv", rows))}
    if name == "parquet list":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"uri": list(photos), "vector": [[1.0]] * len(photos)}), folder / "list.parquet")
        return {"images": str(folder / "list.parquet")}
    return container(name, photos, place)


def container(name: str, photos: Photos, place: Path) -> dict[str, Any]:
    names = list(photos)
    if name == "tar":
        return {"images": str(write_tars(place, photos, 1) / "photos-000.tar")}
    if name.startswith("tars"):
        pattern = {"tars": "", "tars *": "/*.tar", "tars {}": "/photos-{000..002}.tar"}[name]
        return {"images": f"{write_tars(place / 'tars', photos)}{pattern}"}
    if name == "parquet":
        return {"images": str(write_parquet(place / "photos.parquet", photos))}
    if name == "parquet paths":
        return {"images": str(write_parquet(place / "photos.parquet", photos, caption=["same"] * len(photos)))}
    if name == "binary parquets":
        for part in range(2):
            some = {name: photos[name] for name in names[part::2]}
            write_parquet(place / "tables" / f"{part}.parquet", some, plain=True, key=list(some))
        return {"images": f"{place}/tables", "id_column": "key"}
    import datasets

    features = datasets.Features({"pixels": datasets.Image(), "image_id": datasets.Value("string")})
    cells = [{"bytes": data, "path": None} for data in photos.values()]
    table = datasets.Dataset.from_dict({"pixels": cells, "image_id": names}, features=features)
    split = datasets.DatasetDict({"validation": table, "train": table.select([0])})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", place / "cache")
        if name == "hf parquet stream":
            write_parquet(place / "loadable" / "train.parquet", photos)
            return {"images": f"hf:{place}/loadable", "streaming": True}
        split.save_to_disk(place / "saved:here")
    return {"images": f"hf:{place}/saved:here:validation", "streaming": name == "hf stream"}


FORMS = {
    "": (
        "json", "csv of ids", "tsv", "txt", "parquet list", "tar", "tars *", "parquet paths", "hf", "hf stream",
        "hf parquet stream",
    ),
    "memory://": ("csv", "tars {}", "binary parquets"),
    "s3://bucket": ("folder", "jsonl", "tars", "parquet"),
}  # fmt: skip
"""Forms by where they lie."""


@pytest.mark.slow
@pytest.mark.parametrize(("protocol", "name"), [(protocol, name) for protocol in FORMS for name in FORMS[protocol]])
def test_every_form_gives_the_same_rows(
    label: Label, folder: Path, whole: dict[str, Any], tmp_path: Path, s3: str, protocol: str, name: str
) -> None:
    asked = form(name, folder, folder if name == "csv" else tmp_path / "forms")
    if protocol:
        url = f"{protocol}/{name.replace(' ', '_').replace('{}', 'x')}"
        for place in filter(Path.is_dir, (folder, tmp_path / "forms")):
            copy_to(url, place)
            asked |= {key: value.replace(str(place), url) for key, value in asked.items() if isinstance(value, str)}
    run = label(**asked, max_bad=0.5)
    assert rows(tmp_path / "labels") == whole
    assert len(whole["labels"]) == 11
    again = label(**asked, max_bad=0.5, retry_bad=True)  # what reopens is what was recorded
    assert (again.report.images + again.report.bad, run.report.bad) == (4, 1)
    store = open_labels(tmp_path / "labels")
    source = open_source(store.image_root)
    for image_id, data in photos_in(folder).items():
        if image_id in store:
            assert source.read(store.uri(image_id)) == data
            assert photo_of(store, image_id)
    assert not protocol or url in (tmp_path / "labels" / "dataset.json").read_text()


def test_a_killed_run_goes_on_from_where_it_was(
    label: Label, tmp_path: Path, words: Path, program: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a stream, which has to be read from its beginning again."""
    monkeypatch.setenv(BATCHES, "6")
    settings = container("hf stream", photos_in(draw_folder(tmp_path / "photos", 24)), tmp_path)
    label(**settings, out=tmp_path / "whole", shard_size=2)
    process = program(*labelling(settings["images"], words, tmp_path / "labels", "--shard-size", 2, "--streaming"))
    commits = tmp_path / "labels" / "commits"
    while not (commits.is_dir() and len(list(commits.iterdir())) > 2):
        assert process.returncode is None
        time.sleep(0.002)
    process.signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "labels" / "manifest.json").exists()
    left = len(Ledger.open(tmp_path / "labels").missing())
    assert 0 < left < 12
    assert label(**settings, shard_size=2).report.images == 2 * left
    assert content(tmp_path / "labels") == content(tmp_path / "whole")
    assert not list((tmp_path / "labels" / ".tmp").iterdir())


def test_a_service_that_fails_for_a_while_costs_nothing_and_one_that_goes_on_fails_shards(
    label: Label, folder: Path, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_to("s3://bucket/fails", folder)
    label(images="s3://bucket/fails", out=tmp_path / "whole", max_bad=0.5)
    with failing_s3(monkeypatch, s3, 500, faults=2) as proxy:
        run = label(images="s3://bucket/fails", max_bad=0.5)
    assert len(proxy.asked) == 12
    assert min(proxy.asked.values()) == 3
    assert (run.report.images, run.report.bad, run.report.failed) == (11, 1, {})
    assert {commit.attempt for commit in run.ledger.commits()} == {1}
    assert content(tmp_path / "labels") == content(tmp_path / "whole")

    with failing_s3(monkeypatch, s3, 503, faults=10_000):
        run = label(images="s3://bucket/fails", out=tmp_path / "down", max_bad=0)
    assert run.report.failed.keys() == {0, 1, 2}
    assert "s3://bucket/fails/" in run.report.failed[0]
    assert (run.report.images, run.report.bad) == (0, 0)
    assert not list((tmp_path / "down").glob("labels/*"))
    label(images="s3://bucket/fails", out=tmp_path / "down", max_bad=0.5)
    assert content(tmp_path / "down") == content(tmp_path / "whole")


def test_a_missing_object_costs_itself_and_a_missing_bucket_the_run(
    label: Label, folder: Path, tmp_path: Path, s3: str
) -> None:
    copy_to("s3://bucket/missing", folder)
    names = [*photos_in(folder), "b/gone.png", "../missing/000.png", "s3://bucket/other/x.png"]
    (tmp_path / "list.txt").write_text("\n".join(names))
    settings = {"images": str(tmp_path / "list.txt"), "max_bad": 0.5}
    label(**settings, image_root="s3://bucket/missing")
    bad = {row["image_id"]: (row["stage"], row["message"]) for row in open_labels(tmp_path / "labels").quarantine()}
    assert bad["b/gone.png"] == ("read", "no such file in s3://bucket/missing")
    assert bad["../missing/000.png"] == bad["s3://bucket/other/x.png"]
    assert bad["../missing/000.png"][0] == "list"
    assert "leaves the image root" in bad["../missing/000.png"][1]
    assert len(bad) == 4
    with pytest.raises(UserError, match="s3://nowhere/x: is gone; bring it back"):
        label(**settings, image_root="s3://nowhere/x", out=tmp_path / "other")
    assert not list((tmp_path / "other").glob("commits/*"))


def test_refused_credentials_stop_the_run_and_are_not_shown(
    label: Label, folder: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    copy_to("s3://bucket/secret", folder)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(UserError, match=r"the credentials are missing, expired or refused \(NoCredentialsError\)"):
        label(images="s3://bucket/secret")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(UserError) as error:
        label(images="s3://name:secret@bucket/x")
    assert "secret" not in str(error.value)


def test_images_that_moved_are_found_and_others_are_refused(label: Label, folder: Path, tmp_path: Path) -> None:
    photos = photos_in(folder)
    tars = write_tars(tmp_path / "tars", photos)
    label(images=str(tars), max_bad=0.5)
    moved = tars.rename(tmp_path / "moved")
    assert label(images=str(moved), max_bad=0.5).report.images == 0
    write_tars(tmp_path / "packed", dict(reversed(photos.items())))
    with pytest.raises(UserError, match=r"was at another place of its input in .*moved, with which"):
        label(images=str(tmp_path / "packed"), max_bad=0.5)
    with pytest.raises(UserError, match="was at another place"):
        label(images=str(folder), max_bad=0.5)
    for number in range(3):
        tar = moved / f"photos-{number:03d}.tar"
        tar.write_bytes(tar.read_bytes().replace(photos["000.png"], bytes(len(photos["000.png"]))))
    with pytest.raises(UserError, match=r"photos-000\.tar#512\+\d+' was another one when this folder was begun"):
        label(images=str(moved), max_bad=0.5)


def test_crops_of_a_stream_stay_in_its_order(label: Label, tmp_path: Path) -> None:
    photos = dict(reversed(photos_in(draw_folder(tmp_path / "photos", 5)).items()))
    label(**container("hf stream", photos, tmp_path), crops=1)
    store = open_labels(tmp_path / "labels")
    assert store.ids == [view for image_id in photos for view in (image_id, f"{image_id}#crop1")]
    label(images=str(tmp_path / "photos"), crops=1, out=tmp_path / "whole")
    for image_id, labels in ((image_id, open_labels(tmp_path / "whole")[image_id]) for image_id in store.ids):
        np.testing.assert_array_equal(store[image_id].word_ids, labels.word_ids)


@pytest.mark.parametrize("suffix", ["txt", "csv", "json", "jsonl", "parquet", "tar"])
def test_a_pipe_is_not_taken_for_an_empty_list(suffix: str, tmp_path: Path) -> None:
    pipe = tmp_path / f"pipe.{suffix}"
    os.mkfifo(pipe)
    with refused(f"{pipe}: expected a file; found a pipe or a socket"):
        list_samples(str(pipe))
