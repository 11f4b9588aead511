"""The ten lines of docs/attach.md as a program, in a folder that has all they name.

`python -m tests.trainer.attach.ten_lines FOLDER` writes it; then `cd FOLDER; python ten_lines.py`, in any environment.
"""

import re
import sys
from pathlib import Path

from tests.support.paths import ROOT
from tests.trainer.attach.families import qwen2_5_vl
from tests.trainer.attach.real_grids import save
from tests.trainer.attach.worlds import draw_pictures

PAGE = ROOT / "docs" / "attach.md"


def blocks() -> list[str]:
    """The programs of the page."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


LOAD = """
import sea_pipeline, trainer
from transformers import AutoModelForImageTextToText, AutoProcessor
model, processor = AutoModelForImageTextToText.from_pretrained("MODEL"), AutoProcessor.from_pretrained("MODEL")
attached = trainer.attach(model, processor, labels=sea_pipeline.open_labels("labels"), sea={"weight": 1.0})
"""
"""What the ten lines have made before the page goes on with transformers' Trainer, or a loop."""
SHOWN = {"SFTTrainer": "(AttachMixin, SFTTrainer)", "Trainer": "(AttachMixin, Trainer)", "loop": "in DataLoader("}
"""What only the program of each kind has."""


def write(folder: Path, kind: str = "SFTTrainer") -> Path:
    """Writes pictures, labels, a tiny model and the program: the page's rows, then its ten lines, word for word.

    Other kinds of `SHOWN` have their own lines in place of the ten. The loop takes the Trainer's collator, as the page
    says. A last line prints the temperature, which begins at 1.
    """
    draw_pictures(folder, {"cat.jpg": (96, 48), "dog.jpg": (40, 80)})
    save(qwen2_5_vl(), folder / "MODEL")
    programs = {kind: [block for block in blocks() if mark in block] for kind, mark in SHOWN.items()}
    (lines,) = programs[kind]
    if kind == "loop":
        collate = re.search(r"^def collate.*?\n(?=\w)", programs["Trainer"][0], re.MULTILINE | re.DOTALL)
        assert collate is not None
        lines = f"{collate[0]}\n{lines}"
    lines = lines if kind == "SFTTrainer" else f"{LOAD}\n{lines}"
    (rows,) = (block for block in blocks() if block.startswith("from datasets"))
    program = folder / "ten_lines.py"
    program.write_text(f"{rows}\n\n{lines}print('1 / tau', attached.scale)\n")
    return program


if __name__ == "__main__":
    write(Path(sys.argv[1]))
