"""`export --push` into a repository that has files already: what is read from it is the last export."""

from pathlib import Path

import pytest

from tests.hub.stand_in import Hub
from trainer.model.hub import push

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # huggingface_hub's, over LFS
NAME = "owner/model"
CARD = b"---\ntags: [llava]\n---\nAn export."
MINE = {"README.md": b"mine", ".gitattributes": b"x", "figure.png": b"mine", "notes/model.safetensors": b"mine"}
WHOLE = {
    "config.json": b"{}",
    "model.safetensors": b"old",
    "preprocessor_config.json": b"{}",
    "tokenizer.model": b"old",
}
PARTS = {
    "config.json": b"{}",
    "model-00001-of-00002.safetensors": b"new",
    "model-00002-of-00002.safetensors": b"new",
    "model.safetensors.index.json": b"new",
    "processor_config.json": b"new",
}


def written(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in (files | {"README.md": CARD}).items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize(("first", "second"), [(WHOLE, PARTS), (PARTS, WHOLE)])
def test_nothing_of_an_earlier_export_is_left(
    first: dict[str, bytes], second: dict[str, bytes], hub: Hub, tmp_path: Path
) -> None:
    hub.put(NAME, MINE)
    push(written(tmp_path / "first", first), NAME)
    commits = len(hub.repositories[NAME].titles)
    push(written(tmp_path / "second", second), NAME)
    assert hub.tree(NAME) == MINE | second | {"README.md": CARD}
    assert len(hub.repositories[NAME].titles) == commits + 1, "at once"


def test_a_projector_leaves_the_model_beside_it(hub: Hub, tmp_path: Path) -> None:
    hub.put(NAME, WHOLE | {"mm_projector.bin": b"old"})
    push(written(tmp_path / "projector", {"mm_projector.safetensors": b"new"}), NAME)
    assert hub.tree(NAME) == WHOLE | {"mm_projector.safetensors": b"new", "README.md": CARD}


def test_a_new_repository_is_made_private(hub: Hub, tmp_path: Path) -> None:
    push(written(tmp_path / "first", WHOLE), NAME)
    assert hub.repositories[NAME].private
