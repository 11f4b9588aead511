"""Images that cannot be read are found before the first step, whether or not labels know of them."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT
from sea_pipeline.inputs.pixels import BadImageError, read_image
from tests.support.conversations_json import written
from tests.support.heard import Heard
from tests.support.refused import refused
from tests.support.tiny_runs import World, tiny_recipe
from trainer.data import bad_rows, image_check
from trainer.data.image_check import unreadable_files
from trainer.data.run_rows import open_conversations
from trainer.model.load import open_model_folder
from trainer.training.align_trainer import AlignTrainer
from trainer.training.run import train, train_stages


def save(path: Path, side: int = 64, **options: Any) -> bytes:
    """A noisy picture, whose file holds more than headers."""
    pixels = np.random.default_rng(side).integers(0, 255, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path.read_bytes()


def every_form(folder: Path) -> None:
    """Whole files of many forms, and files that are cut, empty or no images."""
    for suffix in ("jpg", "png", "webp", "gif", "bmp", "tif"):
        whole = save(folder / f"whole.{suffix}")
        (folder / f"half.{suffix}").write_bytes(whole[: len(whole) // 2])
        (folder / f"head.{suffix}").write_bytes(whole[:20])
        (folder / f"padded.{suffix}").write_bytes(whole[: len(whole) // 2].ljust(len(whole), b"\0"))
        (folder / f"more.{suffix}").write_bytes(whole + b"\0" * 30)
    for whole in (save(folder / "large.png", 700), save(folder / "large.jpg", 900, quality=100, subsampling=0)):
        assert len(whole) > 1 << 20
    save(folder / "progressive.jpg", progressive=True, exif=Image.Exif())
    shutil.copy(folder / "whole.jpg", folder / "called a.png")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.jpg").write_bytes(b"<html><body>404</body></html>")
    (folder / "lfs.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    data = bytearray((folder / "whole.png").read_bytes())
    data[16:24] = (1 << 17).to_bytes(4, "big") * 2  # more pixels than Pillow allows
    (folder / "bomb.png").write_bytes(data)


def is_bad(path: Path) -> bool:
    try:
        read_image(path)
    except BadImageError:
        return True
    return False


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEA_PIPELINE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def test_a_file_on_a_sick_sector_is_one_of_them_and_a_machine_without_memory_is_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(folder / "a.png")

    def failing(number: int) -> Callable[..., Any]:
        def read(*_: Any, **__: Any) -> Any:
            raise OSError(number, os.strerror(number))

        return read

    monkeypatch.setattr(image_check, "_looks_whole", failing(errno.EIO))
    monkeypatch.setattr(bad_rows, "read_image", failing(errno.EIO))
    said = "expected images that can be read; found 'a.png': Input/output error"
    assert unreadable_files(["a.png"], folder.__truediv__, folder, SILENT) == {"a.png": said}
    monkeypatch.setattr(bad_rows, "read_image", failing(errno.ENOMEM))
    with pytest.raises(OSError, match="Cannot allocate memory"):
        unreadable_files(["a.png"], folder.__truediv__, folder, SILENT)


def test_what_is_no_file_is_not_opened(folder: Path) -> None:
    """Opening a pipe would wait for ever."""
    os.mkfifo(folder / "pipe.jpg")
    said = "expected images that can be read; found 'pipe.jpg': expected a file; found a folder or a device"
    assert unreadable_files(["pipe.jpg"], folder.__truediv__, folder, SILENT) == {"pipe.jpg": said}


def test_what_was_looked_at_before_a_stop_is_not_looked_at_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{number}.png" for number in range(6)]
    for name in names:
        save(folder / name)
    monkeypatch.setattr(bad_rows, "_CHUNK", 1)
    monkeypatch.setattr(image_check, "_KEPT", 2)
    whole, opened, stops = image_check._looks_whole, [], ["5.png"]

    def looks(path: Path, size: int) -> bool:
        opened.append(path.name)
        if path.name in stops:
            stops.clear()
            raise KeyboardInterrupt
        return whole(path, size)

    monkeypatch.setattr(image_check, "_looks_whole", looks)
    with pytest.raises(KeyboardInterrupt):
        unreadable_files(names, folder.__truediv__, folder, SILENT)
    opened.clear()
    assert unreadable_files(names, folder.__truediv__, folder, SILENT) == {}
    assert sorted(opened) == ["4.png", "5.png"]


def test_it_finds_what_decoding_everything_finds(folder: Path) -> None:
    """The slow twin reads all of every file."""
    every_form(folder)
    names = sorted(path.name for path in folder.iterdir())
    bad = {name for name in names if is_bad(folder / name)}
    assert {name for name in names if name.startswith(("whole", "large", "progressive", "called"))}.isdisjoint(bad)
    assert bad >= {"half.jpg", "half.png", "half.webp", "empty.jpg", "page.jpg", "lfs.png", "bomb.png", "head.jpg"}
    found = unreadable_files(names, folder.__truediv__, folder, SILENT)
    assert found.keys() == bad
    assert "0 bytes" in found["empty.jpg"]
    assert all(reason.startswith("expected images that can be read; found '") for reason in found.values())


def test_whole_files_are_not_decoded_and_not_opened_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a.jpg", "b.png", "c.webp"]
    for name in names:
        save(folder / name)
    with monkeypatch.context() as patch:
        patch.setattr(image_check, "unreadable_because", lambda path: pytest.fail(f"{path} was decoded"))
        assert unreadable_files(names, folder.__truediv__, folder, SILENT) == {}
        patch.setattr(image_check, "_looks_whole", lambda path, size: pytest.fail(f"{path} was opened"))
        assert unreadable_files(names, folder.__truediv__, folder, SILENT) == {}
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:-20])
    assert unreadable_files(names, folder.__truediv__, folder, SILENT).keys() == {"b.png"}
    (record,) = (folder.parent / "cache" / "images").glob("*.npy")
    record.write_bytes(b"damaged")
    os.truncate(folder / "a.jpg", 100)
    assert unreadable_files(names, folder.__truediv__, folder, SILENT).keys() == {"a.jpg", "b.png"}


def test_it_is_said_if_it_takes_long(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{number:03d}.png" for number in range(130)]
    whole = save(folder / "one", format="PNG")
    for name in names:
        (folder / name).write_bytes(whole)
    monkeypatch.setattr("sea_pipeline.core.progress.SLOW", 0)
    heard = Heard()
    unreadable_files(names, folder.__truediv__, folder, heard)
    assert heard.lines[0].startswith("checking that images can be read: 64 of 130 done, about")


def as_process(rank: int, sent: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process be one of a run, of which the first one's broadcast is kept in `sent` for the others."""

    def broadcast(found: list[Any]) -> None:
        if rank:
            found[:] = sent
        else:
            sent[:] = found

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(image_check, "broadcast_object_list", broadcast)


