"""The contract for a teacher's targets on disk, and the store that reads them, damaged ones and in threads, too."""

import json
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from sea_pipeline import open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.execution.local import run
from sea_pipeline.inputs.samples import Listing, Sample
from sea_pipeline.output.begin import open_or_create
from sea_pipeline.storage.parquet import shard_footer
from sea_pipeline.storage.publish import publish_bytes
from tests.support.damage import flip
from tests.support.planted_targets import (
    BAD,
    COUNT,
    GRID,
    PATCHES,
    SHARD,
    WIDTH,
    PlantedStage,
    codec_of,
    image_id,
    planted,
    shard,
    teach,
)
from tests.support.refused import ran, refuses
from tests.support.world import draw_folder
from trainer.targets.codecs import Codec, CodecName, fit_codec, save_codec
from trainer.targets.store import (
    CODEC,
    KIND,
    TargetRow,
    Targets,
    TargetStore,
    TargetWriter,
    bytes_per_image,
    open_targets,
)


@pytest.mark.slow
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


def test_one_flipped_bit_anywhere_in_a_file_is_found(folder: Path) -> None:
    for path in (shard(folder, 1), folder / CODEC):
        whole = path.read_bytes()
        for number, offset in enumerate(range(0, len(whole), len(whole) // 25)):
            flip(path, offset, number % 8)
            with pytest.raises(ValueError, match=f"{path.name}: damaged"):
                open_targets(folder)
            path.write_bytes(whole)
    open_targets(folder)


def test_without_verifying_damage_is_found_when_it_is_read(folder: Path) -> None:
    held = shard(folder, 1).read_bytes()
    errors = []
    for number, offset in enumerate(range(0, len(held), len(held) // 40)):
        flip(shard(folder, 1), offset, number % 8)
        try:
            store = open_targets(folder, verify=False)
            for wanted in store.ids:
                if wanted in map(image_id, range(COUNT)):
                    assert (store[wanted].attention == planted(wanted).attention).all()
                    assert np.abs(store[wanted].refined - planted(wanted).refined).max() < 1
        except UserError as error:
            errors.append(str(error))
        shard(folder, 1).write_bytes(held)
    assert len(errors) > 15
    assert all(shard(folder, 1).name in error for error in errors)


def test_folders_that_do_not_fit_are_refused(folder: Path, label: Callable[..., Any], tmp_path: Path) -> None:
    label(images=str(draw_folder(tmp_path / "photos", 2)))
    with pytest.raises(UserError, match="expected targets, found labels"):
        open_targets(tmp_path / "labels")
    with pytest.raises(UserError, match="expected labels, found targets"):
        open_labels(folder)
    with pytest.raises(UserError, match=r"found no dataset\.json"):
        open_targets(tmp_path)
    codec = (folder / CODEC).read_bytes()
    (folder / CODEC).unlink()
    with pytest.raises(UserError, match=r"codec\.safetensors: expected a file of [\d,]+ bytes; found none"):
        open_targets(folder)
    (folder / CODEC).write_bytes(codec)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="3 of 3 shards are done; run the same `teacher` command again"):
        open_targets(folder)


def test_a_codec_that_is_not_the_manifests_is_refused(tmp_path: Path) -> None:
    samples = [Sample(image_id(0), image_id(0))]
    fields = {"grid": list(GRID), "width": WIDTH, "codec": "float16"}
    ledger = open_or_create(tmp_path / "x", KIND, fields, Listing("x", "x.json", str(tmp_path), samples), SHARD, {})
    publish_bytes(tmp_path / "x" / CODEC, save_codec(codec_of("int8")), tmp_path / "x")
    run(ledger, PlantedStage(codec_of("int8")), max_bad=0)
    with pytest.raises(UserError, match=r"expected float16 of width 70, as manifest\.json says; found int8"):
        open_targets(tmp_path / "x")


def read(store: TargetStore, wanted: str) -> tuple[float, float]:
    targets = store[wanted]
    return float(targets.refined.sum()), float(targets.attention[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_processes_read_the_same(folder: Path) -> None:
    store = open_targets(folder)
    ids = store.ids[::-1]
    expected = [read(store, wanted) for wanted in ids]  # and a row group is held while the process forks
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap(read, [(store, wanted) for wanted in ids]) == expected


def test_a_pickled_store_is_small_and_reads_the_same(folder: Path) -> None:
    store = open_targets(folder)
    expected = [read(store, wanted) for wanted in store.ids]
    again = pickle.loads(pickle.dumps(store))
    assert [read(again, wanted) for wanted in store.ids] == expected
    assert len(pickle.dumps(store)) < len(pickle.dumps(open_targets(folder))) + 2000  # ids, but no row group


def test_threads_read_the_same(folder: Path) -> None:
    store = open_targets(folder)
    ids = store.ids * 20
    np.random.default_rng(0).shuffle(ids)
    expected = {wanted: read(store, wanted) for wanted in store.ids}
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda wanted: read(store, wanted), ids)) == [expected[wanted] for wanted in ids]


def test_status_and_verify_know_targets(folder: Path, command: Any) -> None:
    stdout = ran(command, "status", folder)
    assert "targets, finished" in stdout
    assert "10 done, 1 bad, of 11 planned" in stdout
    assert image_id(BAD) in stdout
    status = json.loads(command("status", folder, "--json")[1])
    assert (status["kind"], status["finished"], status["reasons"]) == ("targets", True, {"teach: NotFinite": 1})
    stdout = ran(command, "verify", folder)
    assert "6 files" in stdout  # the plan, three shards, a quarantine table, the codec
    refuses(command, "expected labels, found targets", "inspect", folder)


@pytest.mark.slow
def test_reading_needs_no_torch_and_no_faiss() -> None:
    program = "import sys, trainer.targets.store; print({'torch', 'faiss', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
