"""Finds files of models on the Hugging Face hub, and uploads folders if the user asks for it."""

import shlex
from contextlib import suppress
from pathlib import Path

import huggingface_hub.utils
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.core.progress import progress_bars_if_heard
from sea_pipeline.storage.retry import error_statuses

_WRITTEN = (
    "model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json", "alignment.json",
    "chat_template.jinja", "config.json", "generation_config.json", "preprocessor_config.json",
    "processor_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
)  # fmt: skip
"""Patterns of all files that an export of a model or an LLM may hold, besides its card."""
PIECES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model")
"""Names of a SentencePiece model, by the tokenizer's class."""
_PROJECTORS = ("mm_projector.bin", "mm_projector.safetensors")


def is_name(name: str) -> bool:
    """Tell whether a name is OWNER/NAME, the form of the hub's models."""
    with suppress(HFValidationError):
        validate_repo_id(name)
        return "/" in name
    return False


def find_file(spec: str, name: str) -> Path | None:
    """Return the path of a file of a folder or of a hub name, or None.

    It is None if the file does not exist, or if no hub can be reached, as on a machine without a network.

    Raises:
        UserError: the hub answers that it cannot say now; the file may exist.
    """
    from transformers.utils.hub import cached_file  # here, because it takes a while and `check` does not need it

    try:
        found = cached_file(spec, name)
    except OSError as error:
        if failed := [status for status in error_statuses(error) if status == 429 or status >= 500]:
            raise UserError(
                f"{spec}: the hub cannot say whether it has {name} (status {failed[0]}); run the same command again "
                "later"
            ) from error
        return None
    return Path(found) if found else None


def find_pieces(spec: str) -> Path | None:
    """Return the path of the SentencePiece model of a folder or of a hub name, or None, see `find_file`."""
    return next((found for name in PIECES if (found := find_file(spec, name))), None)


def check(name: str) -> None:
    """Refuse before any work a name that cannot be uploaded to.

    Raises:
        UserError: `name` is not OWNER/NAME, or nobody is logged in.
    """
    if not is_name(name):
        raise UserError(f"--push {name}: expected OWNER/NAME, as the hub calls a model")
    if get_token() is None:
        raise UserError(f"--push {name}: nobody is logged in on this machine; run `hf auth login`, or set HF_TOKEN")


def push(folder: Path, name: str) -> str:
    """Upload all files of a folder, and delete those of an earlier export that it does not have.

    Otherwise a whole file of weights from before would win over the parts of a larger model. Files that no export
    writes stay. A repository that does not exist is made, private.

    Returns:
        The address of the upload.

    Raises:
        UserError: it failed; the folder is not touched.
    """
    api = HfApi()
    try:
        api.create_repo(name, private=True, exist_ok=True)
        message = "Upload by sea-pipeline export"
        with progress_bars_if_heard(huggingface_hub.utils):
            uploaded = api.upload_folder(
                repo_id=name, folder_path=folder, commit_message=message, delete_patterns=_left_before(folder)
            )
        return str(uploaded)
    except Exception as error:  # errors of the hub, the connection or a proxy all end the same way
        deleted = [word for pattern in _left_before(folder) for word in ("--delete", pattern)]
        reason, by_hand = one_line(error), shlex.join(["hf", "upload", "--private", name, str(folder), ".", *deleted])
        raise UserError(
            f"--push {name}: {folder} is complete, but was not uploaded ({type(error).__name__}: {reason}); upload it "
            f"with: {by_hand}"
        ) from error


def _left_before(folder: Path) -> list[str]:
    """List patterns of files that an earlier export may have left in the repository, and this one does not have."""
    known = _WRITTEN if (folder / "config.json").is_file() else _PROJECTORS
    return [pattern for pattern in known if not (folder / pattern).is_file()]
