"""Values as other systems write them: each is read, costs its row, or is refused by its column and type in one line."""

import datetime
import decimal
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.sources import list_samples, open_source
from sea_pipeline.inputs.sources.base import PATH_COLUMNS
from sea_pipeline.inputs.sources.values import MISSING, NoId, bytes_of, id_texts, is_bytes, is_id
from tests.support.contents import read_all
from tests.support.photo_forms import jpeg, write_parquet
from tests.support.refused import refused

NOT_UTF8 = pa.array([b"ok", b"\xff\xfe", b"c"], pa.binary())
UTC = datetime.UTC
A_UUID = uuid.UUID("01234567-89ab-cdef-0123-456789abcdef")

SIX = {
    "text": (NOT_UTF8.view(pa.string()), ["c", "ok"], "is not UTF-8; rename it"),
    "nul": (pa.array(["x", "a\0b", "z"]), ["x", "z"], "holds a NUL character; rename it"),
    "moment": (
        pa.array([0, 2**62, 5], pa.timestamp("us")),
        ["1970-01-01T00:00:00", "1970-01-01T00:00:00.000005"], "beyond the years 1 to 9999",
    ),
    "double": (pa.array([0.5, float("nan"), 2.5]), ["0.5", "2.5"], "found NaN"),
    "decimal": (
        pa.array([decimal.Decimal("1.50"), None, decimal.Decimal(7)], pa.decimal128(9, 2)), ["1.50", "7.00"],
        "found none",
    ),
    "day": (
        pa.array([0, 2**31 - 1, 7], pa.int32()).view(pa.date32()), ["1970-01-01", "1970-01-08"],
        "beyond the years 1 to 9999",
    ),
}  # fmt: skip
"""Ids, of which one is bad; the good ones as text; what is said of the bad one."""


