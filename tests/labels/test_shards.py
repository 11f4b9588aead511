"""The contract on disk: exact columns, encodings and values, read back with pyarrow alone and through the store."""

import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sea_pipeline import open_labels
from sea_pipeline.labels.format import LabelRow, ShardWriter, label_rows
from sea_pipeline.output.row_store import NoSuchImageError
from sea_pipeline.storage.parquet import shard_footer
from tests.support.world import Label, draw_folder


def rows(count: int, patches: int = 6, top_n: int = 3) -> list[LabelRow]:
    random = np.random.default_rng(0)
    return [
        LabelRow(
            f"{number}.jpg", f"x/{number}.jpg", bytes([number]) * 32, number + 1, 70_000, (0.0, 0.125, 1.0, 0.875),
            random.integers(-1, 65_535, (patches, top_n)), random.random((patches, top_n)),
        )
        for number in range(count)
    ]  # fmt: skip


def write(path: Path, count: int) -> list[LabelRow]:
    written = rows(count)
    with ShardWriter(path, patches=6, top_n=3) as writer:
        for row in written:
            writer.add(row)
        writer.set_footer({"fingerprint": "f", "patch_sum": [0.5]})
    return written


@pytest.mark.parametrize("count", [0, 3, 40])
@pytest.mark.parametrize("version", [1, 2])
def test_rows_that_are_read_are_written_again_to_the_same_bytes(tmp_path: Path, count: int, version: int) -> None:
    given: Iterable[LabelRow] = rows(count)
    for name in ("x", "y"):
        with ShardWriter(tmp_path / name, 6, 3, version) as writer:
            for row in given:
                writer.add(row)
        given = label_rows(pq.read_table(tmp_path / name), 3)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    assert len(list(given)) == count


