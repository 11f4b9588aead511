"""Everything bad at once: each picture costs itself only, with a reason; what stops a run is one clear line."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

from sea_pipeline import open_labels
from sea_pipeline.inputs.pixels import BadImageError, read_image
from sea_pipeline.inputs.sources.files import LocalFiles
from sea_pipeline.storage.publish import publish_bytes
from tests.support.contents import rows
from tests.support.photo_forms import jpeg
from tests.support.world import Label, draw_folder
from trainer.data.bad_rows import missing_images

BAD = {
    "truncated.jpg": ("decode", "truncated"),
    "empty.png": ("read", "0 bytes"),
    "dangling.png": ("read", "No such file"),
    "\\xe9.png": ("list", "not UTF-8"),
}


def test_bad_pictures_are_quarantined_with_reasons_and_the_rest_is_labelled(label: Label, tmp_path: Path) -> None:
    photos = draw_folder(tmp_path / "photos", 4)
    label(images=str(photos), out=tmp_path / "clean")
    (photos / "truncated.jpg").write_bytes(jpeg()[:-800])
    (photos / "empty.png").write_bytes(b"")
    (photos / "dangling.png").symlink_to("nowhere.png")
    Path(os.fsdecode(os.fsencode(photos) + b"/\xe9.png")).write_bytes(b"")
    label(images=str(photos), max_bad=1)
    store = open_labels(tmp_path / "labels")
    assert rows(store) == rows(open_labels(tmp_path / "clean"))
    found = {bad["image_id"]: (bad["stage"], bad["message"]) for bad in store.quarantine()}
    assert found.keys() == BAD.keys()
    for image_id, (stage, message) in BAD.items():
        assert found[image_id][0] == stage
        assert message in found[image_id][1]


@pytest.mark.parametrize(("there", "asked", "form"), [("a\u0308", "\u00e4", "NFD"), ("\u00e4", "a\u0308", "NFC")])
def test_a_name_that_only_looks_the_same(tmp_path: Path, there: str, asked: str, form: str) -> None:
    (tmp_path / f"{there}.png").write_bytes(b"x")
    said = f"form {form}: rename the file, or write its name so"
    with pytest.raises(BadImageError, match=f"No such file or directory, but .*{said}"):
        LocalFiles(tmp_path).read(f"{asked}.png")
    rows_of_data = Dataset.from_dict({"images": [[f"{asked}.png"]]})
    assert said in missing_images(rows_of_data, tmp_path)[f"{asked}.png"]
    for name in ("\u00f6.png", "\uac01" * 40 + ".png"):  # in NFD the second one is too long for a file
        with pytest.raises(BadImageError, match="No such file or directory'"):
            LocalFiles(tmp_path).read(name)


def without_rights(action: Callable[[], object]) -> str:
    """What `action` says when it runs as a user who owns nothing; root may read and write everything."""
    read_end, write_end = os.pipe()
    if (child := os.fork()) == 0:
        try:
            if os.geteuid() == 0:
                os.setuid(65_534)
            action()
            said = "no error"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write_end, said.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        return pipe.read()


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    """A folder that another user can reach: pytest's own are private."""
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    return tmp_path


def test_a_picture_without_the_right_to_read_it(open_folder: Path) -> None:
    path = open_folder / "x.png"
    Image.new("RGB", (2, 2)).save(path)
    path.chmod(0)
    assert without_rights(lambda: read_image(path)).startswith(BadImageError.__name__)
    assert "Permission denied" in without_rights(lambda: read_image(path))


def test_an_output_folder_without_the_right_to_write(open_folder: Path) -> None:
    out = open_folder / "out"
    out.mkdir(0o555)
    said = without_rights(lambda: publish_bytes(out / "file", b"x", out))
    assert said.startswith("UserError")
    assert "cannot be written: Permission denied; choose a folder that can be written" in said
