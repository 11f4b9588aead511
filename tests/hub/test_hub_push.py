"""A push that is whole, killed, done again, extended or refused: what the hub holds, and what is said."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import DatasetCard

from sea_pipeline import open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.hub import by_word
from sea_pipeline.hub import push as pushing
from sea_pipeline.hub.push import push
from tests.hub.helpers import NAME, URL, clients_own, kill_at, own
from tests.hub.stand_in import READER, Hub, as_program
from tests.support.contents import rows, stored
from tests.support.heard import Heard
from tests.support.kills import killed_around
from tests.support.old_labels import made_old
from tests.support.planted_targets import teach
from tests.support.programs import Begin
from tests.support.refused import refuses
from tests.support.world import Label, draw_folder

pytestmark = clients_own
BESIDE = {".gitattributes", "README.md", "croissant.json", "figures.png", "by_word/00000.parquet"}


def wrote(hub: Hub) -> list[str]:
    """The requests that changed something."""
    return [f"{method} {path}" for method, path, _ in hub.asked if method == "PUT" or "/commit/" in path]


def own_part(tree: dict[str, bytes], folder: Path) -> dict[str, bytes]:
    return {path: tree[path] for path in own(folder)}


def test_a_push_sends_everything_and_the_manifest_last(command: Any, labels: Path, hub: Hub) -> None:
    before = stored(str(labels))
    code, stdout, said = command("push", labels, NAME, "--json")
    assert code == 0
    found = json.loads(stdout)
    tree = hub.tree(NAME)
    assert {path: tree[path] for path in own(labels)} == own(labels)
    assert tree.keys() == own(labels).keys() | BESIDE
    assert (found["name"], found["address"]) == (NAME, f"{hub.url}/datasets/{NAME}")
    assert found["files"] == found["sent"] == len(tree) - 1
    assert found["bytes"] == sum(map(len, tree.values())) - len(tree[".gitattributes"])
    repository = hub.repositories[NAME]
    assert repository.private
    assert repository.refs["main"] == found["revision"]
    *_, last_but_one, last = repository.commits.values()
    promises = {"README.md", "croissant.json", "manifest.json"}
    assert (promises & last_but_one.keys(), promises & last.keys()) == (set(), promises)
    assert f"the paths in dataset.json ({open_labels(labels).image_root})" in said
    assert stored(str(labels)) == before
    assert not list((labels.parent / "cache" / "push").iterdir())


def test_a_second_push_sends_nothing(command: Any, labels: Path, hub: Hub, pushed: str) -> None:
    before = len(wrote(hub))
    code, stdout, _ = command("push", labels, NAME)
    assert (code, len(wrote(hub))) == (0, before)
    assert "files were there" in stdout
    assert pushed in stdout


@pytest.mark.parametrize("front", [b"---\nlicense: mit\n---\n", b""])
def test_what_was_there_before_the_first_push_stays(labels: Path, hub: Hub, front: bytes) -> None:
    hub.put(NAME, {"LICENSE": b"mine", "README.md": front + b"# mine\n"})
    push(labels, NAME)
    tree = hub.tree(NAME)
    assert (tree["LICENSE"], tree["README.md"].endswith(b"# mine\n")) == (b"mine", True)
    data = DatasetCard(tree["README.md"].decode()).data
    assert (data.license, len(data.configs)) == ("mit" if front else None, 4)


def test_a_folder_without_a_good_image_is_pushed(label: Label, hub: Hub, tmp_path: Path) -> None:
    photos = draw_folder(tmp_path / "photos", 1)
    (photos / "000.png").write_bytes(b"bad")
    label(images=str(photos), max_bad=1.0)
    push(tmp_path / "labels", NAME)
    assert own_part(hub.tree(NAME), tmp_path / "labels") == own(tmp_path / "labels")
    assert not any(path.startswith("by_word") for path in hub.tree(NAME))
    assert len(open_labels(URL)) == 0


def test_old_labels_are_pushed(labels: Path, hub: Hub) -> None:
    made_old(labels)
    push(labels, NAME)
    assert rows(open_labels(URL)) == rows(open_labels(labels))


@pytest.mark.parametrize(
    ("files", "size", "at_most", "commits"),
    [(100, 1 << 29, 64, {3}), (3, 1 << 29, 64, {6}), (100, 1, 64, {14}), (1, 1, 3, range(9))],
    ids=["large", "by files", "by bytes", "the hub takes a limited number an hour"],
)
def test_commits_are_cut(
    files: int, size: int, at_most: int, commits: Any, labels: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "FILES_PER_COMMIT", files)
    monkeypatch.setattr(pushing, "BYTES_PER_COMMIT", size)
    monkeypatch.setattr(pushing, "COMMITS_AT_MOST", at_most)
    push(labels, NAME)
    assert len(hub.repositories[NAME].commits) in commits
    assert own_part(hub.tree(NAME), labels) == own(labels)


@pytest.mark.usefixtures("no_backoff")
def test_a_hub_that_takes_no_more_commits_is_waited_for_once(
    labels: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses each of four commits once, with other headers; then all."""
    refusals = [
        ({"Retry-After": "7"}, 8), ({"RateLimit": '"api";r=0;t=55'}, 56), ({}, 3660), ({"Retry-After": "99999"}, 3660)
    ]  # fmt: skip
    waited: list[float] = []
    monkeypatch.setattr(pushing, "sleep", waited.append)
    monkeypatch.setattr(pushing, "FILES_PER_COMMIT", 4)

    def fault(method: str, path: str, number: int) -> int | None:
        made = len(hub.repositories[NAME].commits) - 1 if NAME in hub.repositories else 0
        if "/commit/" not in path or len(waited) > made:
            return None
        hub.asks_to_wait = refusals[made][0]
        return 429

    hub.fault = fault
    heard = Heard()
    push(labels, NAME, reporter=heard)
    assert waited == [seconds for _, seconds in refusals]
    for seconds in waited:
        assert f"the hub takes no more commits for now; waiting {seconds:,} s, then going on" in str(heard.lines)
    assert own_part(hub.tree(NAME), labels) == own(labels)
    hub.fault = lambda method, path, number: 429 if "/commit/" in path else None
    with pytest.raises(UserError, match=r"asks to wait for 99,999 seconds .* run the same command again later"):
        push(labels, "owner/other")
    assert len(waited) == len(refusals) + 1


