"""Copies the files of a model folder that belong to its weights, and leaves the weights of its start behind."""

import shutil
from collections.abc import Collection
from pathlib import Path

from sea_pipeline.storage.leftovers import files_like

_READ = (
    "", ".bpe", ".jinja", ".json", ".md", ".merges", ".model", ".py", ".spm", ".tiktoken", ".txt", ".vocab", ".yaml",
    ".yml",
)  # fmt: skip
"""The ends of the names of files that configs, processors and tokenizers read, and of licences. Weights have others,
and new formats of them come up."""
_FOLDERS = ("additional_chat_templates",)
"""The folders that they read. Others hold the model in the form of another program, such as `onnx` or `original`."""
_CARD = "readme.md"
"""It tells of the weights at the start, with figures."""


def copy_others(start: Path, out: Path, without: Collection[str] = ()) -> None:
    """Copy what belongs to the weights of a folder, whatever they become, into another folder.

    Weights of no format are copied, because they would be those of the start.

    Args:
        start: the folder.
        out: a folder that exists.
        without: names of files to leave out, too.
    """
    for file in files_like(start, "*", *(f"{folder}/*" for folder in _FOLDERS)):
        name = file.name.lower()
        if name == _CARD or name.endswith(".index.json") or file.suffix.lower() not in _READ or name in without:
            continue
        if file.is_file():
            target = out / file.relative_to(start)
            target.parent.mkdir(exist_ok=True)
            shutil.copy2(file, target)