@pytest.mark.slow
@pytest.mark.parametrize("name", SIX)
def test_a_bad_id_costs_its_row_in_tables_lists_and_datasets(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    ids, good, reason = SIX[name]
    pq.write_table(pa.table({"sku": ids, "path": ["a.png", "b.png", "c.png"]}), "list.parquet")
    write_parquet(Path("in/train.parquet"), dict.fromkeys("abc", b"A"), sku=ids)
    for images, streaming in (("list.parquet", False), ("in", False), ("hf:in", False), ("hf:in", True)):
        samples = list_samples(images, id_column="sku", streaming=streaming).samples
        assert sorted(sample.image_id for sample in samples if not sample.problem) == good
        (problem,) = [sample.problem for sample in samples if sample.problem]
        assert reason in problem


def big(value: int) -> pa.Array:
    return pa.array([value], pa.uint64())


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array([-3, 12], pa.int8()), ["-3", "12"]),
        (big(2**64 - 1), ["18446744073709551615"]),
        (pa.array([1.5, 1e300, 2.0]), ["1.5", "1e+300", "2.0"]),
        (pa.array(np.array([0.5], np.float16)), ["0.5"]),
        (pa.array([0.1], pa.float32()), [repr(float(pa.scalar(0.1, pa.float32()).as_py()))]),
        (pa.array([float("inf")]), [NoId("an infinite number")]),
        (pa.array([decimal.Decimal("-0.10")], pa.decimal128(5, 2)), ["-0.10"]),
        (pa.array([decimal.Decimal(10**50)], pa.decimal256(60, 0)), [f"1{'0' * 50}"]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array(["a", "", None]), ["a", MISSING, MISSING]),
        (pa.array(["a"], pa.large_string()), ["a"]),
        (pa.array(["a"], pa.string_view()), ["a"]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (pa.RunEndEncodedArray.from_arrays([2, 3], ["a", "b"]), ["a", "a", "b"]),
        (NOT_UTF8, ["ok", "\udcff\udcfe", "c"]),
        (NOT_UTF8.cast(pa.large_binary()).view(pa.large_string()), ["ok", "\udcff\udcfe", "c"]),
        (NOT_UTF8.dictionary_encode(), ["ok", "\udcff\udcfe", "c"]),
        (pa.array([b"x"], pa.binary_view()), ["x"]),
        (pa.array([b"abcd", None], pa.binary(4)), ["abcd", MISSING]),
        (pa.array([A_UUID.bytes, None], pa.binary(16)), [str(A_UUID), MISSING]),
        (pa.array([uuid.UUID(int=5).bytes], pa.binary(16)), [str(uuid.UUID(int=5))]),
        (pa.array([b"0123456789abcdef"], pa.binary(16)), ["0123456789abcdef"]),
        (pa.array([b"0123456789abcdef"], pa.uuid()), ["30313233-3435-3637-3839-616263646566"]),
        (pa.array([datetime.date(2020, 2, 29)]), ["2020-02-29"]),
        (pa.array([datetime.date(2020, 2, 29)], pa.date64()), ["2020-02-29"]),
        (pa.array([0, 1], pa.timestamp("s")), ["1970-01-01T00:00:00", "1970-01-01T00:00:01"]),
        (pa.array([-1], pa.timestamp("ns")), ["1969-12-31T23:59:59.999999999"]),
        (
            pa.array([datetime.datetime(2020, 1, 2, 3, 4, 5, 600, UTC)], pa.timestamp("us", "Europe/Berlin")),
            ["2020-01-02T03:04:05.0006+00:00"],
        ),
        (
            pa.array([-(2**60)], pa.timestamp("ms")),
            [NoId(f"{-(2**60)} as timestamp[ms], which is beyond the years 1 to 9999")],
        ),
        (pa.array([datetime.time(1, 2, 3)], pa.time32("s")), ["01:02:03"]),
        (pa.array([1], pa.time64("ns")), ["00:00:00.000000001"]),
    ],
)  # fmt: skip
def test_ids_of_any_type_are_taken_as_text(ids: pa.Array, expected: list[str]) -> None:
    assert is_id(ids.type)
    assert id_texts([ids]) == expected
    assert id_texts([ids, ids.slice(1)]) == [*expected, *expected[1:]]
    assert id_texts([]) == []


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.int64()), pa.struct([("a", pa.int64())]), pa.map_(pa.string(), pa.int64()), pa.null(),
        pa.duration("s"), pa.list_(pa.uint8(), 16), pa.month_day_nano_interval(),
    ],
)  # fmt: skip
def test_what_cannot_be_an_id_is_refused_by_its_type(tmp_path: Path, kind: pa.DataType) -> None:
    assert not is_id(kind)
    if kind == pa.month_day_nano_interval():  # which Parquet does not hold
        return
    path = write_parquet(tmp_path / "x.parquet", {"p": b"A"}, id=pa.array([None], kind))
    assert list_samples(str(path)).ids == "the column image.path"
    with pytest.raises(UserError) as error:
        list_samples(str(path), id_column="id")
    assert str(error.value) == (
        f"{path}: expected text, bytes, UUIDs, numbers, booleans, dates or times in the column 'id', which --id-column "
        f"asks for; found {pq.read_schema(path).field('id').type}"
    )


CELLS = [b"A" * 5, b"B" * 5, None]
LISTS = [None if cell is None else list(cell) for cell in CELLS]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(CELLS, pa.large_binary()),
        pa.array(CELLS, pa.binary_view()),
        pa.array(CELLS).dictionary_encode(),
        pa.array(LISTS, pa.list_(pa.uint8())),
        pa.array(LISTS, pa.large_list(pa.int8())),
        pa.array([*LISTS[:2], [67] * 5], pa.list_(pa.uint8(), 5)),  # pyarrow 20 reads none with gaps
        pa.array(LISTS, pa.list_view(pa.uint8())),
        pa.StructArray.from_arrays([pa.array(CELLS).dictionary_encode(), pa.array([*"ab", None])], ["bytes", "path"]),
        pa.StructArray.from_arrays([pa.array(LISTS, pa.list_(pa.uint8()))], ["bytes"]),
        pa.array([None if cell is None else {"path": "p", "bytes": cell} for cell in CELLS]),
    ],
    ids=lambda column: str(column.type)[:40],
)  # fmt: skip
def test_bytes_of_any_type_are_images(tmp_path: Path, column: pa.Array) -> None:
    try:
        pq.write_table(pa.table({"caption": ["x", "y", "z"], "image": column}), tmp_path / "x.parquet")
    except pa.ArrowNotImplementedError:
        pytest.skip("an older pyarrow does not write it")
    found = list(read_all(list_samples(str(tmp_path / "x.parquet"))).values())
    if pa.types.is_struct(column.type) and column.null_count:
        assert found == CELLS[:2]
    else:
        missing = "x.parquet, row 2: expected the image's bytes; found none"
        assert found == [*CELLS[:2], b"C" * 5 if pa.types.is_fixed_size_list(column.type) else missing]


