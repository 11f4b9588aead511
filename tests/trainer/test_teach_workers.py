"""`teacher` by two workers: the same targets as alone."""

from pathlib import Path

import distributed

from sea_pipeline.clusters import Crew
from tests.tiny_runs import make_world
from trainer.teach_run import TeachSettings, teach_images

assert distributed.__version__  # its settings must be there before any is changed


def content(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    kept = {path.relative_to(root).as_posix(): path.read_bytes() for path in files}
    return {name: data for name, data in kept.items() if not name.startswith(("commits/", "logs/"))}


def test_two_workers_teach_the_same(tmp_path: Path) -> None:
    world = make_world(tmp_path)

    def teach(name: str, crew: Crew) -> dict[str, bytes]:
        settings = TeachSettings.of(
            model=world.model, data=str(world.data), image_root=world.data.parent / "images", out=tmp_path / name,
            template="vicuna_v1", shard_size=3, device="cpu", crew=crew,
        )  # fmt: skip
        done = teach_images(settings)
        assert (done.report.failed, done.device, done.backend) == ({}, "cpu", "int8")
        assert done.report.images > 3
        return content(tmp_path / name)

    assert teach("workers", Crew(workers=2, dashboard=False)) == teach("alone", Crew())