@pytest.mark.parametrize("answer", [{"a.jpg": "cut"}, UserError("it cannot be read"), OSError(5, "a fault")])
def test_the_first_process_looks_for_all(
    answer: dict[str, str] | Exception, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looks(*_: object) -> dict[str, str]:
        if isinstance(answer, Exception):
            raise answer
        return answer

    sent: list[Any] = []
    monkeypatch.setattr(image_check, "_unreadable", looks)
    for rank in (0, 1):
        as_process(rank, sent, monkeypatch)
        if rank:
            monkeypatch.setattr(image_check, "_unreadable", lambda *_: pytest.fail("it looked, too"))
        if isinstance(answer, Exception):
            with pytest.raises(type(answer)):
                unreadable_files(["a.jpg"], folder.__truediv__, folder, SILENT)
        else:
            assert unreadable_files(["a.jpg"], folder.__truediv__, folder, SILENT) == answer


def test_it_is_said_if_looking_for_files_takes_long(tiny: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process looks, because each may have a disk of its own, and the first one speaks."""
    asked: list[str] = []
    monkeypatch.setattr(bad_rows, "_CHUNK", 2)
    monkeypatch.setattr(bad_rows, "_missing", lambda name, _: asked.append(name))
    data, folder = tiny_recipe(tiny).data, open_model_folder(tiny.model)
    names = sorted(open_conversations(data, folder).image_ids)
    assert sorted(asked) == names
    monkeypatch.setattr("sea_pipeline.core.progress.SLOW", -1.0)
    for first in (True, False):
        heard = Heard()
        assert sorted(open_conversations(data, folder, reporter=heard, first=first).image_ids) == names
        said = [f"looking for images: 2 of {len(names)}"] if first else []
        assert [line.split(" done")[0] for line in heard.lines] == said
    assert sorted(asked) == sorted(3 * names)


# A run


def broken(tiny: World, tmp_path: Path) -> tuple[Path, int]:
    """A copy of the tiny images, one of which is cut."""
    images = Path(shutil.copytree(tiny.data.parent / "images", tmp_path / "photos"))
    rows = json.loads(tiny.data.read_text())
    file = images / rows[3]["image"]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return images, len(rows)


PLAIN = {"labels": {"path": None}, "loss": {"sea": {"weight": 0}}}
"""A stage that needs no labels, as stage 2 of LLaVA's recipes."""


def test_a_run_without_labels_finds_them_before_its_first_step(
    tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images, rows = broken(tiny, tmp_path)
    data: dict[str, Any] = {"image_root": str(images)}
    with monkeypatch.context() as patch:
        patch.setattr(AlignTrainer, "training_step", lambda *_: pytest.fail("a step was made"))
        with refused("expected images that can be read; found '03.png'"):
            train(tiny_recipe(tiny, data=data, **PLAIN), tmp_path / "out")
        assert not (tmp_path / "out").exists()
        stage = tiny_recipe(tiny, **PLAIN)
        with refused("expected images that can be read; found '03.png'", start="stage second: "):
            train_stages({"first": stage, "second": tiny_recipe(tiny, data=data, **PLAIN)}, tmp_path / "stages")
    arguments = {"max_steps": 2, "save_strategy": "no"}
    recipe = tiny_recipe(tiny, data=data | {"bad_rows": "leave_out"}, training_arguments=arguments, **PLAIN)
    summary = train(recipe, tmp_path / "out").summary
    assert summary["rows"]["rows"] == rows - 1
    assert summary["rows"]["left out: expected images that can be read"] == 1


@pytest.mark.slow
def test_images_that_the_labels_do_not_hold_are_looked_at(tiny: World, tmp_path: Path) -> None:
    """Those that they hold were read once."""
    images, _ = broken(tiny, tmp_path)
    shutil.copy(images / "03.png", images / "unlabelled.png")
    rows = json.loads(tiny.data.read_text())
    rows[4]["image"] = "unlabelled.png"
    data = {"train": str(written(tmp_path, *rows)), "image_root": str(images)}
    with refused("'unlabelled.png'", match="^((?!03.png).)*$"):
        train(tiny_recipe(tiny, data=data), tmp_path / "out")
