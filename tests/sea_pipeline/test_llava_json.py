import json
from pathlib import Path

import pytest

from sea_pipeline.errors import UserError
from sea_pipeline.llava_json import images_of, place, records, relative_path

ROW = {"id": 1, "image": "a.jpg", "conversations": [{"from": "human", "value": "Hi"}]}


def test_records_come_with_the_number_of_their_entry_or_line(tmp_path: Path) -> None:
    array, lines = tmp_path / "data.json", tmp_path / "data.jsonl"
    array.write_text(json.dumps([ROW, ROW]))
    lines.write_text(f"\n{json.dumps(ROW)}\n\n{json.dumps(ROW)}")
    assert list(records(array)) == [(1, ROW), (2, ROW)]
    assert list(records(lines)) == [(2, ROW), (4, ROW)]
    assert (place(array, 2), place(lines, 4)) == ("entry 2", "line 4")


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


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("nested", ["%s", "[1, %s]", '{"score": %s}'])
def test_what_is_no_number_in_json_is_refused_in_lines_too(tmp_path: Path, value: str, nested: str) -> None:
    row = json.dumps(ROW)[:-1] + f', "more": {nested % value}}}'
    for name, text in (("data.json", f"[{json.dumps(ROW)}, {row}]"), ("data.jsonl", f"{json.dumps(ROW)}\n{row}\n")):
        (tmp_path / name).write_text(text)
        found = records(tmp_path / name)
        assert next(found) == (1, ROW)
        with pytest.raises(
            UserError, match=rf"{name}: (expected a JSON array|line 2: expected one JSON object a line; )"
        ):
            list(found)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.json: cannot be read: No such file"):
        next(records(tmp_path / "absent.json"))


def test_images_of_a_record() -> None:
    assert images_of({"image": "a"}) == ["a"]
    assert images_of({"image": ["a", 7]}) == ["a", 7]
    assert images_of({"image": None}) == images_of({"image": []}) == images_of({}) == []
    assert relative_path("./a//b/../c.jpg") == "a/c.jpg"
