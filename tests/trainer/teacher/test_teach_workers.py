"""`teacher` by two workers: the same targets as alone."""

import pickle
from pathlib import Path

import distributed
import numpy as np
import pytest

from sea_pipeline.execution.cluster_settings import WorkerSettings
from tests.support.tiny_runs import make_world
from tests.support.worker_world import forked_workers
from trainer.targets.store import TargetStore, open_targets
from trainer.teacher.run import TeachJob, TeachSettings, teach_images

pytestmark = pytest.mark.processes

assert distributed.__version__  # its settings must be there before any is changed


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
