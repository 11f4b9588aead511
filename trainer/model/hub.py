"""Finds files of models on the Hugging Face hub, and uploads folders if the user asks for it."""

import shlex
from contextlib import suppress
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from sea_pipeline.core.errors import UserError, one_line


def is_name(name: str) -> bool:
    """Tell whether a name is OWNER/NAME, the form of the hub's models."""
    with suppress(HFValidationError):
        validate_repo_id(name)
        return "/" in name
    return False


def find_file(spec: str, name: str) -> Path | None:
    """Return the path of a file of a folder or of a hub name, or None.

    It is None if the file does not exist, or if the hub cannot be asked.
    """
    from transformers.utils.hub import cached_file  # here, because it takes a while and `check` does not need it

    try:
        found = cached_file(spec, name)
    except OSError:
        return None
    return Path(found) if found else None


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
    """Upload all files of a folder.

    A repository that does not exist is made, private.

    Returns:
        The address of the upload.

    Raises:
        UserError: it failed; the folder is not touched.
    """
    api = HfApi()
    try:
        api.create_repo(name, private=True, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload by sea-pipeline export"))
    except Exception as error:  # errors of the hub, the connection or a proxy all end the same way
        reason, by_hand = one_line(error), shlex.join(["hf", "upload", "--private", name, str(folder)])
        raise UserError(
            f"--push {name}: {folder} is complete, but was not uploaded ({type(error).__name__}: {reason}); upload it "
            f"with: {by_hand}"
        ) from error
