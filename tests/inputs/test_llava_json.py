import io
import json
from pathlib import Path

import pytest

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs import json_array
from sea_pipeline.inputs.json_array import JsonNumbers
from sea_pipeline.inputs.llava_json import images_of, record_name, records, relative_path

ROW = {"id": 1, "image": "a.jpg", "conversations": [{"from": "human", "value": "Hi"}]}


def test_records_come_with_the_number_of_their_entry_or_line(tmp_path: Path) -> None:
    array, lines = tmp_path / "data.json", tmp_path / "data.jsonl"
    array.write_text(json.dumps([ROW, ROW]))
    lines.write_text(f"\n{json.dumps(ROW)}\n\n{json.dumps(ROW)}")
    assert list(records(array)) == [(1, ROW), (2, ROW)]
    assert list(records(lines)) == [(2, ROW), (4, ROW)]
    assert (record_name(array, 2), record_name(lines, 4)) == ("entry 2", "line 4")


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_a_record_is_there_before_the_file_has_been_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    row = json.dumps(ROW)
    path.write_text(
        f"[{row},\n{row}\n" + '"broken' * 50_000 if name == "data.json" else f"{row}\n" + '{"broken' * 50_000
    )
    found = records(path)
    assert next(found) == (1, ROW)
    with pytest.raises(UserError, match=name):
        list(found)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.json: cannot be read: No such file"):
        next(records(tmp_path / "absent.json"))


@pytest.mark.parametrize("row", [{"k" * 50_000: 1}, {"conversations": [], "k" * 50_000: ["x.jpg"]}])
def test_keys_of_any_length_make_short_messages(tmp_path: Path, row: dict[str, object]) -> None:
    (tmp_path / "data.json").write_text(json.dumps([row]))
    with pytest.raises(UserError, match="kkk") as refused:
        for _, record in records(tmp_path / "data.json"):
            images_of(record)
    assert len(str(refused.value)) < 600


def test_images_of_a_record() -> None:
    assert images_of({"image": "a"}) == ["a"]
    assert images_of({"image": ["a", 7]}) == ["a", 7]
    assert images_of({"image": None}) == images_of({"image": []}) == images_of({}) == []
    assert relative_path("./a//b/../c.jpg") == "a/c.jpg"


def test_nan_is_read_in_both_forms_and_is_a_word_in_texts(tmp_path: Path) -> None:
    rows = [ROW, ROW | {"score": float("nan"), "most": [float("inf"), -float("inf")], "id": 'NaN, "NaN" \\'}, ROW]
    (tmp_path / "data.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = list(records(tmp_path / "data.json"))
    assert found == list(enumerate([ROW, rows[1] | {"score": None, "most": [None, None]}, ROW], 1))
    assert list(records(tmp_path / "data.jsonl")) == found
    (tmp_path / "data.json").write_text(json.dumps(rows)[:-30] + " Nan]")
    with pytest.raises(UserError, match=r"data\.json: expected a JSON array in UTF-8; after entry 2: "):
        list(records(tmp_path / "data.json"))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1000])
def test_numbers_that_are_none_are_found_wherever_the_bytes_are_cut(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(json_array, "_CHUNK", chunk)
    text = b'[NaN,-Infinity, {"NaN": Infinity, "a\\"NaN": -1.5e3, "\\\\":NaN}, true,false,"-Infinity NaN", null,NaN]'
    file, parts = JsonNumbers(io.BytesIO(text)), []
    while part := file.read(1):
        parts.append(part)
    expected = b'[null,null, {"NaN": null, "a\\"NaN": -1.5e3, "\\\\":null}, true,false,"-Infinity NaN", null,null]'
    assert b"".join(parts) == expected
    assert JsonNumbers(io.BytesIO(b'["cut')).read(0) == b""
    assert json.loads(b"".join(parts))[2]["\\"] is None
