"""A pull that is whole, killed, done again or refused; and labels opened where they are, by revision."""

import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import numpy as np
import pytest

from sea_pipeline import label_cache, open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.hub import pull as pulling
from sea_pipeline.hub.pull import pull
from sea_pipeline.hub.push import push
from sea_pipeline.join.merge import merge
from sea_pipeline.join.select import select
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.storage.paths import place
from tests.hub.helpers import NAME, URL, clients_own, fetched, kill_at, left_beside, own
from tests.hub.stand_in import READER, Hub, as_program
from tests.support.contents import files_in, rows
from tests.support.kills import killed_around
from tests.support.planted_targets import teach
from tests.support.programs import Begin
from tests.support.refused import refuses
from tests.support.tiny_runs import colours, logged, make_world, tiny_recipe, tiny_trainer
from tests.support.world import Label, draw, draw_folder

pytestmark = clients_own


def test_a_pulled_folder_is_the_one_that_was_pushed(
    command: Any, labels: Path, hub: Hub, pushed: str, tmp_path: Path
) -> None:
    code, stdout, said = command("pull", NAME, "--out", tmp_path / "pulled", "--json")
    assert code == 0
    found = json.loads(stdout)
    assert files_in(tmp_path / "pulled") == own(labels) == files_in(labels)
    assert (found["revision"], found["folder"]) == (pushed, str(tmp_path / "pulled"))
    assert found["files"] == found["fetched"] == len(own(labels))
    assert found["bytes"] == sum(map(len, own(labels).values()))
    assert f"to {tmp_path / 'pulled'}" in said
    assert left_beside(tmp_path) == []
    assert command("verify", tmp_path / "pulled")[0] == 0
    before = len(fetched(hub))
    code, stdout, _ = command("pull", NAME, "--out", tmp_path / "pulled")
    assert (code, "files were there" in stdout) == (0, True)
    assert len([path for path in fetched(hub)[before:] if ".parquet" in path]) == 0


@pytest.mark.usefixtures("pushed")
def test_the_folder_is_named_by_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(teach(tmp_path / "targets"), "owner/of-a-teacher")
    monkeypatch.chdir(tmp_path)
    assert pull(NAME).folder == "runs/labels/labels"
    assert pull("owner/of-a-teacher").folder == "runs/targets/of-a-teacher"
    assert files_in(tmp_path / "runs/targets/of-a-teacher") == own(tmp_path / "targets")


@pytest.mark.usefixtures("pushed")
def test_a_killed_pull_goes_on(labels: Path, tmp_path: Path) -> None:
    count = len(own(labels))
    for call in (1, count):
        for before in (True, False):
            out = tmp_path / f"{call}{before}"
            with killed_around(huggingface_hub, "hf_hub_download", call, before=before):
                pull(NAME, out)
            assert not out.exists()
            assert pull(NAME, out).fetched <= count
            assert files_in(out) == own(labels)


