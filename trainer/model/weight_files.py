"""Lists the files of a folder's weights, without loading torch."""

import shlex
from pathlib import Path

from sea_pipeline.core.errors import UserError
from sea_pipeline.storage.json_files import read_json
from sea_pipeline.storage.leftovers import files_like

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""Names the files of weights that are in several. transformers reads it only if there is no `WHOLE`."""


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files that transformers loads a folder's weights from; others may lie beside them.

    Raises:
        UserError: there are none, or one that the index names is not there.
    """
    whole, index = folder / WHOLE, folder / INDEX
    if whole.is_file():
        return [whole]
    if not index.is_file():
        pickled = files_like(folder, "pytorch_model*.bin")
        raise UserError(
            f"{folder}: expected its weights in {WHOLE} or {INDEX}; found "
            + (f"{pickled[0].name}; {_converting(folder)}" if pickled else "neither; copy the folder again")
        )
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise UserError(f"{index}: expected weight_map, the files by the names of tensors; found none; copy it again")
    files = [folder / name for name in sorted(set(named.values()))]
    if absent := [file for file in files if not file.is_file()]:
        raise UserError(f"{index}: names {absent[0].name}; there is no such file; copy the folder again")
    return files


def beside(folder: Path, ending: str) -> Path:
    """Append an ending to a folder's name; `.` and `..` are resolved first."""
    named = folder if folder.name not in ("", "..") else folder.resolve()
    return named.with_name(named.name + ending)


def _converting(folder: Path) -> str:
    """Advise a command that writes a folder's pickled weights as safetensors to a folder of its own."""
    new = beside(folder, "-safetensors")
    lines = (
        "import shutil",
        "from transformers import AutoModelForImageTextToText as M",
        f"model, report = M.from_pretrained({str(folder)!r}, dtype='auto', output_loading_info=True)",
        "missing = sorted(report['missing_keys'])",
        "missing and exit(f'weights are missing: {missing[0]}; copy the folder again')",
        f"shutil.copytree({str(folder)!r}, {str(new)!r}, dirs_exist_ok=True, "
        "ignore=shutil.ignore_patterns('*.bin', '*.bin.index.json'))",
        f"model.save_pretrained({str(new)!r})",
    )
    return f"give {new}, which this makes of it: {shlex.join(['python', '-c', '; '.join(lines)])}"
