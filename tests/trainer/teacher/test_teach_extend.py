"""A teacher's targets, extended by records that follow the others; when records follow; and the same by two workers."""

import json
import pickle
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pytest

from sea_pipeline.core.errors import UserError
from sea_pipeline.execution import sharded_job
from sea_pipeline.execution.cluster_settings import WorkerSettings
from sea_pipeline.execution.local import run
from sea_pipeline.execution.run_report import RunReport
from sea_pipeline.execution.worker import Job
from sea_pipeline.inputs.llava_json import grew_from
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.verify import check_files
from sea_pipeline.storage.hashing import file_sha256
from tests.support.run_values import settings
from tests.support.tiny_runs import World, make_world
from tests.support.worker_world import forked_workers
from trainer.targets.store import CODEC, TargetStore, open_targets
from trainer.teacher.run import TeachJob, TeachSettings, teach_images


@pytest.fixture
def world(tiny: World, deep: Path, tmp_path: Path) -> World:
    """The tiny world with data of its own: the first seven records."""
    data = tmp_path / "data.json"
    world = tiny._replace(model=deep, data=data)
    write(world, records(tiny)[:7])
    return world


def records(tiny: World) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(tiny.data.read_text())
    return found


def write(world: World, rows: list[dict[str, Any]]) -> None:
    world.data.write_text(json.dumps(rows))


@pytest.mark.slow
def test_new_images_are_taught_with_the_codec_that_is_there(tiny: World, world: World, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"image_root": tiny.data.parent / "images", "codec": "int8"}
    out = tmp_path / "targets"
    first = teach_images(settings(world, out, **asked))
    before = {path: path.read_bytes() for path in [*out.glob("targets/*"), *out.glob("commits/*"), out / CODEC]}
    old = {name: open_targets(out)[name].refined for name in open_targets(out)}
    write(world, records(tiny))
    with pytest.raises(UserError, match=r"was begun with less: new images.*data: it has grown; add it with --extend"):
        teach_images(settings(world, out, **asked))
    run = teach_images(settings(world, out, **asked, extend=True))
    assert run.report.images + first.report.images == len(open_targets(out)) > len(old)
    assert {path: path.read_bytes() for path in before} == before
    for name in old:
        np.testing.assert_array_equal(open_targets(out)[name].refined, old[name])
    assert teach_images(settings(world, out, **asked)).report.images == 0
    assert check_files(run.ledger).problems == []


@pytest.mark.slow
def test_records_that_bring_no_image_leave_the_folder_as_it_is(
    tiny: World, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of known images, or text alone; finished or not, and for workers, who read the grown file, too."""
    asked: dict[str, Any] = {"image_root": tiny.data.parent / "images"}
    out = tmp_path / "targets"
    assert teach_images(settings(world, out, **asked)).ledger.dataset.shards == 2
    before = (out / "dataset.json").read_bytes()
    text = [row for row in records(tiny) if "image" not in row]
    write(world, [*records(tiny)[:7], records(tiny)[0], *text, *text])
    for extend in (False, True):
        assert teach_images(settings(world, out, **asked, extend=extend)).report.images == 0
    (out / "commits" / "00001.json").unlink()

    def by_a_worker(job: Job, ledger: Ledger, *_: Any) -> tuple[RunReport, dict[str, str]]:
        stage = pickle.loads(pickle.dumps(job)).stage(pickle.loads(pickle.dumps(ledger)))
        return run(ledger, stage, max_bad=0), stage.describe()

    monkeypatch.setattr(sharded_job, "_by_workers", by_a_worker)
    again = teach_images(settings(world, out, **asked, crew=WorkerSettings(workers=1)))
    assert again.report.images == len(again.ledger.samples(1)) > 0
    assert again.ledger.complete
    assert (out / "dataset.json").read_bytes() == before


def test_records_that_changed_are_no_extension(tiny: World, world: World, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"image_root": tiny.data.parent / "images"}
    out = tmp_path / "targets"
    teach_images(settings(world, out, **asked))
    before = (out / "dataset.json").read_bytes()
    rows = records(tiny)
    rows[0]["conversations"][1]["value"] = "something else"
    write(world, rows)
    with pytest.raises(UserError, match=r"cannot be extended; choose another --out\. Differing: data: "):
        teach_images(settings(world, out, **asked, extend=True))
    assert (out / "dataset.json").read_bytes() == before
    with pytest.raises(UserError, match=r"--extend: expected --out, the folder to extend, and no --limit"):
        teach_images(settings(world, out, **asked, extend=True, limit=3))


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_when_records_follow(tmp_path: Path, suffix: str, indent: int | None) -> None:
    def written(rows: list[dict[str, Any]], name: str) -> Path:
        path = tmp_path / f"{name}{suffix}"
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(lines if suffix == ".jsonl" else json.dumps(rows, indent=indent))
        return path

    rows = [{"image": f"{n}.png", "conversations": [{"from": "human", "value": "{}}{"}]} for n in range(9)]
    earlier = file_sha256(written(rows[:5], "earlier"))
    assert grew_from(written(rows, "more"), earlier)
    assert grew_from(written(rows[:5], "same"), earlier)
    assert not grew_from(written(rows[:4], "less"), earlier)
    assert not grew_from(written(rows[1:], "other"), earlier)
    assert not grew_from(written([*rows[:4], rows[8], *rows[4:8]], "between"), earlier)
    (tmp_path / "none.json").write_text("[]")
    assert not grew_from(tmp_path / "none.json", earlier)


assert distributed.__version__  # its settings must be there before any is changed


@pytest.mark.processes
def test_two_workers_teach_the_same(tmp_path: Path) -> None:
    world = make_world(tmp_path)

    def teach(name: str, crew: WorkerSettings) -> TargetStore:
        settings = TeachSettings.of(
            model=world.model, data=str(world.data), image_root=world.data.parent / "images", out=tmp_path / name,
            codec="float16", shard_size=3, device="cpu", crew=crew,
        )  # fmt: skip
        done = teach_images(settings)
        assert (done.report.failed, done.device, done.backend) == ({}, "cpu", "float16")
        return open_targets(tmp_path / name)

    alone = teach("alone", WorkerSettings())
    with forked_workers():
        workers = teach("workers", WorkerSettings(workers=2, dashboard=False))
    assert list(alone.ids) == list(workers.ids)
    assert alone.fingerprint == workers.fingerprint
    for image_id in alone.ids:  # not to the last bit: that depends on the threads of a process
        one, other = alone[image_id], workers[image_id]
        np.testing.assert_allclose(one.refined, other.refined, rtol=2e-3, atol=1e-5)
        np.testing.assert_allclose(one.attention, other.attention, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_worker_elsewhere_opens_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    model, data = world.model.relative_to(tmp_path), str(world.data.relative_to(tmp_path))
    job = TeachJob(TeachSettings(model=model, data=data, image_root=Path(data).parent / "images", device="cpu"))
    job.open(None)
    sent, fields = pickle.dumps(job), job.fields()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    there = pickle.loads(sent)
    there.open(None)
    assert there.fields() == fields
    assert len(there.listing().samples) > 1
