"""The command `tokens`: the rows that training would read, and why the others are refused."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sea_pipeline.cli.app import app
from sea_pipeline.core.errors import UserError
from tests.support.conversations_json import load, record, written
from tests.support.refused import refused
from tests.support.sentence_piece import vicuna_like
from tests.support.tiny_models import tiny_model
from trainer.data.files import check_conversations_file
from trainer.data.row_tokens import RowTokens, TokensSettings, row_tokens
from trainer.model.load import open_model_folder
from trainer.model.parts import load_tokenizer
from trainer.model.tokenizer import prepare_tokenizer

ROWS = [
    record([("<image>\nWhat is it?", "A jay."), ("And?", "x  y")], "a.jpg", id="one"),
    record([("Two <image><image> images", "Yes.")], ["a.jpg", "b.jpg"], id="two"),
    record([("No image", "No.")], id=3),
]
BAD = [record([("<image>", "B")], id="lost"), {"image": "a.jpg", "conversations": [], "id": "none"}]


def asked(model: Path, data: Path, **more: Any) -> list[RowTokens]:
    return list(row_tokens(TokensSettings.of(model=str(model), data=data, **more)))


def expanded(row: RowTokens) -> tuple[list[int | None], list[bool]]:
    """Ids with None for each visual token, and the mask."""
    ids: list[int | None] = []
    for one in row.ids:
        ids += [None] * one[1] if isinstance(one, tuple) else [one]
    return ids, [any(start <= place < end for start, end in row.trained) for place in range(len(ids))]


@pytest.mark.slow
@pytest.mark.parametrize("template", ["vicuna_v1", "own"])
def test_rows_are_those_of_training(tmp_path: Path, template: str) -> None:
    """An LLM's folder without weights, as the command reads none."""
    vicuna_like(tmp_path / "llm")
    tokenizer, _ = prepare_tokenizer(load_tokenizer(str(tmp_path / "llm")), "llm")
    image = tokenizer.convert_tokens_to_ids("<image>")
    data = written(tmp_path, *ROWS)
    found = asked(tmp_path / "llm", data, template=template, visual_tokens=9)
    for row, trained in zip(found, load(data, tokenizer, template, image_tokens=9), strict=True):
        ids: list[int | None] = []
        mask: list[bool] = []
        for one, mark in zip(trained["input_ids"], trained["trained"], strict=True):
            ids += [None] * 9 if one == image else [one]
            mask += [mark] * (9 if one == image else 1)
        assert (row.id, *expanded(row)) == (trained["id"], ids, mask)
        assert row.length == trained["length"]
    assert [one for one in found[1].ids if isinstance(one, tuple)] == [("image", 18)]


@pytest.mark.slow
def test_a_model_folder_says_its_visual_tokens(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    for file in model.glob("*.safetensors"):
        file.unlink()
    row = asked(model, written(tmp_path, *ROWS), limit=1)[0]
    folder = open_model_folder(model)
    (trained, *_) = load(tmp_path / "data.json", folder.processor.tokenizer, "own", image_tokens=16)
    assert row.length == trained["length"]
    with pytest.raises(UserError, match=r"--visual-tokens 9: .* makes 16 of an image"):
        asked(model, tmp_path / "data.json", visual_tokens=9)


@pytest.mark.slow
def test_refused_rows_say_why_and_the_others_go_on(tmp_path: Path) -> None:
    vicuna_like(tmp_path / "llm")
    data = written(tmp_path, BAD[0], ROWS[0], BAD[1], name="data.jsonl")
    rows = asked(tmp_path / "llm", data, template="vicuna_v1", visual_tokens=9)
    assert [row.refused is None for row in rows] == [False, True, False]
    assert rows[0].to_json()["id"] == "lost"
    assert "the record names no image" in rows[0].to_json()["refused"]
    short = asked(tmp_path / "llm", data, template="vicuna_v1", visual_tokens=9, max_length=20)
    assert "within max_length 20" in short[1].to_json()["refused"]


@pytest.mark.slow
def test_on_the_command_line(tmp_path: Path) -> None:
    vicuna_like(tmp_path / "llm")
    data = written(tmp_path, ROWS[0], BAD[0])
    line = ["tokens", str(tmp_path / "llm"), "--data", str(data), "--template", "vicuna_v1", "--visual-tokens", "9"]
    found = CliRunner().invoke(app, [*line, "--json"])
    one, lost = map(json.loads, found.stdout.splitlines())
    assert list(one) == ["id", "ids", "trained"]
    assert one["id"] == "one"
    assert ["image", 9] in one["ids"]
    assert list(lost) == ["id", "refused"]
    shown = CliRunner().invoke(app, line).stdout
    first, tokens, second = shown.splitlines()
    assert first == f"one: {_length(one['ids'])} tokens, {_trained(one)} of them trained"
    assert tokens.startswith("<s>|\u2581A|\u2581c")
    assert "|<image x 9>|" in tokens
    assert tokens.count("\u00ab") == tokens.count("\u00bb") == len(one["trained"]) == 2
    assert tokens.endswith("</s>\u00bb")
    assert second.startswith("lost: refused: expected an image, because the turns have <image>")
    assert len(CliRunner().invoke(app, [*line, "--limit", "1"]).stdout.splitlines()) == 2


def _length(ids: list[Any]) -> int:
    return sum(one[1] if isinstance(one, list) else 1 for one in ids)


def _trained(row: dict[str, Any]) -> int:
    return sum(end - start for start, end in row["trained"])


def test_an_llm_needs_the_number(tmp_path: Path) -> None:
    vicuna_like(tmp_path / "llm")
    with pytest.raises(UserError, match="for an LLM add --visual-tokens"):
        asked(tmp_path / "llm", written(tmp_path, *ROWS))
    with pytest.raises(UserError, match=r"no such folder|cannot be loaded"):
        asked(tmp_path / "none" / "at all" / "here", written(tmp_path, *ROWS), visual_tokens=9)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "llava_llama", "mm_hidden_size": 9}, "is a checkpoint of LLaVA's own code"),
        ({"model_type": "vipllava", "vision_config": {}, "text_config": {}}, "model_type is 'vipllava', expected"),
    ],
)
def test_other_models_are_refused(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=said):
        asked(tmp_path, written(tmp_path, *ROWS))


@pytest.mark.parametrize(
    ("name", "said"), [("x.json.gz", "found .gz; unpack"), ("x", "found no suffix"), ("no.json", "found none there")]
)
def test_files_of_other_kinds_are_refused_as_in_training(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.json.gz").touch()
    (tmp_path / "x").touch()
    for read in (check_conversations_file, partial(asked, tmp_path)):
        with refused(said, start=f"{tmp_path / name}: expected LLaVA's conversations, a .json or .jsonl file; "):
            read(tmp_path / name)
