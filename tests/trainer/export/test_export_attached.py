"""`export` of a model of another family, whose folder is in its own form already."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.support.refused import refused
from trainer.export.checks import check_export
from trainer.export.settings import ExportSettings


def attached(run: Path, kind: str, *, finished: bool = True) -> Path:
    """A run as `train` leaves it, but for its weights."""
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"recipe": {"model": {"attach": "models/start"}}}))
    if finished:
        (run / "model").mkdir()
        parts: dict[str, Any] = {"text_config": {}, "vision_config": {}}
        (run / "model" / "config.json").write_text(json.dumps({"model_type": kind} | parts))
    return run


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("inner", ["", "model"])
def test_there_is_nothing_to_export(kind: str, inner: str, tmp_path: Path) -> None:
    run = attached(tmp_path / "my run", kind)
    said = f"{run}/model is in its family's own form already, which its readers take; nothing is to export"
    with refused(start=said):
        check_export(ExportSettings(source=run / inner, out=tmp_path / "out"))
    with refused(said, start=said):
        check_export(ExportSettings(source=run / inner, out=tmp_path / "out", push="me/mine"))
    with refused(said, start="--checkpoint 2: such a run keeps its end alone; "):
        check_export(ExportSettings(source=run, out=tmp_path / "out", checkpoint=2))


def test_the_line_for_an_upload_can_be_run(tmp_path: Path) -> None:
    run = attached(tmp_path / "my run", "qwen2_5_vl")
    with pytest.raises(Exception, match="use it as it is: hf upload") as found:
        check_export(ExportSettings(source=run, out=tmp_path / "out", push="me/mine"))
    words = shlex.split(str(found.value).partition("as it is: ")[2])
    assert words == ["hf", "upload", "--private", "me/mine", str(run / "model")]


def test_an_unfinished_one_is_gone_on_with(tmp_path: Path) -> None:
    run = attached(tmp_path / "run", "llava", finished=False)
    with refused(f"run the same sea-pipeline train command again, which ends in {run}/model", start=f"{run}: "):
        check_export(ExportSettings(source=run, out=tmp_path / "out"))


def test_a_folder_of_another_family_is_no_llava_to_make(tmp_path: Path) -> None:
    folder = attached(tmp_path / "run", "gemma3") / "model"
    folder = folder.rename(tmp_path / "gemma")
    with refused("in its family's own form already", start=f"{folder} "):
        check_export(ExportSettings(source=folder, out=tmp_path / "out"))
