"""Recognise models in other forms than open_clip's by their files, before anything is loaded."""

import json
import zipfile
from pathlib import Path
from shlex import quote

_LARGEST_HEADER = 100_000_000
"""The most bytes of a header of safetensors, by its own rules."""
_OF_TRANSFORMERS = b"vision_model.encoder.layers."
"""Part of the names of weights in CLIPs and SigLIPs of transformers; open_clip's begin with `visual`."""
_ELSE = "give open_clip:ARCH/TAG if open_clip lists the model, or a folder or file that open_clip saved"
_UNPACK = (
    "import sys, torch; w = torch.jit.load(sys.argv[1], 'cpu').state_dict(); "
    "[w.pop(k, None) for k in ('input_resolution', 'context_length', 'vocab_size')]; torch.save(w, sys.argv[2])"
)


def other_form_of_file(file: Path) -> str | None:
    """Say that weights are in a form that open_clip does not read, and what to do, or return None if not known."""
    try:
        names = _names(file)
    except (OSError, zipfile.BadZipFile, LookupError, RuntimeError):  # damaged, which loading it says
        return None
    if names is None:
        new = file.with_name(f"{file.stem}-weights.pt")
        return (
            f"expected weights alone; found a TorchScript archive, as OpenAI's own CLIPs are, in {file}; write its "
            f'weights to another file, and give that one: python -c "{_UNPACK}" {quote(str(file))} {quote(str(new))}'
        )
    if _OF_TRANSFORMERS in names:
        return f"expected weights of open_clip's form; found those of transformers in {file}; {_ELSE}"
    return None


def _names(file: Path) -> bytes | None:
    """Read the part of a file that has the names of its weights, or return None for a TorchScript archive."""
    if file.suffix == ".safetensors":
        with file.open("rb") as opened:
            return opened.read(min(int.from_bytes(opened.read(8), "little"), _LARGEST_HEADER))
    if not zipfile.is_zipfile(file):
        return b""
    with zipfile.ZipFile(file) as archive:
        members = {Path(name).name: name for name in archive.namelist()}
        return None if "constants.pkl" in members else archive.read(members["data.pkl"])


def other_form_of_folder(folder: Path) -> str | None:
    """Say that a folder holds a model in transformers' form, and what to do, or return None if it is not known to."""
    try:
        kind = json.loads((folder / "config.json").read_bytes())["model_type"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    found = f"transformers' config.json of model_type {kind!r:.80}"
    return f"expected open_clip_config.json in {folder}; found {found}; {_ELSE}"
