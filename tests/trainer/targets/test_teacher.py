"""The contract for a teacher's targets on disk, and the store that reads them; a stage with planted targets."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sea_pipeline.core.errors import UserError
from sea_pipeline.storage.parquet import shard_footer
from tests.support.planted_targets import (
    BAD,
    COUNT,
    GRID,
    PATCHES,
    WIDTH,
    codec_of,
    flip,
    image_id,
    planted,
    shard,
    teach,
)
from trainer.targets.codecs import Codec, CodecName, fit_codec
from trainer.targets.store import TargetRow, Targets, TargetWriter, bytes_per_image, open_targets


@pytest.mark.parametrize("name", ["float16", "int8", "pq64"])
def test_the_store_gives_back_what_the_codec_keeps(name: CodecName, tmp_path: Path) -> None:
    store = open_targets(str(teach(tmp_path / "targets", name)))
    ids = sorted(image_id(number) for number in range(COUNT) if number != BAD)
    assert store.ids == list(store) == ids
    assert (len(store), store.grid, store.width, store.path) == (10, GRID, WIDTH, tmp_path / "targets")
    assert store.manifest["fields"] == {"grid": [2, 3], "width": 70, "codec": name}
    assert store.fingerprint == store.manifest["fingerprint"]
    assert [bad["image_id"] for bad in store.quarantine()] == [image_id(BAD)]
    codec = codec_of(name)
    for wanted in reversed(ids):
        found, exact = store[wanted], planted(wanted)
        assert (found.refined.dtype, found.refined.shape) == (np.float32, (PATCHES, WIDTH))
        assert (found.attention.dtype, found.attention.shape) == (np.float32, (PATCHES,))
        assert (found.attention == exact.attention).all()
        assert (found.refined == codec.decode(codec.encode(exact.refined))).all()
        assert found.refined.flags.writeable
        assert found.attention.flags.writeable
    assert image_id(0) in store
    assert image_id(BAD) not in store
    assert store.uri(image_id(3)) == image_id(3)
    with pytest.raises(KeyError, match=r"'003\.png' is none of the 10 images; the nearest is 'b/003\.png'"):
        store["003.png"]


def test_the_columns_and_types_are_those_of_the_contract(folder: Path) -> None:
    schema = pq.read_schema(shard(folder, 0)).remove_metadata()
    assert [(field.name, str(field.type)) for field in schema] == [
        ("image_id", "string"),
        ("uri", "string"),
        ("image_sha256", "fixed_size_binary[32]"),
        ("attention", "fixed_size_list<element: float not null>[6]"),
        ("codes", f"fixed_size_binary[{6 * 72}]"),
    ]
    assert not any(field.nullable for field in schema)
    footer = shard_footer(shard(folder, 1))
    assert (footer["shard"], footer["grid"], footer["fingerprint"]) == (1, [2, 3], open_targets(folder).fingerprint)
    row = pq.read_table(shard(folder, 0)).to_pylist()[1]
    exact, codec = planted(row["image_id"]), codec_of("int8")
    assert row["codes"] == codec.encode(exact.refined).tobytes()
    assert row["attention"] == exact.attention.tolist()
    assert row["image_sha256"] == b"\x07" * 32


def write(path: Path, codec: Codec, patches: int, count: int) -> None:
    with TargetWriter(path, patches, codec) as writer:
        for number in range(count):
            writer.add(TargetRow(f"{number}", f"{number}", b"0" * 32, planted(f"{number}", patches, codec.width)))


def test_encodings_and_row_groups(tmp_path: Path) -> None:
    codec = fit_codec("float16", np.ones((1, 1024), np.float32))
    write(tmp_path / "x.parquet", codec, 200, 5)  # 400 kB an image
    write(tmp_path / "large.parquet", codec, 600, 2)  # 1.2 MB an image
    metadata = pq.read_metadata(tmp_path / "x.parquet")
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [2, 2, 1]
    assert pq.read_metadata(tmp_path / "large.parquet").num_row_groups == 2
    columns = [metadata.row_group(0).column(place) for place in range(5)]
    assert all(column.compression == "ZSTD" for column in columns)
    assert not any("DICTIONARY" in encoding for column in columns for encoding in column.encodings)
    assert bytes_per_image(200, "float16", 1024) == 200 * (2048 + 4)
    assert bytes_per_image(200, "int8", 1024) == 200 * (1026 + 4)
    assert bytes_per_image(200, "pq64", 1024) == 200 * (64 + 4)
    assert (tmp_path / "x.parquet").stat().st_size < 5 * bytes_per_image(200, "float16", 1024) + 20_000


def test_one_image_is_read_without_the_other_row_groups(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as smaller:
        smaller.setattr("trainer.targets.store._GROUP_BYTES", 2 * PATCHES * (WIDTH + 2))
        folder = teach(tmp_path / "targets")
    metadata = pq.read_metadata(shard(folder, 0))
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [2, 2]
    flip(shard(folder, 0), metadata.row_group(1).column(4).data_page_offset + 100)
    store = open_targets(folder, verify=False)
    for wanted in store.ids[:2]:
        assert (store[wanted].attention == planted(wanted).attention).all()
    for wanted in store.ids[2:4]:
        with pytest.raises(UserError, match=r"part-00000-of-00003\.parquet: damaged"):
            store[wanted]


def test_targets_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    good = planted("x")
    wrong = {
        r"expected V\^ \(6, 70\)": Targets(good.refined[:, :-1], good.attention),
        r"a \(6,\), found \(6, 70\) and \(5,\)": Targets(good.refined, good.attention[:-1]),
        "found a sum of 2": Targets(good.refined, 2 * good.attention),
        "found a sum of nan": Targets(good.refined, good.attention * np.float32(np.nan)),
        "found a sum of 1": Targets(good.refined, np.array([2, -1, 0, 0, 0, 0], np.float32)),
        "finite": Targets(good.refined * np.float32(np.nan), good.attention),
    }
    with TargetWriter(tmp_path / "x.parquet", PATCHES, codec_of("int8")) as writer:
        for message, targets in wrong.items():
            with pytest.raises(ValueError, match=message):
                writer.add(TargetRow("x", "x", b"0" * 32, targets))
    assert len(pq.read_table(tmp_path / "x.parquet")) == 0
