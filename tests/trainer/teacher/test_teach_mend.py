"""A damaged folder of a teacher's targets is brought back by the line that names the damage, followed to the letter."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sea_pipeline.core.errors import UserError
from sea_pipeline.storage.parquet import shard_footer
from tests.support.damage import Harm, changed, flip, made_a_folder
from tests.support.tiny_runs import ROWS, World
from trainer.targets.codecs import codec_sha256, fit_codec, load_codec, save_codec
from trainer.targets.store import CODEC, open_targets
from trainer.teacher.run import TeachSettings, teach_images

pytestmark = pytest.mark.slow

SHARD = "targets/part-00001-of-00003.parquet"


@pytest.fixture(scope="module")
def _taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("taught")


@pytest.fixture
def teach(world: World, tmp_path: Path, _taught: Path) -> Callable[..., int]:
    """Teaches into `targets`, which begins as a finished folder; the number of images that it has taught."""
    images = _taught / "images"
    if not images.exists():
        shutil.copytree(world.data.parent / "images", images)
        (images / json.loads(world.data.read_text())[3]["image"]).write_bytes(b"no image")

    def run(out: Path = tmp_path / "targets", **changes: Any) -> int:
        base = {"model": world.model, "data": str(world.data), "image_root": images, "codec": "int8"}
        base |= {"shard_size": 4, "batch_size": 3, "device": "cpu", "max_bad": 0.5, "out": out}
        return teach_images(TeachSettings.of(**(base | changes))).report.images

    if not (_taught / "targets").exists():
        run(_taught / "targets")
    shutil.copytree(_taught / "targets", tmp_path / "targets")
    return run


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    kept = {str(path.relative_to(folder)): path.read_bytes() for path in files if ".tmp" not in path.parts}
    return {name: b"" if name.startswith("commits/") else data for name, data in kept.items()}  # those hold times


def another_codec(path: Path) -> None:
    held = load_codec(path)
    sample = np.random.default_rng(1).normal(size=(50, held.width))
    path.write_bytes(save_codec(fit_codec("int8", sample)))


DAMAGE: dict[str, tuple[str, Harm]] = {
    "the codec gone": (CODEC, Path.unlink),
    "the codec empty": (CODEC, lambda path: path.write_bytes(b"")),
    "the codec cut": (CODEC, lambda path: path.write_bytes(path.read_bytes()[:-7])),
    "a bit of the codec": (CODEC, lambda path: flip(path, path.stat().st_size - 30)),
    "a bit of the codec's header": (CODEC, lambda path: flip(path, 12)),
    "another codec": (CODEC, another_codec),
    "a link to no codec": (CODEC, lambda path: (path.unlink(), path.symlink_to("/nowhere/at/all"))),
    "a folder for the codec": (CODEC, made_a_folder),
    "a shard gone": (SHARD, Path.unlink),
    "a shard cut": (SHARD, lambda path: path.write_bytes(path.read_bytes()[:-1])),
    "a bit of a shard": (SHARD, lambda path: flip(path, path.stat().st_size // 2)),
    "a commit gone": ("commits/00001.json", Path.unlink),
    "a bit of a date": ("commits/00001.json", lambda path: changed(path, "finished", value="r026-01-01T00:00:00Z")),
    "quarantine gone": ("quarantine/00000.parquet", Path.unlink),
    "a bit of quarantine": ("quarantine/00000.parquet", lambda path: flip(path, 90)),
    "the manifest empty": ("manifest.json", lambda path: path.write_bytes(b"")),
    "a hash in the manifest": ("manifest.json", lambda path: changed(path, "other_files", 1, "sha256", value="0" * 64)),
    "the plan gone": ("plan.parquet", Path.unlink),
    "dataset.json gone": ("dataset.json", Path.unlink),
    "dataset.json cut": ("dataset.json", lambda path: path.write_bytes(path.read_bytes()[:99])),
    "a field of dataset.json": ("dataset.json", lambda path: changed(path, "fields", "width", value=33)),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_the_advice_brings_back_what_is_damaged(
    command: Any, teach: Callable[..., int], tmp_path: Path, what: str
) -> None:
    out = tmp_path / "targets"
    whole = content(out)
    name, harm = DAMAGE[what]
    harm(out / name)
    with pytest.raises(UserError) as found:
        open_targets(out)
    line = str(found.value)
    assert str(out / (CODEC if what == "a hash in the manifest" else name)) in line
    assert command("verify", out)[::2] == (1, f"error: {line}\n")
    assert command("status", out)[2] == ("" if what == "a bit of a shard" else f"error: {line}\n")  # it reads no shard
    if "; remove it, and run" in line:
        shutil.rmtree(out / name)
    elif "or delete it and run" in line:
        (out / name).unlink()
    else:
        assert "or run the command that made the folder again, which makes it anew" in line
    taught = teach()
    assert taught == (4 if name in (SHARD, "commits/00001.json") else 3 if "quarantine" in name else 0)
    assert content(out) == whole
    assert command("verify", out)[0] == 0
    assert len(open_targets(out)) == ROWS - 2


@pytest.mark.parametrize("harm", [Path.unlink, another_codec, lambda path: flip(path, 400), None])
def test_an_unfinished_folder_costs_a_shard_and_gets_its_codec_back(
    teach: Callable[..., int], tmp_path: Path, harm: Harm | None
) -> None:
    """As a kill leaves it, with a shard half-written."""
    out = tmp_path / "targets"
    whole = content(out)
    (out / "manifest.json").unlink()
    (out / "commits" / "00002.json").unlink()
    (out / "targets" / "part-00002-of-00003.parquet").write_bytes(b"half")
    if harm:
        harm(out / CODEC)
    assert teach() == 3
    assert content(out) == whole


@pytest.mark.parametrize("finished", [True, False])
def test_a_codec_that_cannot_be_fitted_again_is_one_line_with_a_way_out(
    teach: Callable[..., int], tmp_path: Path, finished: bool
) -> None:
    """Such as one that another machine's model has rounded otherwise."""
    out = tmp_path / "other"
    out.mkdir()
    shutil.copytree(tmp_path / "targets", out, dirs_exist_ok=True)
    shutil.rmtree(out / "commits")
    (out / "manifest.json").unlink()
    another_codec(out / CODEC)
    assert teach(out) == ROWS - 2
    kept = (out / CODEC).read_bytes()
    (out / CODEC).unlink()
    if not finished:
        (out / "manifest.json").unlink()
    with pytest.raises(
        UserError, match=r"codec\.safetensors: .*restore it, or remove \S+commits and run the same"
    ) as line:
        teach(out)
    assert "\n" not in str(line.value)
    (out / CODEC).write_bytes(kept)
    assert teach(out) == 0
    assert len(open_targets(out)) == ROWS - 2
    (out / CODEC).unlink()
    shutil.rmtree(str(line.value).split("or remove ")[1].split(" and run")[0])
    assert teach(out) == ROWS - 2
    assert content(out) == content(tmp_path / "targets")
    assert len(open_targets(out)) == ROWS - 2


def test_shards_say_which_codec_wrote_them(teach: Callable[..., int], tmp_path: Path) -> None:
    out = tmp_path / "targets"
    assert shard_footer(out / SHARD)["codec_sha256"] == codec_sha256(load_codec(out / CODEC))
    assert teach() == 0


def test_shards_of_older_versions_are_held_to_the_manifest(
    teach: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.teacher.run.shard_footer", lambda path: {})
    out = tmp_path / "targets"
    whole = content(out)
    (out / CODEC).unlink()
    assert teach() == 0
    assert content(out) == whole
    (out / "manifest.json").unlink()
    teach()
    (out / "manifest.json").unlink()
    (out / CODEC).unlink()
    with pytest.raises(UserError, match="another than finished shards were written with; restore it"):
        teach()
