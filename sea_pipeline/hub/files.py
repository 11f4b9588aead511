"""List the files of a folder and of a dataset on the hub, and compare them by size and hash."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.extras import require
from sea_pipeline.output.folder import COMMITS, DATASET, MANIFEST, QUARANTINE
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.records import DatasetFile, File, Manifest
from sea_pipeline.storage.hashing import file_sha256
from sea_pipeline.storage.hub import asking, hub_api

CARD, CROISSANT = "README.md", "croissant.json"


class HubFile(NamedTuple):
    """A file of a dataset at one commit, as the hub lists it."""

    bytes: int
    blob: str
    """Its name in git, the sha1 of a header and the bytes. For a file in LFS it is the pointer's."""
    sha256: str | None
    """The hash of a file in LFS; None for others."""


def hub_files(name: str, revision: str) -> dict[str, HubFile]:
    """List the files of a dataset by path.

    Raises:
        UserError: see `storage.hub.asking`.
    """
    with asking(f"{name}@{revision}"):
        found = hub_api().list_repo_tree(name, recursive=True, revision=revision, repo_type="dataset")
        return {
            file.path: HubFile(file.size, file.blob_id, file.lfs.sha256 if file.lfs else None)
            for file in found
            if hasattr(file, "blob_id")  # folders have none
        }


def is_same(path: Path, file: HubFile, sha256: str | None = None) -> bool:
    """Tell whether a file of this machine has the bytes of one on the hub.

    `sha256` is the local file's hash if it is known.
    """
    if not path.is_file() or path.stat().st_size != file.bytes:
        return False
    if file.sha256 is None:
        data = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == file.blob
    return (sha256 or file_sha256(path)) == file.sha256


def paths_of(dataset: DatasetFile, manifest: Manifest) -> list[str]:
    """List the paths of all files of a finished folder, in the order in which they are pushed."""
    tables = {file.path for file in manifest.other_files}
    paths = [DATASET, *(file.path for file in dataset.files)]
    for shard, file in enumerate(manifest.shards):
        quarantine = f"{QUARANTINE}/{shard:05d}.parquet"
        paths += [file.path, *([quarantine] if quarantine in tables else []), f"{COMMITS}/{shard:05d}.json"]
    return [*dict.fromkeys([*paths, *(file.path for file in manifest.other_files)]), MANIFEST]


def known_hashes(ledger: Ledger) -> dict[str, str]:
    """Return the sha256 of each file that the records of a finished folder name, by path.

    No record names the commits and `manifest.json`.
    """
    manifest = ledger.manifest()
    files: Iterable[File] = [*ledger.dataset.files, *manifest.other_files, *manifest.shards]
    return {file.path: file.sha256 for file in files}


def refuse_other_names(name: str) -> None:
    """Refuse a name that is not OWNER/NAME, as the hub calls a dataset.

    Raises:
        UserError: the name is not of that form.
    """
    with asking(name):
        require("huggingface_hub.utils", "data").validate_repo_id(name)
    if name.count("/") != 1:
        raise UserError(f"{name}: expected OWNER/NAME, as the hub calls a dataset; found no owner")


def refuse_other_than_finished(ledger: Ledger) -> None:
    """Refuse a folder that is not on this machine or is not finished, because it cannot be pushed.

    Raises:
        UserError: the folder is such a one.
    """
    if not isinstance(ledger.root, Path):
        raise UserError(f"{ledger.root}: expected a folder of this machine to push; copy it here, and push that")
    ledger.manifest()