def test_runs_of_bytes_and_numbers_that_are_missing() -> None:
    runs = pa.RunEndEncodedArray.from_arrays([2, 3], pa.array([b"A", b"B"]))
    assert is_bytes(runs.type)
    assert list(bytes_of(runs)) == [b"A", b"A", b"B"]
    holes = pa.array([[1, None], [2]], pa.list_(pa.uint8()))
    assert list(bytes_of(holes)) == [None, b"\2"]


def test_usual_bytes_come_before_rare_ones(tmp_path: Path) -> None:
    pq.write_table(pa.table({"mask": [[1]], "picture of it": [b"A"]}), tmp_path / "x.parquet")
    assert list(read_all(list_samples(str(tmp_path / "x.parquet"))).values()) == [b"A"]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"images": [[{"bytes": b"A", "path": None}]], "texts": ["x"]},
            "expected a column called path, image, file_name or uri; found images (list<element: struct<bytes: binary, "
            "path: null>>), texts; or of images: binary, or a struct of bytes and path, one image a row",
        ),
        (
            {"image": [[b"A"]]},
            "expected an image's path in the column 'image', or its bytes (binary, or a struct of bytes and path, one "
            "image a row); found list<element: binary>",
        ),
        ({"image": [["a.png", "b.png"]]}, "one image a row); found list<element: string>"),
        ({"image": [7]}, "one image a row); found int64"),
        ({"image": [{"url": "a"}]}, "one image a row); found struct<url: string>"),
        ({"image": pa.array([None], pa.null())}, "one image a row); found null"),
        (
            {"image": pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((1, 2, 1), np.uint8))},
            "one image a row); found extension<arrow.fixed_shape_tensor[value_type=uint8, shape=[2,1]",
        ),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused_by_its_column_and_type(tmp_path: Path, columns: dict[str, Any], said: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with refused(said, start=f"{tmp_path}/x.parquet: expected "):
        list_samples(str(tmp_path / "x.parquet"))
    write_parquet(tmp_path / "y.parquet", {"y": b"Y"})
    problems = [sample.problem for sample in list_samples(str(tmp_path)).samples if sample.problem]
    assert len(problems) == 1
    assert problems[0].startswith("expected a column of images")


@pytest.mark.parametrize("column", PATH_COLUMNS)
@pytest.mark.parametrize("more", ["phash", "phash, md5", "embedding", "numbers", "none yet"])
def test_hashes_beside_paths_are_no_images(tmp_path: Path, column: str, more: str) -> None:
    hashes = pa.array([bytes(range(at, at + 8)) for at in range(4)])
    others = {
        "phash": {"phash": hashes},
        "phash, md5": {"phash": hashes, "md5": hashes.cast(pa.large_binary())},
        "embedding": {"embedding": pa.array([np.full(512, at, np.float32).tobytes() for at in range(4)])},
        "numbers": {"phash": pa.array([list(range(8))] * 4, pa.list_(pa.uint8()))},
        "none yet": {"thumbnail": pa.array([None] * 4, pa.binary())},
    }[more]
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(bytes([number]))
    pq.write_table(pa.table({column: [f"{number}.png" for number in range(4)], **others}), tmp_path / "x.parquet")
    listing = list_samples(str(tmp_path / "x.parquet"))
    assert listing.ids == ("the column file_name" if column == "file_name" else "paths")
    assert read_all(listing) == {f"{number}.png": bytes([number]) for number in range(4)}


def test_images_beside_paths_and_hashes_are_found_by_their_bytes(tmp_path: Path) -> None:
    """As Spark's binaryFile has them; the paths lead nowhere from here, and one image is damaged."""
    images = [jpeg(), b"damaged", None, jpeg()[:-9]]
    columns = {"path": list("abcd"), "md5": [b"0123456789abcdef"] * 4, "content": images}
    for name in ("x", "y"):
        pq.write_table(pa.table({**columns, "id": [f"{name}{at}" for at in range(4)]}), tmp_path / f"{name}.parquet")
    source = open_source((listing := list_samples(str(tmp_path / "x.parquet"))).root)
    assert [sample.image_id for sample in listing.samples] == ["x0", "x1", "x2", "x3"]
    assert [source.read(listing.samples[at].uri) for at in (0, 1, 3)] == [images[at] for at in (0, 1, 3)]
    assert [sample.problem for sample in list_samples(str(tmp_path)).samples] == [None] * 8


def test_several_lists_of_paths_are_no_tables_of_images(tmp_path: Path) -> None:
    for name in ("x", "y"):
        pq.write_table(pa.table({"image": ["a.png"], "phash": [b"\0" * 8]}), tmp_path / f"{name}.parquet")
    for sample in list_samples(str(tmp_path)).samples:
        assert (sample.problem or "").startswith("expected a column of images")


def test_lists_of_images_in_a_dataset_are_refused(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"images": datasets.List(datasets.Image()), "n": datasets.Value("int64")})
    cells = [[{"bytes": b"A", "path": None}]]
    datasets.Dataset.from_dict({"images": cells, "n": [1]}, features=features).save_to_disk(tmp_path / "saved")
    with refused(match=r"saved:train: expected a column of images \(binary, or a struct of bytes and "):
        list_samples(f"hf:{tmp_path}/saved")


