"""A teacher's targets read again: damage is found, other folders are refused, processes and threads read the same."""

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
import pytest

from sea_pipeline import open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.execution.local import run
from sea_pipeline.inputs.samples import Listing, Sample
from sea_pipeline.output.begin import open_or_create
from sea_pipeline.storage.publish import publish_bytes
from tests.support.planted_targets import (
    BAD,
    COUNT,
    GRID,
    SHARD,
    WIDTH,
    PlantedStage,
    codec_of,
    flip,
    image_id,
    planted,
    shard,
)
from tests.support.world import draw_folder
from trainer.targets.codecs import save_codec
from trainer.targets.store import CODEC, KIND, TargetStore, open_targets


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
    code, stdout, _ = command("status", folder)
    assert code == 0
    assert "targets, finished" in stdout
    assert "10 done, 1 bad, of 11 planned" in stdout
    assert image_id(BAD) in stdout
    status = json.loads(command("status", folder, "--json")[1])
    assert (status["kind"], status["finished"], status["reasons"]) == ("targets", True, {"teach: NotFinite": 1})
    code, stdout, _ = command("verify", folder)
    assert code == 0
    assert "6 files" in stdout  # the plan, three shards, a quarantine table, the codec
    code, _, stderr = command("inspect", folder)
    assert code == 1
    assert "expected labels, found targets" in stderr


@pytest.mark.slow
def test_reading_needs_no_torch_and_no_faiss() -> None:
    program = "import sys, trainer.targets.store; print({'torch', 'faiss', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