def test_a_killed_push_is_unfinished_and_the_same_command_finishes_it(
    labels: Path, hub: Hub, pushed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before and after each commit, and before and after files are uploaded that no commit names yet."""
    straight = hub.tree(NAME)
    monkeypatch.setattr(pushing, "FILES_PER_COMMIT", 4)
    api = huggingface_hub.HfApi
    places = [("create_commit", call, before) for call in range(1, 5) for before in (True, False)]
    places += [("create_repo", 1, False), ("preupload_lfs_files", 1, False), ("preupload_lfs_files", 3, False)]
    for number, (method, call, before) in enumerate(places):
        name = f"owner/killed{number}"
        with killed_around(api, method, call, before=before):
            push(labels, name)
        if "manifest.json" not in hub.tree(name):
            with pytest.raises(UserError, match="expected a "):
                open_labels(f"hf://datasets/{name}")
        push(labels, name)
        tree = hub.tree(name)
        assert own_part(tree, labels) == own_part(straight, labels)
        assert tree.keys() == straight.keys()
    assert rows(open_labels(f"hf://datasets/{name}")) == rows(open_labels(labels))


def test_what_is_there_is_not_sent_again(labels: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushing, "FILES_PER_COMMIT", 4)
    with killed_around(huggingface_hub.HfApi, "create_commit", 3, before=True):
        push(labels, NAME)
    assert len(hub.repositories[NAME].commits) == 3
    before = wrote(hub)
    monkeypatch.setattr(by_word, "_write", lambda *_: pytest.fail("labels by word are made again"))
    done = push(labels, NAME)
    assert done.sent == done.files - 8
    again = [line for line in wrote(hub)[len(before) :] if line in before and line.startswith("PUT")]
    assert again == []
    assert os.listdir(labels.parent / "cache" / "push") == []  # noqa: PTH208


def test_a_program_that_is_killed_for_real(program: Begin, labels: Path, hub: Hub) -> None:
    """Killed at some of its requests, from the first one to one that it does not come to."""
    ends = []
    for request in (4, 9, 60):
        name, start = f"owner/real{request}", len(hub.asked)
        begun = program("push", labels, name, main=as_program)
        hub.fault = partial(kill_at, begun, start + request)
        ends.append(begun.wait())
        hub.fault = lambda *_: None
        assert program("push", labels, name, main=as_program).wait() == 0
        assert own_part(hub.tree(name), labels) == own(labels)
    assert ends[:2] == [-signal.SIGKILL] * 2
    assert ends[-1] == 0


def test_readers_of_main_see_whole_states_alone(
    labels: Path, hub: Hub, pushed: str, extend: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While an extension is sent in small commits, each of them is the earlier state or the later one."""
    earlier = rows(open_labels(labels))
    extend(7)
    monkeypatch.setattr(pushing, "FILES_PER_COMMIT", 1)
    push(labels, NAME)
    commits = list(hub.repositories[NAME].commits)
    found = [rows(open_labels(f"{URL}@{commit}")) for commit in commits[2:]]
    assert len(found) > 5
    assert all(each == earlier for each in found[:-1])
    assert found[-1] == rows(open_labels(labels)) != earlier
    assert own_part(hub.tree(NAME), labels) == own(labels)


def test_bad_images_that_were_mended_replace_their_shard(label: Label, labels: Path, hub: Hub, pushed: str) -> None:
    assert "quarantine/00000.parquet" in hub.tree(NAME)
    label(images=str(draw_folder(labels.parent / "photos", 11)), retry_bad=True)
    push(labels, NAME)
    assert own_part(hub.tree(NAME), labels) == own(labels)
    assert hub.tree(NAME).keys() == own(labels).keys() | BESIDE
    assert rows(open_labels(URL)) == rows(open_labels(labels))


def test_targets_are_pushed(tmp_path: Path, hub: Hub) -> None:
    """For who asks, in public."""
    from trainer.targets.store import open_targets

    folder = teach(tmp_path / "targets")
    push(folder, "owner/targets", public=True)
    assert not hub.repositories["owner/targets"].private
    assert own_part(hub.tree("owner/targets"), folder) == own(folder)
    there, here = open_targets("hf://datasets/owner/targets"), open_targets(folder)
    assert there.ids == here.ids
    assert all((there[name].refined == here[name].refined).all() for name in here.ids)
    assert not any(path.startswith("by_word") for path in hub.tree("owner/targets"))


def test_others_in_the_dataset_are_refused(
    label: Label, labels: Path, hub: Hub, pushed: str, extend: Callable[[int], None], tmp_path: Path
) -> None:
    photos = str(tmp_path / "photos")
    label(images=photos, out=tmp_path / "n2", top_n=2, max_bad=1.0)
    label(images=photos, out=tmp_path / "few", limit=4, max_bad=1.0)
    label(images=photos, out=tmp_path / "cut", shard_size=5, max_bad=1.0)
    for folder, said in (
        (tmp_path / "n2", "found labels of other settings, fingerprint [0-9a-f]{12}… there; choose another name"),
        (tmp_path / "few", "found labels of other images, 11 there and 4 here; choose another name"),
        (tmp_path / "cut", "found labels of other images, 11 there and 11 here"),
        (teach(tmp_path / "targets"), "found labels of other settings"),
    ):
        with pytest.raises(UserError, match=said):
            push(folder, NAME)
    hub.put("owner/thesis", {"data.csv": b"a,b\n"})
    with pytest.raises(UserError, match=r"owner/thesis: expected a new dataset, .*; found 'data\.csv' in it"):
        push(labels, "owner/thesis")
    assert hub.repositories[NAME].refs["main"] == pushed
    shutil.copytree(labels, tmp_path / "earlier")
    extend(3)
    push(labels, NAME)
    with pytest.raises(UserError, match="found labels of other images, 14 there and 11 here"):
        push(tmp_path / "earlier", NAME)


def test_a_folder_that_is_not_finished_or_damaged_is_refused(
    command: Any, labels: Path, hub: Hub, tmp_path: Path
) -> None:
    shutil.copytree(labels, tmp_path / "open")
    (tmp_path / "open" / "manifest.json").unlink()
    (tmp_path / "open" / "commits" / "00002.json").unlink()
    shard = next((labels / "labels").glob("part-00001-*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    for folder, said in (
        (tmp_path / "open", "expected a finished folder; 2 of 3 shards are done"),
        (labels, "part-00001-of-00003.parquet: damaged"),
        (tmp_path / "photos", "no dataset.json in it"),
        (tmp_path / "none", "no such folder"),
        ("memory://x", "found no such folder"),
    ):
        refuses(command, said, "push", folder, NAME)
    assert hub.repositories == {}


def test_what_the_hub_refuses_is_one_line(
    command: Any, labels: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for token, name, said in (
        ("", NAME, "nobody is logged in on this machine; run `hf auth login`, or set HF_TOKEN"),
        ("hf_expired", NAME, "refuses the token of this machine: "),
        (READER, NAME, "refuses the token of this machine: "),
        ("hf_writer", "labels", "expected OWNER/NAME, as the hub calls a dataset"),
        ("hf_writer", "owner/la bels", "expected OWNER/NAME, as the hub calls a dataset: "),
        ("hf_writer", "a/b/c", "expected OWNER/NAME, as the hub calls a dataset"),
        ("hf_writer", "others/labels", "refuses the token of this machine: "),
    ):
        monkeypatch.setenv("HF_TOKEN", token)
        assert refuses(command, said, "push", labels, name).startswith(f"error: {name}: ")
    assert hub.repositories == {}


@pytest.mark.parametrize("status", [0, 400, 503])
def test_a_hub_that_fails_is_one_line_and_what_is_done_stays(
    command: Any, labels: Path, hub: Hub, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "FILES_PER_COMMIT", 4)
    monkeypatch.setattr("huggingface_hub.utils._http._DEFAULT_RETRY_ON_EXCEPTIONS", (), raising=False)
    monkeypatch.setattr("time.sleep", lambda _: None)
    commits = []

    def fault(method: str, path: str, number: int) -> int | None:
        commits.extend([1] if "/commit/" in path else [])
        return status if "/commit/" in path and len(commits) > 1 else None

    hub.fault = fault
    code, _, stderr = command("push", labels, NAME)
    assert (code, "Traceback" in stderr) == (1, False), stderr
    said, line = stderr.splitlines()
    assert said.startswith("sending ")
    assert line.startswith(f"error: {NAME}: {hub.url} ")
    answers = {0: "cannot be reached", 400: "refuses", 503: "answers that it cannot serve this now (status 503)"}
    assert answers[status] in line
    hub.fault = lambda *_: None
    assert len(hub.repositories[NAME].commits) == 2
    assert command("push", labels, NAME)[0] == 0
    assert own_part(hub.tree(NAME), labels) == own(labels)


def test_no_hub_is_one_line(command: Any, labels: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    code, _, stderr = command("push", labels, NAME)
    assert (code, "Traceback" in stderr) == (1, False)
    assert f"error: {NAME}: http://127.0.0.1:9 cannot be reached: " in stderr
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    code, _, stderr = command("push", labels, NAME)
    assert (code, "HF_HUB_OFFLINE is set, so the hub is not asked; unset it" in stderr) == (1, True), stderr
    huggingface_hub.close_session()


EXTRA, SHARD = "commits/extra.txt", "labels/part-00001-of-00003.parquet"


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({EXTRA: b"x"}, {}, "was changed by somebody else at the same time; run the same command again"),
        ({}, {SHARD: b"x"}, rf"{SHARD}: is not there as it was sent; run the"),
    ],
    ids=["somebody commits in between", "the hub holds other bytes"],
)
def test_a_dataset_that_changes_meanwhile_is_noticed(
    before: dict[str, bytes | None], after: dict[str, bytes | None], said: str,
    labels: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The push ends in one line, and the same command finishes it."""
    plain = pushing._send

    def beaten(*given: Any) -> str:
        if before:
            hub.put(NAME, before)
        plain(*given)
        hub.put(NAME, {path: data for path, data in after.items() if path in hub.tree(NAME)})
        return hub.repositories[NAME].refs["main"]

    monkeypatch.setattr(pushing, "_send", beaten)
    with pytest.raises(UserError, match=said):
        push(labels, NAME)
    hub.put(NAME, dict.fromkeys(before))
    monkeypatch.setattr(pushing, "_send", plain)
    push(labels, NAME)
    assert own_part(hub.tree(NAME), labels) == own(labels)
