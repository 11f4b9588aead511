"""Files of models that the hub has, has not, or cannot tell of; and exports pushed to it, of which the last is read."""

from pathlib import Path

import pytest

from tests.hub.helpers import clients_own
from tests.hub.stand_in import Hub
from tests.support.refused import refused
from trainer.model.hub import find_file, push

pytestmark = [clients_own, pytest.mark.usefixtures("no_backoff")]
NAME = "owner/llm"
CARD = b"---\ntags: [llava]\n---\nAn export."
MINE = {"README.md": b"mine", ".gitattributes": b"x", "figure.png": b"mine", "notes/model.safetensors": b"mine"}
WHOLE = dict.fromkeys(("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.model"), b"old")
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json")
PARTS = dict.fromkeys(("config.json", *SHARDS, "processor_config.json"), b"new")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_cannot_say_is_not_taken_for_one_that_has_no_such_file(status: int, hub: Hub) -> None:
    hub.put(NAME, {"config.json": b"{}", "tokenizer.model": b"pieces"})
    hub.fault = lambda method, path, number: status if path.endswith("tokenizer.model") else None
    advice = f"cannot say whether it has tokenizer.model (status {status}); run the same command again later"
    with refused(advice, start=f"{NAME}: "):
        find_file(NAME, "tokenizer.model")
    hub.fault = lambda method, path, number: None
    found = find_file(NAME, "tokenizer.model")
    assert found is not None
    assert found.read_bytes() == b"pieces"


def test_absence_is_none(hub: Hub, tmp_path: Path) -> None:
    hub.put(NAME, {"config.json": b"{}"})
    assert find_file(NAME, "tokenizer.model") is None
    assert find_file("owner/nothing", "tokenizer.model") is None
    assert find_file(str(tmp_path), "tokenizer.model") is None


def test_without_a_network_nothing_is_there_but_what_was_fetched(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put(NAME, {"config.json": b"{}", "tokenizer.json": b"{}"})
    assert find_file(NAME, "config.json") is not None
    nobody = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", nobody)
    assert find_file(NAME, "config.json") is not None
    assert find_file(NAME, "tokenizer.json") is None


def written(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in (files | {"README.md": CARD}).items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize(("first", "second"), [(WHOLE, PARTS), (PARTS, WHOLE)])
def test_nothing_of_an_earlier_export_is_left(
    first: dict[str, bytes], second: dict[str, bytes], hub: Hub, tmp_path: Path
) -> None:
    push(written(tmp_path / "first", first), NAME)
    assert hub.repositories[NAME].private, "a new repository is"
    hub.put(NAME, MINE)
    commits = len(hub.repositories[NAME].titles)
    push(written(tmp_path / "second", second), NAME)
    assert hub.tree(NAME) == MINE | second | {"README.md": CARD}
    assert len(hub.repositories[NAME].titles) == commits + 1, "at once"


def test_a_projector_leaves_the_model_beside_it(hub: Hub, tmp_path: Path) -> None:
    hub.put(NAME, WHOLE | {"mm_projector.bin": b"old"})
    push(written(tmp_path / "projector", {"mm_projector.safetensors": b"new"}), NAME)
    assert hub.tree(NAME) == WHOLE | {"mm_projector.safetensors": b"new", "README.md": CARD}