@pytest.mark.usefixtures("pushed")
def test_what_is_there_is_not_fetched_again(labels: Path, tmp_path: Path) -> None:
    with killed_around(pulling, "_settle", 1, before=True):
        pull(NAME, tmp_path / "pulled")
    scratch = tmp_path / ".pulled.pulling"
    shard = next((scratch / "labels").glob("part-00001-*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    (scratch / "words.txt").unlink()
    (scratch / "stray").touch()
    assert pull(NAME, tmp_path / "pulled").fetched == 2
    assert files_in(tmp_path / "pulled") == own(labels)


@pytest.mark.usefixtures("pushed")
def test_a_program_that_is_killed_for_real(program: Begin, labels: Path, hub: Hub, tmp_path: Path) -> None:
    ends = []
    for request in (8, 200):
        out, start = tmp_path / f"{request}", len(hub.asked)
        begun = program("pull", NAME, "--out", out, main=as_program)
        hub.fault = partial(kill_at, begun, start + request)
        ends.append(begun.wait())
        hub.fault = lambda *_: None
        assert out.exists() == (ends[-1] == 0)
        assert program("pull", NAME, "--out", out, main=as_program).wait() == 0
        assert files_in(out) == own(labels)
    assert ends == [-signal.SIGKILL, 0]


@pytest.mark.usefixtures("pushed")
def test_bytes_that_come_damaged_are_fetched_again(
    labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = huggingface_hub.hf_hub_download

    def spoils(name: str, path: str, **options: Any) -> str:
        found = plain(name, path, **options)
        if path == "words.parquet":
            Path(found).write_bytes(Path(found).read_bytes()[:-1] + b"\0")
        return str(found)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", spoils)
    with pytest.raises(UserError, match=r"words\.parquet: came damaged; run the same command again"):
        pull(NAME, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", plain)
    assert pull(NAME, tmp_path / "pulled").fetched == 1
    assert files_in(tmp_path / "pulled") == own(labels)


@pytest.mark.usefixtures("pushed")
def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = RuntimeError("Data processing error: No space left on device (os error 28)")  # hf_xet's
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", Mock(side_effect=full))
    with pytest.raises(UserError, match="cannot be written: No space left on device; free some space and run the same"):
        pull(NAME, tmp_path / "full")
    assert not (tmp_path / "full").exists()


def test_every_revision_can_be_pulled_and_opened(
    labels: Path, hub: Hub, pushed: str, extend: Callable[[int], None], tmp_path: Path
) -> None:
    hub.repositories[NAME].refs |= {"v1.0": pushed, "refs/pr/1": pushed}
    opened, earlier, files = open_labels(URL), rows(open_labels(labels)), own(labels)
    extend(5)
    second = push(labels, NAME).revision
    assert rows(opened) == earlier, "a store that is open stays what it is"
    for revision in (pushed, "v1.0"):
        assert pull(NAME, tmp_path / revision, revision=revision).revision == pushed
        assert files_in(tmp_path / revision) == files
    for revision in (pushed, "v1.0", "refs/pr/1", "refs%2Fpr%2F1"):
        assert rows(open_labels(f"{URL}@{revision}")) == earlier
    for revision in (second, "main"):
        assert rows(open_labels(f"{URL}@{revision}")) == rows(open_labels(labels))
    assert str(open_labels(URL).path) == f"{URL}@{second}"


@pytest.mark.usefixtures("pushed")
def test_labels_on_the_hub_are_unpacked_for_training(labels: Path, hub: Hub) -> None:
    there, here = open_labels(URL), open_labels(labels)
    cache = label_cache.label_cache(there)
    assert {name: cache[name].word_ids.tolist() for name in here} == {n: here[n].word_ids.tolist() for n in here}
    assert there.mean_similarity().tolist() == here.mean_similarity().tolist()
    assert list(there.quarantine()) == list(here.quarantine())
    before = len(hub.asked)
    assert label_cache.label_cache(open_labels(labels)).folder == cache.folder
    assert len(hub.asked) == before


def test_a_read_costs_its_bytes_and_no_more(hub: Hub) -> None:
    """The hub's file system would read 5 MB ahead of every request."""
    data = np.random.default_rng(0).bytes(1_000_000)
    hub.put("owner/big", {"big.bin": data})
    with place("hf://datasets/owner/big/big.bin").open("rb") as file:
        file.seek(500_000)
        assert file.read(10) == data[500_000:500_010]
    spans = [text for _, path, text in hub.asked if "/cdn/" in path]
    assert spans == ["bytes=500000-565535"]


@pytest.mark.usefixtures("pushed")
def test_merge_and_select_read_the_hub(labels: Path, tmp_path: Path) -> None:
    ids = open_labels(labels).ids
    select(URL, ids[:4], tmp_path / "some")
    select(labels, ids[4:], tmp_path / "rest")
    assert rows(open_labels(tmp_path / "some")) == {name: rows(open_labels(labels))[name] for name in ids[:4]}
    push(tmp_path / "some", "owner/some")
    done = merge(["hf://datasets/owner/some", tmp_path / "rest"], tmp_path / "both")
    assert (done.images, done.linked) == (10, 2)
    assert rows(open_labels(tmp_path / "both")) == rows(open_labels(labels))


def test_a_recipe_takes_labels_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    """By revision; the losses are those of the labels that were pushed."""
    with colours():
        world = make_world(tmp_path / "world")
        revision = push(world.labels, NAME).revision
        for number, path in enumerate((str(world.labels), f"{URL}@{revision}")):
            recipe = tiny_recipe(world, labels={"path": path}, training_arguments={"max_steps": 2, "save_steps": 2})
            assert isinstance(recipe.labels.path, str)
            tiny_trainer(recipe, tmp_path / f"run{number}").train()
    losses = [[line["loss"] for line in logged(tmp_path / f"run{number}")] for number in range(2)]
    assert losses[0] == losses[1] != []


def test_odd_ids_phrases_and_crops_come_back_to_the_byte(label: Label, hub: Hub, tmp_path: Path) -> None:
    """Begun, extended, pushed, pulled: names that shells, URLs, YAML, SQL and Parquet might trip over."""
    random = np.random.default_rng(0)
    marks = [" ", "\t", "é", "日本", "🙂", "'", '"', "%", "%2F", "&", "+", "=", "@", "[x]", "{y}", "$z", "!", ",", ";"]
    photos, plain = tmp_path / "photos", draw(tmp_path / "one.png", [["red"] * 4] * 3, size=(12, 12)).read_bytes()
    for number in range(100):
        name = "".join(random.choice(marks, 3)) + f"{number:04d}"
        path = photos / name[:2].strip() / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(plain)
    (tmp_path / "phrases.txt").write_text("red\na red one\n斑馬\nzebra crossing\nit's 100 %\n")
    settings = {"images": str(photos), "wordlist": str(tmp_path / "phrases.txt"), "crops": 2, "shard_size": 40}
    label(**settings)
    draw_folder(photos / "more #1", 20, seed=3)
    label(**settings, extend=True)
    assert len(open_labels(tmp_path / "labels")) == 360
    push(tmp_path / "labels", NAME)
    pull(NAME, tmp_path / "pulled")
    assert files_in(tmp_path / "pulled") == own(tmp_path / "labels")
    assert len(Ledger.open(tmp_path / "pulled").dataset.parts) == 2
    there, here = open_labels(URL, verify=False), open_labels(tmp_path / "labels")
    assert there.ids == here.ids
    assert there.words == here.words
    assert all(one.equals(other) for one, other in zip(there.tables(), here.tables(), strict=True))
    assert label(**settings, out=tmp_path / "pulled").report.images == 0  # label takes it for its own
    push(tmp_path / "pulled", NAME)
    assert len(hub.repositories[NAME].titles) == 3  # and push finds nothing to send


@pytest.mark.usefixtures("pushed")
def test_what_cannot_be_pulled_is_one_line(command: Any, labels: Path, hub: Hub, tmp_path: Path) -> None:
    hub.put("owner/photos", {"data.csv": b"a,b\n"})
    with killed_around(huggingface_hub.HfApi, "create_commit", 2, before=True):
        push(labels, "owner/killed")
    unfinished = "expected a folder that sea-pipeline push has sent to its end; found no"
    for options, said in (
        (["owner/none"], f"owner/none: {hub.url} has no such dataset, or a private one that the token of this machine"),
        ([NAME, "--revision", "v9"], f"{NAME}@v9: the dataset has no such revision; give a branch, a tag or a commit"),
        (["labels"], "labels: expected OWNER/NAME, as the hub calls a dataset"),
        (["owner/la bels"], "owner/la bels: expected OWNER/NAME, as the hub calls a dataset: "),
        (["owner/photos"], f"{unfinished} dataset.json;"),
        (["owner/killed"], f"{unfinished} manifest.json;"),
    ):
        refuses(command, said, "pull", *options, "--out", tmp_path / "pulled")
        assert not (tmp_path / "pulled").exists()


@pytest.mark.usefixtures("pushed")
def test_what_cannot_be_opened_is_one_line(command: Any, hub: Hub) -> None:
    hub.put("owner/photos", {"data.csv": b"a,b\n"})
    for url, said in (
        ("hf://datasets/owner/none", f"owner/none: {hub.url} has no such dataset, or a private one"),
        (f"{URL}@v9", f"{NAME}@v9: the dataset has no such revision"),
        (f"{URL}@v9/labels", f"{NAME}@v9: the dataset has no such revision"),
        (f"{URL}/labels", "no dataset.json in it"),
        ("hf://datasets/owner/photos", "no dataset.json in it"),
    ):
        for name in ("verify", "status", "inspect"):
            refuses(command, said, name, url)
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            open_labels(url)


@pytest.mark.usefixtures("pushed")
def test_private_labels_are_not_there_for_others(labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(labels, "owner/public", public=True)
    for token in (READER, ""):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(UserError, match="has no such dataset, or a private one that the token of this machine"):
            open_labels(URL)
        assert len(open_labels("hf://datasets/owner/public")) == 10


@pytest.mark.usefixtures("pushed")
def test_records_that_do_not_agree_are_refused(labels: Path, hub: Hub, tmp_path: Path) -> None:
    """Somebody has changed a file on the hub by hand."""
    path = "labels/part-00001-of-00003.parquet"
    hub.put(NAME, {path: hub.tree(NAME)[path][:-1] + b"\0"})
    with pytest.raises(UserError, match=r"its files do not agree with its records: .*part-00001-of-00003.parquet: dam"):
        pull(NAME, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
    with pytest.raises(UserError, match=r"part-00001-of-00003\.parquet: damaged: expected sha256"):
        open_labels(URL)
    hub.put(NAME, {path: None})
    with pytest.raises(UserError, match=rf"expected {path}, which its records name; found none; its owner pushes it"):
        pull(NAME, tmp_path / "pulled")
    dataset = json.loads((labels / "dataset.json").read_text()) | {"shards": 10**12, "images": 4 * 10**12}
    hub.put(NAME, {path: (labels / path).read_bytes(), "dataset.json": json.dumps(dataset).encode()})
    with pytest.raises(UserError, match="expected a manifest of 1,000,000,000,000 shards, as its"):
        pull(NAME, tmp_path / "pulled")
    hub.put(NAME, {"dataset.json": (labels / "dataset.json").read_bytes(), path: None})
    push(labels, NAME)
    pull(NAME, tmp_path / "pulled")
    assert files_in(tmp_path / "pulled") == own(labels)


@pytest.mark.usefixtures("pushed", "no_backoff")
def test_a_hub_that_fails_for_a_while_costs_nothing(labels: Path, hub: Hub) -> None:
    failed: set[str] = set()

    def fault(method: str, path: str, number: int) -> int | None:
        once = "/cdn/" in path and path not in failed
        failed.update([path] if once else [])
        return 503 if once else None

    hub.fault = fault
    assert rows(open_labels(URL)) == rows(open_labels(labels))
    assert failed


@pytest.mark.usefixtures("pushed")
def test_the_hub_is_written_by_push_alone(command: Any, labels: Path, hub: Hub, words: Path) -> None:
    before = dict(hub.repositories[NAME].refs)
    draw_folder(labels.parent / "photos" / "more", 2, seed=4)
    for url in (URL, f"{URL}/new"):
        code, _, stderr = command(
            "label", "--images", labels.parent / "photos", "--wordlist", words, "--top-n", 3, "--out", url,
            "--shard-size", 4, "--extend", "--max-bad", 1,
        )  # fmt: skip
        assert (code, "Traceback" in stderr) == (1, False)
        assert "expected a folder; the hub is written by sea-pipeline push, from a finished one" in stderr
    code, _, stderr = command("select", labels, labels / "words.txt", "--out", URL)
    assert code == 1
    assert hub.repositories[NAME].refs == before
    assert place(URL).is_dir()
