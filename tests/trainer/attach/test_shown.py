"""What users copy: the page's ten lines, the example, the notebook; each runs offline on a tiny model."""

import json
import os
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sea_pipeline.inputs.wordlists import load_wordlist
from tests.support.paths import ROOT
from tests.support.programs import Begin, run_file
from tests.support.world import word_file
from tests.trainer.attach.families import MAKERS, smolvlm, tiny
from tests.trainer.attach.real_grids import save
from tests.trainer.attach.ten_lines import PAGE, SHOWN, blocks, write
from tests.trainer.attach.worlds import Pictures, whole_labels
from trainer.attach.families import FAMILIES

pytestmark = pytest.mark.slow

EXAMPLE = ROOT / "examples" / "label_transfer.py"
NOTEBOOK = ROOT / "docs" / "notebooks" / "attach.ipynb"
CHATTING = [name for name in MAKERS if name != "paligemma"]
"""Families with a chat template."""


def word_list(folder: Path, more: Sequence[str] = ("window", "winter", "table")) -> Path:
    """The colours, and as many words more as make ten labels a patch possible."""
    path = word_file(folder / "words.txt")
    path.write_text("\n".join([path.read_text(), *more]))
    return path


@pytest.mark.parametrize("kind", SHOWN)
def test_the_pages_lines_run_as_they_are(
    kind: str, program: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "SFTTrainer":
        pytest.importorskip("trl")
    file = write(tmp_path, kind)
    _, _, lines = file.read_text().partition("import sea_pipeline, trainer")
    assert kind != "SFTTrainer" or len([line for line in lines.splitlines() if line]) < 20
    monkeypatch.chdir(tmp_path)
    ran = program(file, main=run_file)
    assert ran.wait() == 0, ran.stderr[-2000:]
    (scale,) = re.findall(r"^1 / tau ([\d.]+)$", ran.stdout, re.MULTILINE)
    assert float(scale) != 1, "the temperature has trained"


def test_the_page_has_each_familys_projector() -> None:
    rows = [line.split(" | ") for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| `")]
    named = {name: row[1].strip("`") for row in rows for name in re.findall(r"`(\w+)`", row[0]) if name in FAMILIES}
    assert named == {name: f"{'' if one.late else 'model.'}{one.projector}" for name, one in FAMILIES.items()}


@pytest.mark.parametrize("flat", [False, True])
def test_the_readmes_loop_runs_as_it_is(
    flat: bool, pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    (code,) = (block for block in blocks if "trainer.attach(" in block)
    made, names = MAKERS["qwen2_5_vl"](), [["wide.png"], ["tall.png", "odd.png"]]
    made.model.train()
    ids: list[Any] = [name for some in names for name in some] if flat else names
    batch = made.batch(pictures.batch(names))
    given = {
        "model": made.model, "processor": made.processor,
        "optimizer": torch.optim.SGD(made.model.parameters(), lr=1e-2),
        "loader": [{**batch, "image_ids": ids} for _ in range(2)],
    }  # fmt: skip
    monkeypatch.chdir(pictures.labels.parent)
    before = {name: each.clone() for name, each in made.model.named_parameters()}
    exec(code, given)
    assert given["attached"].scale != 1
    assert any(not torch.equal(each, before[name]) for name, each in made.model.named_parameters())
    assert all(each.grad is None for each in made.model.parameters())
    given["attached"].detach()


def test_one_folder_of_labels_serves_three_families(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("llava", "qwen2_5_vl", "smolvlm")
    folders = [str(save(tiny(name), tmp_path / name)) for name in names]
    given = {"--images": pictures.folder, "--labels": tmp_path / "labels", "--wordlist": word_list(tmp_path)}
    options = [str(part) for option in given.items() for part in option]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *folders, *options])
    with whole_labels():
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.count(" | ") == 5][1:]
    found = {(family, name): (grid, int(tokens), int(labelled)) for family, name, grid, tokens, labelled, _ in lines}
    assert len(found) == 9
    assert found["llava", "other.png"] == ("4x4", 16, 16)
    assert found["qwen2_5_vl", "other.png"] == ("5x11", 55, 55)
    assert found["smolvlm", "other.png"] == ("7 of 2x2", 28, 28)
    middles = {name: {line[5] for line in lines if line[1] == name} for _, name in found}
    assert all("(none)" not in words for words in middles.values())


@pytest.mark.parametrize("name", CHATTING)
def test_the_notebook_trains_the_answer_alone(name: str, pictures: Pictures) -> None:
    """Some families' processors have a side of their own on which they pad, whatever their tokenizer says."""
    captions = {"wide.png": "red", "tall.png": "The left half is magenta and the right one is blue."}
    cells = ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"]]
    (code,) = (cell for cell in cells if "def batch_of" in cell)
    processor = tiny(name).processor
    given = {"processor": processor, "photo": pictures.image, "torch": torch, "Path": Path, "CAPTIONS": None}
    exec(code, given)
    given["captions"] = captions
    labels = given["batch_of"](list(captions))["labels"]  # type: ignore[operator]
    for caption, row in zip(captions.values(), labels, strict=True):
        text = processor.tokenizer.decode(row[row >= 0])
        assert "What is in" not in text
        assert caption in text


@pytest.mark.parametrize("name", CHATTING)
def test_the_pages_collator_takes_rows_of_text(name: str, pictures: Pictures) -> None:
    (block,) = (block for block in blocks() if "\ndef collate" in block)
    collate = re.search(r"^def collate.*?\n(?=\w)", block, re.MULTILINE | re.DOTALL)
    assert collate is not None
    made = tiny(name)
    given: dict[str, Any] = {"model": made.model, "processor": made.processor}
    exec(collate[0], given)
    for images in ([], [pictures.image("wide.png")]):
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": "What?"}]
        batch = given["collate"]([{"messages": [{"role": "user", "content": content}], "images": images}] * 2)
        assert ("pixel_values" in batch) == bool(images)


def test_the_notebook_is_whole_and_holds_no_output() -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    assert max(cell.source.count("\n") for cell in cells) < 30
    (downloads,) = (number for number, cell in enumerate(notebook.cells) if "download" in cell.metadata.get("tags", ()))
    assert "**The next cell downloads" in notebook.cells[downloads - 1].source
    assert [cell.metadata.tags for cell in cells if cell.metadata.get("tags")] == [["parameters"], ["download"]]


@pytest.fixture
def notebook(pictures: Pictures, tmp_path: Path) -> Callable[..., Any]:
    """Returns it with photos of one's own, ninety words, and a tiny SmolVLM in place of the one that it downloads."""
    nbformat = pytest.importorskip("nbformat")

    def make(**given: Any) -> Any:
        words = word_list(tmp_path, load_wordlist("2of12").words[::500])
        given |= {"PHOTOS": str(pictures.folder), "WORDS": str(words), "RATE": 1e-2, "OUT": str(tmp_path / "out")}
        given |= {"MODEL": str(save(smolvlm(), tmp_path / "model"))}
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
        assert given.keys() == set(re.findall(r"^(\w+) =", cell.source, re.MULTILINE)), "all of them are at the top"
        cell.source = "\n".join(f"{name} = {value!r}" for name, value in given.items())
        return notebook

    return make


def table_of(text: str) -> dict[str, tuple[float, float]]:
    rows = re.findall(r"^([\w@]+) +(-?[\d.]+) +(-?[\d.]+)$", text, re.MULTILINE)
    return {name: (float(before), float(after)) for name, before, after in rows}


@pytest.mark.real
def test_the_notebook_runs_on_photos_of_ones_own(notebook: Callable[..., Any], tmp_path: Path) -> None:
    """With the packaged encoder."""
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    made = notebook(STEPS=40, CAPTIONS=None)
    execute(nbclient, made, tmp_path)
    outputs = [output for cell in made.cells for output in cell.get("outputs", ())]
    text = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    table = table_of(text)
    assert table.keys() == {"label_hit@1", "label_hit@10", "gap"}
    assert table["label_hit@10"][1] > table["label_hit@10"][0] + 0.1
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert (tmp_path / "out" / "model" / "model.safetensors").exists()


@pytest.mark.real
def test_the_notebooks_cells_take_captions(
    notebook: Callable[..., Any], pictures: Pictures, program: Begin, tmp_path: Path
) -> None:
    """In a few steps; this tiny tower cannot serve captions, too."""
    captions, file = tmp_path / "captions.json", tmp_path / "cells.py"
    captions.write_text(json.dumps({name: f"a picture called {name[:3]}" for name in pictures.open().ids}))
    cells = notebook(STEPS=4, CAPTIONS=str(captions)).cells
    file.write_text("\n".join(cell.source for cell in cells if cell.cell_type == "code"))
    ran = program(file, main=run_file)
    assert ran.wait() == 0, ran.stderr[-2000:]
    assert table_of(ran.stdout).keys() == {"label_hit@1", "label_hit@10", "gap", "right_photo_gain"}
    assert (tmp_path / "out" / "model" / "model.safetensors").exists()


def execute(nbclient: Any, notebook: Any, folder: Path) -> None:
    given = {"kernel_name": "python3", "resources": {"metadata": {"path": str(folder)}}}
    client = nbclient.NotebookClient(notebook, timeout=1000, startup_timeout=1000, **given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        patch.setenv("SEA_PIPELINE_CACHE", str(folder / "cache"))
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        client.execute()
