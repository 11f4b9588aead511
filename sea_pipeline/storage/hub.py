"""Resolve datasets of the Hugging Face hub to a commit, and explain the hub's refusals."""

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.core.extras import install_line
from sea_pipeline.core.progress import without_progress_bars
from sea_pipeline.storage.retry import error_statuses, may_pass

_DATASET = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@(refs/[^/]+/[^/]+|[^/]+))?((?:/.*)?)", re.IGNORECASE)


def pinned(url: str) -> str:
    """Return the URL of a dataset at the commit that its revision names now, so that a reader sees one state of it.

    Other URLs come back unchanged.

    Raises:
        UserError: see `commit_of`.
    """
    found = _DATASET.fullmatch(url)
    if found is None:
        return url
    name, revision, path = found.groups()
    return f"hf://datasets/{name}@{commit_of(name, unquote(revision) if revision else None)}{path}"


def is_dataset(url: str) -> bool:
    """Tell whether a URL names a dataset on the hub, or something in one."""
    return _DATASET.fullmatch(url) is not None


def commit_of(name: str, revision: str | None = None) -> str:
    """Ask the hub which commit a branch, a tag or a commit of a dataset is.

    Args:
        name: OWNER/NAME of the dataset.
        revision: the branch, tag or commit; None means `main`.

    Raises:
        UserError: the dataset or the revision does not exist for this token, or the hub cannot be reached.
    """
    with asking(f"{name}@{revision}" if revision else name):
        return str(hub_api().repo_info(name, repo_type="dataset", revision=revision).sha)


def hub_api() -> Any:  # noqa: ANN401 - huggingface_hub.HfApi, which takes a second to import
    """Return the hub's client, for the address in HF_ENDPOINT and with the token of this machine."""
    return _client("").HfApi()


@contextmanager
def silent_client() -> Iterator[None]:
    """Keep the hub's client from drawing bars and from reporting what it tries again, inside the block."""
    utils = _client(".utils")
    level = utils.logging.get_verbosity()
    utils.logging.set_verbosity_error()
    try:
        with without_progress_bars(utils):
            yield
    finally:
        utils.logging.set_verbosity(level)


@contextmanager
def asking(shown: str, right: str = "read") -> Iterator[None]:
    """Turn what the hub's client raises in the block into a `UserError` of one line about `shown`.

    Args:
        shown: the dataset, as the message calls it.
        right: what the token must allow, for the message.
    """
    errors = _client(".errors")
    address = _client(".constants").ENDPOINT
    try:
        yield
    except UserError:
        raise
    except errors.OfflineModeIsEnabled as error:
        raise UserError(f"{shown}: HF_HUB_OFFLINE is set, so the hub is not asked; unset it") from error
    except errors.HFValidationError as error:
        raise UserError(f"{shown}: expected OWNER/NAME, as the hub calls a dataset: {one_line(error)}") from error
    except errors.GatedRepoError as error:
        raise UserError(f"{shown}: is gated: ask for access at {address}, then log in with `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{shown}: {address} has no such dataset, or a private one that the token of this machine may not read; "
            "check the name, or log in with `hf auth login`, or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{shown}: the dataset has no such revision; give a branch, a tag or a commit of it") from error
    except Exception as error:  # from the hub, the connection or a proxy
        raise UserError(f"{shown}: {_failure(error, address, right)}") from error


def _client(module: str) -> Any:  # noqa: ANN401 - huggingface_hub or a module of it
    try:
        return importlib.import_module(f"huggingface_hub{module}")
    except ImportError as error:
        raise UserError(f"the hub needs a package that is not installed: {install_line('data')}") from error


def _failure(error: BaseException, address: str, right: str) -> str:
    # The client wraps what one of its threads has raised.
    if type(error) is RuntimeError and error.__cause__ is not None:
        error = error.__cause__
    reason = one_line(error)
    if {401, 403} & error_statuses(error):
        return f"{address} refuses the token of this machine: {reason}; log in with `hf auth login` as who may {right}"
    if 412 in error_statuses(error):
        return "was changed by somebody else at the same time; run the same command again"
    if may_pass(error) and (status := max(error_statuses(error), default=0)):
        seconds = asked_to_wait(error)
        waits = "asks to wait" + (f" for {seconds:,} seconds" if seconds is not None else "")
        said = waits if status == 429 else "answers that it cannot serve this now"
        return (
            f"{address} {said} (status {status}): {reason}; run the same command again later (what is finished is kept)"
        )
    if may_pass(error):
        return (
            f"{address} cannot be reached: {type(error).__name__}: {reason}; run the same command again when it can "
            "(what is finished is kept)"
        )
    return f"{address} refuses: {reason}"


def asked_to_wait(error: BaseException | None) -> int | None:
    """Return the seconds that the hub asks to wait in an answer that its client raised, if it does."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    said = re.fullmatch(r"\s*(\d+)\s*", headers.get("retry-after", ""))
    said = said or re.search(r"\br=0;.*?\bt=(\d+)", headers.get("ratelimit", ""))
    return int(said[1]) if said else None
