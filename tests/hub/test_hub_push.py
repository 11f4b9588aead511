"""A push that is whole, killed, done again, extended or refused: what the hub holds, and what is said."""

import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from sea_pipeline import open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.hub import by_word
from sea_pipeline.hub import push as pushing
from sea_pipeline.hub.push import push
from tests.hub.conftest import NAME
from tests.hub.helpers import kill_at, own
from tests.hub.stand_in import READER, Hub, as_program
from tests.support.contents import rows, stored
from tests.support.heard import Heard
from tests.support.kills import killed_around
from tests.support.old_labels import made_old
from tests.support.planted_targets import teach
from tests.support.programs import Begin
from tests.support.world import Label, draw_folder

pytestmark = [
    pytest.mark.usefixtures("one_thread", "no_long_waits"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # the client's own
]
BESIDE = {".gitattributes", "README.md", "croissant.json", "figures.png", "by_word/00000.parquet"}


def wrote(hub: Hub) -> list[str]:
    """The requests that changed something."""
    return [f"{method} {path}" for method, path, _ in hub.asked if method == "PUT" or "/commit/" in path]


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
    assert ("manifest.json" in last_but_one, "manifest.json" in last) == (False, True)
    assert f"the paths in dataset.json ({labels.parent / 'photos'})" in said
    assert stored(str(labels)) == before
    assert not list((labels.parent / "cache" / "push").iterdir())


def test_a_second_push_sends_nothing(command: Any, labels: Path, hub: Hub) -> None:
    revision = push(labels, NAME).revision
    before = len(wrote(hub))
    code, stdout, _ = command("push", labels, NAME)
    assert (code, len(wrote(hub))) == (0, before)
    assert "files were there" in stdout
    assert revision in stdout


def test_public_is_for_who_asks(labels: Path, hub: Hub) -> None:
    push(labels, "owner/open", public=True)
    assert not hub.repositories["owner/open"].private


def test_what_was_there_before_the_first_push_stays(labels: Path, hub: Hub) -> None:
    before: dict[str, bytes | None] = {"LICENSE": b"mine", "README.md": b"---\nlicense: mit\n---\n# mine\n"}
    hub.put(NAME, before)
    push(labels, NAME)
    tree = hub.tree(NAME)
    assert (tree["LICENSE"], tree["README.md"].endswith(b"# mine\n")) == (b"mine", True)
    assert b"license: mit\n" in tree["README.md"]


def test_a_folder_without_a_good_image_is_pushed(label: Label, hub: Hub, tmp_path: Path) -> None:
    photos = draw_folder(tmp_path / "photos", 3)
    for path in photos.rglob("*.png"):
        path.write_bytes(b"bad")
    label(images=str(photos), max_bad=1.0)
    push(tmp_path / "labels", NAME)
    assert own_part(hub.tree(NAME), tmp_path / "labels") == own(tmp_path / "labels")
    assert len(open_labels(f"hf://datasets/{NAME}")) == 0


def test_old_labels_are_pushed(labels: Path, hub: Hub) -> None:
    made_old(labels)
    push(labels, NAME)
    assert rows(open_labels(f"hf://datasets/{NAME}")) == rows(open_labels(labels))


def test_commits_are_cut_by_files_and_by_bytes(labels: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    push(labels, NAME)
    whole = hub.tree(NAME)
    monkeypatch.setattr(pushing, "FILES_PER_COMMIT", 3)
    push(labels, "owner/files")
    monkeypatch.setattr(pushing, "FILES_PER_COMMIT", 100)
    monkeypatch.setattr(pushing, "BYTES_PER_COMMIT", 1)
    push(labels, "owner/bytes")
    assert [len(hub.repositories[f"owner/{name}"].commits) for name in ("labels", "files", "bytes")] == [3, 6, 14]
    for name in ("owner/files", "owner/bytes"):
        assert own_part(hub.tree(name), labels) == own_part(whole, labels)


def test_a_large_folder_goes_in_larger_commits(labels: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub takes a limited number of commits an hour."""
    monkeypatch.setattr(pushing, "FILES_PER_COMMIT", 1)
    monkeypatch.setattr(pushing, "BYTES_PER_COMMIT", 1)
    monkeypatch.setattr(pushing, "COMMITS_AT_MOST", 3)
    push(labels, NAME)
    assert len(hub.repositories[NAME].commits) <= 2 + 2 * 3, "cut by files and by bytes"
    assert own_part(hub.tree(NAME), labels) == own(labels)


@pytest.mark.usefixtures("no_backoff")
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"Retry-After": "7"}, 8), ({"RateLimit": '"api";r=0;t=55'}, 56), ({}, 3660), ({"Retry-After": "99999"}, 3660)],
)
def test_a_hub_that_takes_no_more_commits_is_waited_for_once(
    headers: dict[str, str], seconds: int, labels: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(pushing, "sleep", waited.append)
    hub.asks_to_wait = headers
    hub.fault = lambda method, path, number: 429 if "/commit/" in path and not waited else None
    heard = Heard()
    push(labels, NAME, reporter=heard)
    assert waited == [seconds]
    assert f"the hub takes no more commits for now; waiting {seconds:,} s, then going on" in str(heard.lines)
    assert own_part(hub.tree(NAME), labels) == own(labels)
    hub.fault = lambda method, path, number: 429 if "/commit/" in path else None
    with pytest.raises(UserError, match="run the same command again when it can"):
        push(labels, "owner/other")
    assert waited == [seconds, seconds]


def own_part(tree: dict[str, bytes], folder: Path) -> dict[str, bytes]:
    return {path: tree[path] for path in own(folder)}


def test_a_killed_push_is_unfinished_and_the_same_command_finishes_it(
    labels: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before and after each commit, and before and after files are uploaded that no commit names yet."""
    push(labels, "owner/straight")
    straight = hub.tree("owner/straight")
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
    done = push(labels, NAME)
    assert done.sent == done.files - 8
    again = [line for line in wrote(hub)[len(before) :] if line in before and line.startswith("PUT")]
    assert again == []


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


def test_readers_of_main_see_whole_states_alone(label: Label, labels: Path, hub: Hub, tmp_path: Path) -> None:
    """While an extension is sent in small commits, each of them is the earlier state or the later one."""
    push(labels, NAME)
    earlier = rows(open_labels(labels))
    draw_folder(tmp_path / "photos" / "more", 7, seed=3)
    label(images=str(tmp_path / "photos"), extend=True, max_bad=1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pushing, "FILES_PER_COMMIT", 1)
        push(labels, NAME)
    commits = list(hub.repositories[NAME].commits)
    found = [rows(open_labels(f"hf://datasets/{NAME}@{commit}")) for commit in commits[2:]]
    assert len(found) > 5
    assert all(each == earlier for each in found[:-1])
    assert found[-1] == rows(open_labels(labels)) != earlier
    assert own_part(hub.tree(NAME), labels) == own(labels)


def test_bad_images_that_were_mended_replace_their_shard(label: Label, labels: Path, hub: Hub, tmp_path: Path) -> None:
    push(labels, NAME)
    assert "quarantine/00000.parquet" in hub.tree(NAME)
    draw_folder(tmp_path / "photos", 11)
    label(images=str(tmp_path / "photos"), retry_bad=True)
    push(labels, NAME)
    assert own_part(hub.tree(NAME), labels) == own(labels)
    assert hub.tree(NAME).keys() == own(labels).keys() | BESIDE
    assert rows(open_labels(f"hf://datasets/{NAME}")) == rows(open_labels(labels))


def test_targets_are_pushed(tmp_path: Path, hub: Hub) -> None:
    from trainer.targets.store import open_targets

    folder = teach(tmp_path / "targets")
    push(folder, "owner/targets")
    assert own_part(hub.tree("owner/targets"), folder) == own(folder)
    there, here = open_targets("hf://datasets/owner/targets"), open_targets(folder)
    assert there.ids == here.ids
    assert all((there[name].refined == here[name].refined).all() for name in here.ids)
    assert not any(path.startswith("by_word") for path in hub.tree("owner/targets"))


def test_others_in_the_dataset_are_refused(label: Label, labels: Path, hub: Hub, tmp_path: Path) -> None:
    photos = str(tmp_path / "photos")
    push(labels, NAME)
    label(images=photos, out=tmp_path / "n2", top_n=2, max_bad=1.0)
    label(images=photos, out=tmp_path / "few", limit=4, max_bad=1.0)
    label(images=photos, out=tmp_path / "cut", shard_size=5, max_bad=1.0)
    before = hub.repositories[NAME].refs["main"]
    for name, said in (
        ("n2", "found labels of other settings, fingerprint [0-9a-f]{12}… there; choose another name"),
        ("few", "found labels of other images, 11 there and 4 here; choose another name"),
        ("cut", "found labels of other images, 11 there and 11 here"),
    ):
        with pytest.raises(UserError, match=said):
            push(tmp_path / name, NAME)
    with pytest.raises(UserError, match="found labels of other settings"):
        push(teach(tmp_path / "targets"), NAME)
    hub.put("owner/thesis", {"data.csv": b"a,b\n"})
    with pytest.raises(UserError, match=r"owner/thesis: expected a new dataset, .*; found 'data\.csv' in it"):
        push(labels, "owner/thesis")
    assert hub.repositories[NAME].refs["main"] == before
    shutil.copytree(labels, tmp_path / "earlier")
    draw_folder(tmp_path / "photos" / "more", 3, seed=3)
    label(images=photos, extend=True, max_bad=1.0)
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
        code, _, stderr = command("push", folder, NAME)
        assert (code, stderr.count("\n")) == (1, 1)
        assert said in stderr
    assert hub.repositories == {}


REFUSED = "http://127.0.0.1:"


@pytest.mark.parametrize(
    ("token", "name", "said"),
    [
        (None, NAME, "nobody is logged in on this machine; run `hf auth login`, or set HF_TOKEN"),
        ("hf_expired", NAME, "refuses the token of this machine: "),
        (READER, NAME, "refuses the token of this machine: "),
        ("hf_writer", "labels", "expected OWNER/NAME, as the hub calls a dataset"),
        ("hf_writer", "owner/la bels", "expected OWNER/NAME, as the hub calls a dataset: "),
        ("hf_writer", "a/b/c", "expected OWNER/NAME, as the hub calls a dataset"),
        ("hf_writer", "others/labels", "refuses the token of this machine: "),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    command: Any, labels: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str | None, name: str, said: str
) -> None:
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    code, _, stderr = command("push", labels, name)
    assert (code, stderr.count("\n")) == (1, 1), stderr
    assert stderr.startswith(f"error: {name}: ")
    assert said in stderr
    assert hub.repositories == {}


@pytest.mark.parametrize("status", [0, 400, 403, 500, 503])
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
    assert ("cannot be reached" in line) == (status in (0, 500, 503))
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


def test_two_at_once_do_no_harm(labels: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody commits in between: the push ends in one line, and the same command finishes it."""
    plain = pushing._send

    def beaten(name: str, *given: Any) -> str:
        hub.put(NAME, {"commits/extra.txt": b"x"})
        return plain(name, *given)

    monkeypatch.setattr(pushing, "_send", beaten)
    with pytest.raises(UserError, match="was changed by somebody else at the same time; run the same command again"):
        push(labels, NAME)
    hub.put(NAME, {"commits/extra.txt": None})
    monkeypatch.setattr(pushing, "_send", plain)
    push(labels, NAME)
    assert own_part(hub.tree(NAME), labels) == own(labels)


def test_a_hub_that_holds_other_bytes_is_noticed(labels: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = pushing._send

    def spoilt(name: str, head: str, files: Any, gone: Any) -> str:
        plain(name, head, files, gone)
        path = "labels/part-00001-of-00003.parquet"
        hub.put(NAME, {path: hub.tree(NAME)[path] + b"x"} if path in hub.tree(NAME) else {})
        return hub.repositories[NAME].refs["main"]

    monkeypatch.setattr(pushing, "_send", spoilt)
    with pytest.raises(UserError, match=r"labels/part-00001-of-00003\.parquet: is not there as it was sent; run the"):
        push(labels, NAME)
    monkeypatch.setattr(pushing, "_send", plain)
    push(labels, NAME)
    assert own_part(hub.tree(NAME), labels) == own(labels)


def test_labels_by_word_that_were_made_are_kept(labels: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long is done once, however often a push is killed behind it."""
    with killed_around(huggingface_hub.HfApi, "create_commit", 1, before=True):
        push(labels, NAME)
    monkeypatch.setattr(by_word, "_write", lambda *_: pytest.fail("it is made again"))
    push(labels, NAME)
    assert os.listdir(labels.parent / "cache" / "push") == []  # noqa: PTH208