def test_the_columns_and_types_are_those_of_the_contract(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", 3)
    schema = pq.read_schema(tmp_path / "x.parquet").remove_metadata()
    assert [(field.name, str(field.type)) for field in schema] == [
        ("image_id", "string"),
        ("uri", "string"),
        ("image_sha256", "fixed_size_binary[32]"),
        ("height", "int32"),
        ("width", "int32"),
        ("crop_box", "fixed_size_list<element: float not null>[4]"),
        ("words", "fixed_size_list<element: uint16 not null>[18]"),
        ("scores", "fixed_size_list<element: float not null>[18]"),
    ]
    assert not any(field.nullable for field in schema)
    assert shard_footer(tmp_path / "x.parquet") == {"fingerprint": "f", "patch_sum": [0.5]}


def test_a_changed_footer_is_damage_unless_it_has_no_checksum(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", 3)
    plain = (tmp_path / "x.parquet").read_bytes()
    for before, after in ((b"[0.5]", b"[0.7]"), (b'"patch_sum"', b'"batch_sum"'), (b'"fingerprint"', b'"fingerprimt"')):
        assert before in plain
        (tmp_path / "x.parquet").write_bytes(plain.replace(before, after))
        with pytest.raises(ValueError, match="its footer is damaged"):
            shard_footer(tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet")
    pq.write_table(table.replace_schema_metadata({"sea_pipeline": '{"patches": 3}'}), tmp_path / "old.parquet")
    assert shard_footer(tmp_path / "old.parquet") == {"patches": 3}


def test_encodings_and_row_groups(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", 70)
    metadata = pq.read_metadata(tmp_path / "x.parquet")
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [32, 32, 6]
    columns = {metadata.row_group(0).column(i).path_in_schema: metadata.row_group(0).column(i) for i in range(8)}
    assert "BYTE_STREAM_SPLIT" in columns["scores.list.element"].encodings
    assert all(column.compression == "ZSTD" for column in columns.values())
    assert not any("DICTIONARY" in encoding for column in columns.values() for encoding in column.encodings)


def test_values_come_back_as_written(tmp_path: Path) -> None:
    written = write(tmp_path / "x.parquet", 40)
    read = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert len(read) == 40
    for row, back in zip(written, read, strict=True):
        assert (back["image_id"], back["uri"], back["image_sha256"]) == (row.image_id, row.uri, row.image_sha256)
        assert (back["height"], back["width"], tuple(back["crop_box"])) == (row.height, row.width, row.crop_box)
        assert back["words"] == np.where(row.word_ids < 0, 65_535, row.word_ids).ravel().tolist()
        assert back["scores"] == row.scores.astype(np.float16).astype(float).ravel().tolist()


def test_a_shard_of_bad_pictures_only_is_a_table_without_rows(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", 0)
    assert len(pq.read_table(tmp_path / "x.parquet")) == 0


def test_an_exception_while_writing_leaves_arrow_quiet(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "x.parquet", 6, 3) as writer:
        writer.add(rows(1)[0])
        raise RuntimeError


def test_page_checksums_are_written(tmp_path: Path) -> None:
    """Uncompressed garbage in a page must not come back as labels."""
    path = tmp_path / "x.parquet"
    write(path, 32)
    start = pq.read_metadata(path).row_group(0).column(7).data_page_offset
    silent = 0
    for offset in range(40, 200, 7):
        damaged = bytearray(path.read_bytes())
        damaged[start + offset] ^= 1
        (tmp_path / "y.parquet").write_bytes(damaged)
        try:
            pq.read_table(tmp_path / "y.parquet", page_checksum_verification=True)
            silent += 1
        except (OSError, pa.ArrowException):
            pass
    assert silent == 0


def test_the_store_reads_what_the_frozen_interface_promises(label: Label, words: Path, tmp_path: Path) -> None:
    run = label(images=str(draw_folder(tmp_path / "photos", 11)), top_n=8)
    store = open_labels(str(tmp_path / "labels"))
    assert len(store) == 11
    assert repr(store) == f"LabelStore({str(tmp_path / 'labels')!r}, 11 images, encoder 'packaged')"
    assert store.ids == sorted(store.ids)
    assert store.words == tuple(words.read_text().split())
    assert (store.top_n, store.fingerprint) == (8, run.ledger.dataset.fingerprint)
    assert store.manifest["rows"] == 11
    labels = store["a/001.png"]
    assert (labels.word_ids.shape, labels.word_ids.dtype) == ((12, 8), np.int32)
    assert (labels.scores.shape, labels.scores.dtype) == ((12, 8), np.float32)
    assert labels.grid == (3, 4)
    assert labels.crop_box == (0.0, 0.0, 1.0, 1.0)
    assert (labels.scores[labels.word_ids < 0] == 0).all()
    assert (labels.word_ids == -1).any()
    assert "a/001.png" in store
    with pytest.raises(KeyError, match=r"'001\.png' is none of the 11 images; the nearest is 'a/001\.png'"):
        store["001.png"]
    with pytest.raises(KeyError, match=r"the nearest is 'b/002\.png'"):
        store["b/002.jpg"]


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("cat.jpg", "n02497673_Madagascar_cat.jpg"),
        ("CAT.JPG", "n02497673_Madagascar_cat.jpg"),
        ("photos/a/dog.jpg", "a/dog.jpg"),
        ("crate", "n03127925_crate.jpg"),
        ("n03127925_crates.jpeg", "n03127925_crate.jpg"),
    ],
)
def test_the_nearest_id_is_one_that_ends_in_the_text_or_has_it(text: str, nearest: str) -> None:
    ids = ["n02497673_Madagascar_cat.jpg", "n03127925_crate.jpg", "a/dog.jpg", "b/scatter.jpg.png"]
    error = NoSuchImageError(text, ids)
    assert str(error) == f"{text!r} is none of the 4 images; the nearest is {nearest!r}"
    assert str(NoSuchImageError(text, [])) == f"{text!r} is none of the 0 images"
    sent = pickle.loads(pickle.dumps(error))
    assert (type(sent), str(sent), error.args) == (NoSuchImageError, str(error), (text,))


def test_an_id_that_is_absent_costs_no_look_at_the_others() -> None:
    """As long as nobody reads the message: a loop over half a million ids may catch thousands."""

    class Unread(list[str]):
        def __iter__(self) -> Iterator[str]:
            raise AssertionError

    error = NoSuchImageError("a", Unread(["b"]))
    with pytest.raises(AssertionError):
        str(error)