def test_columns_of_one_name_and_names_with_points(tmp_path: Path) -> None:
    table = pa.table([[b"A"], ["x"], ["y"], ["z"]], ["image", "id", "id", "id.old"])
    pq.write_table(table, tmp_path / "x.parquet")
    assert read_all(list_samples(str(tmp_path / "x.parquet"))) == {"000000000": b"A"}
    assert read_all(list_samples(str(tmp_path / "x.parquet"), id_column="id.old")) == {"z": b"A"}
    with pytest.raises(UserError, match="asks for; found 2 columns of that name"):
        list_samples(str(tmp_path / "x.parquet"), id_column="id")
    pq.write_table(pa.table([["o"], ["n"], [b"A"]], ["id.old", "id", "image.bytes"]), tmp_path / "x.parquet")
    assert read_all(list_samples(str(tmp_path / "x.parquet"))) == {"n": b"A"}


def test_a_dataset_reads_the_rows_beside_a_path_that_is_not_utf8(tmp_path: Path) -> None:
    import datasets

    paths = NOT_UTF8.view(pa.string())
    cells = pa.StructArray.from_arrays([pa.array([b"A", b"B", b"C"]), paths], ["bytes", "path"])
    (tmp_path / "loadable").mkdir()
    pq.write_table(pa.table({"image": cells, "id": ["a", "b", "c"]}), tmp_path / "loadable" / "train.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        for streaming in (False, True):
            listing = list_samples(f"hf:{tmp_path}/loadable", streaming=streaming)
            assert read_all(listing) == {"a": b"A", "b": b"B", "c": b"C"}


def test_a_line_of_json_that_python_does_not_hold_costs_its_row(tmp_path: Path) -> None:
    lines = [b'{"image": "a.png"}', b'{"image": "\xe9.png"}', b'{"image": "b.png", "id": %s}' % (b"1" * 5000)]
    lines += [b'{"image": NaN}', b'{"image": {"path": "x"}}', b'{"image": 1e400}', b'{"image": "\\u0000"}']
    (tmp_path / "x.jsonl").write_bytes(b"\n".join([*lines, b'{"image": "c.png"}']))
    samples = list_samples(str(tmp_path / "x.jsonl")).samples
    assert [sample.image_id for sample in samples if not sample.problem] == ["a.png", "c.png"]
    problems = {sample.image_id: sample.problem for sample in samples if sample.problem}
    assert len(problems) == 5, "NaN is null: no image"
    assert "in UTF-8; found the byte 0xe9 at place 12; convert the file" in str(problems["line 2"])
    assert "found a number of more than 4300 digits; mend the line" in str(problems["line 3"])
    (tmp_path / "x.json").write_text('[{"image": "a.png", "score": NaN}, {"image": 7}, {"image": {"path": NaN}}]')
    samples = list_samples(str(tmp_path / "x.json")).samples
    assert sorted(bool(sample.problem) for sample in samples) == [False, True, True]
