"""Push a finished folder to a dataset on the hub, sending only the missing files and replacing files last.

A commit of the hub is all or nothing. The first push sends the records that a folder begins with, then shards with
their commits, then labels by word, in commits of some files each. The last commit adds the manifest, without which a
reader sees an unfinished folder. If a folder has been extended since, its new shards come first, and every file that
replaces another comes in the last commit. Until then readers have the whole earlier state. The same command finishes a
push that was killed, because it asks which files exist.
"""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import sleep
from typing import Any, NamedTuple

from sea_pipeline import __version__
from sea_pipeline.core.errors import UserError
from sea_pipeline.core.extras import require
from sea_pipeline.core.progress import SILENT, Reporter
from sea_pipeline.hub.by_word import BY_WORD, BY_WORD_VERSION, write_by_word
from sea_pipeline.hub.card import dataset_card, licence_of
from sea_pipeline.hub.croissant import croissant
from sea_pipeline.hub.files import (
    CARD,
    CROISSANT,
    HubFile,
    hub_files,
    is_same,
    known_hashes,
    paths_of,
    refuse_other_names,
    refuse_other_than_finished,
)
from sea_pipeline.hub.picture import PICTURE, draw_picture
from sea_pipeline.hub.tables import tables_of
from sea_pipeline.labels.format import KIND as LABELS
from sea_pipeline.labels.statistics import Statistics, statistics
from sea_pipeline.labels.store import LabelStore, open_labels
from sea_pipeline.output.folder import COMMITS, DATASET, MANIFEST, QUARANTINE
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.records import DatasetFile, load_record
from sea_pipeline.output.verify import refuse_damage
from sea_pipeline.storage.hashing import file_sha256
from sea_pipeline.storage.hub import asked_to_wait, asking, commit_of, hub_api, silent_client
from sea_pipeline.storage.locks import claimed_for_run
from sea_pipeline.storage.paths import cache_folder, place
from sea_pipeline.storage.publish import publish_bytes
from sea_pipeline.storage.retry import error_statuses

FILES_PER_COMMIT = 100
BYTES_PER_COMMIT = 1 << 29
COMMITS_AT_MOST = 64
"""The number of commits above which each is made larger, because the hub limits commits an hour."""
_WAIT_AT_MOST = 3660
"""Seconds; the hub's limit is one of an hour."""
_BESIDE = {CARD, CROISSANT, PICTURE}
"""The files that a dataset holds in addition to the folder's own files and labels by word."""
_OWNERS = {".gitattributes", ".gitignore", "LICENSE", "LICENSE.md", "LICENSE.txt"}
"""The files that may exist before the first push, and stay."""


@dataclass(frozen=True)
class Pushed:
    """The result of a finished push."""

    name: str
    address: str
    """The URL of its page."""
    revision: str
    """The commit on the hub."""
    files: int
    bytes: int
    """The size of all files, sent now or earlier."""
    sent: int
    """The number of files that were sent now."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields above for machines."""
        return asdict(self)


class _Upload(NamedTuple):
    """A file that the dataset must have."""

    path: str
    local: Path
    sha256: str


def push(
    folder: str | Path,
    name: str,
    *,
    public: bool = False,
    reporter: Reporter = SILENT,
) -> Pushed:
    """Send a finished folder of labels or targets, or its missing files, to a dataset of the hub.

    The dataset also gets a card, Croissant metadata, a picture and, for labels, `by_word/`.

    Args:
        folder: the output folder, on this machine.
        name: OWNER/NAME; the dataset is made if it does not exist.
        public: whether a new dataset can be read by everybody; else only by its owner.
        reporter: shows messages and progress.

    Raises:
        UserError: the folder is not finished or damaged, the dataset holds something else, or the hub refuses or cannot
            be reached.
    """
    ledger = Ledger.open(place(folder))
    refuse_other_than_finished(ledger)
    refuse_without_token(name)
    with reporter.progress("checking", ledger.dataset.shards) as advance:
        refuse_damage(ledger, advance, shards=True)
    with asking(name, "write to it"):
        hub_api().create_repo(name, repo_type="dataset", private=not public, exist_ok=True)
    made_of = (ledger.root / MANIFEST).read_bytes() + BY_WORD_VERSION
    work = cache_folder() / "push" / hashlib.sha256(made_of).hexdigest()[:32]
    with claimed_for_run(work), silent_client():
        done = _pushed(ledger, name, work, reporter)
        shutil.rmtree(work, ignore_errors=True)  # before another push, which waits for it, can write to it
    return done


def _pushed(ledger: Ledger, name: str, work: Path, reporter: Reporter) -> Pushed:
    """Send what is missing, with files that are made in the folder `work`."""
    head = commit_of(name, "main")
    there = hub_files(name, head)
    _refuse_others(name, head, there, ledger)
    own = _own_files(ledger)
    if not _missing(own, there) and set(there) >= {file.path for file in own} | _BESIDE:
        return _verified(name, head, own, sent=0)  # the last commit also brought the derived files
    reporter.message(
        f"sending {ledger.root} to {name}; with it go the paths in dataset.json ({ledger.dataset.image_root}) and the "
        "names of machines in commits/"
    )
    files = [*own, *_derived(ledger, name, head, there, work, reporter)]
    missing = _missing(files, there)
    with reporter.progress("sending", len(files), len(files) - len(missing)) as advance:
        for commit in _commits(missing, there, ledger.dataset.kind, {file.path for file in files}):
            head = _sent(name, head, *commit, reporter)
            advance(len(commit[0]))
    return _verified(name, head, files, sent=len(missing))


def refuse_without_token(name: str) -> None:
    """Refuse, before any work, what cannot be sent.

    Raises:
        UserError: `name` is not OWNER/NAME, or nobody is logged in on this machine.
    """
    refuse_other_names(name)
    if require("huggingface_hub", "data").get_token() is None:
        raise UserError(f"{name}: nobody is logged in on this machine; run `hf auth login`, or set HF_TOKEN")


def _refuse_others(name: str, head: str, there: dict[str, HubFile], ledger: Ledger) -> None:
    """Refuse a dataset that is not of this folder or of an earlier state of it."""
    ours = ledger.dataset
    if DATASET not in there:
        if strangers := sorted(path for path in there if path not in _BESIDE | _OWNERS):
            raise UserError(
                f"{name}: expected a new dataset, or one of this folder; found {strangers[0]!r} in it; choose another "
                "name"
            )
        return
    theirs = load_record(place(f"hf://datasets/{name}@{head}/{DATASET}"), DatasetFile)
    parts = [(part.plan, part.images) for part in theirs.all_parts()]
    if (theirs.kind, theirs.fingerprint) != (ours.kind, ours.fingerprint):
        difference = f"{theirs.kind} of other settings, fingerprint {theirs.fingerprint[:12]}… there"
    elif theirs.shard_size != ours.shard_size or parts != [
        (part.plan, part.images) for part in ours.all_parts()[: len(parts)]
    ]:
        difference = f"{theirs.kind} of other images, {theirs.images:,} there and {ours.images:,} here"
    else:
        return
    raise UserError(f"{name}: expected a new dataset, or one of {ledger.root}; found {difference}; choose another name")


def _own_files(ledger: Ledger) -> list[_Upload]:
    root, known = Path(str(ledger.root)), known_hashes(ledger)
    paths = paths_of(ledger.dataset, ledger.manifest())
    return [_Upload(path, root / path, known.get(path) or file_sha256(root / path)) for path in paths]


def _derived(
    ledger: Ledger, name: str, head: str, there: dict[str, HubFile], work: Path, reporter: Reporter
) -> list[_Upload]:
    """Make the files that the dataset holds in addition to the folder's own."""
    store, stats = _look(ledger, reporter)
    paths = {}
    if store is not None:
        with reporter.progress("sorting by word", len(store)) as advance:
            paths = {f"{BY_WORD}/{path.name}": path for path in write_by_word(store, work / BY_WORD, advance)}
    draw_picture(ledger, stats, work / PICTURE)
    card_there = place(f"hf://datasets/{name}@{head}/{CARD}").read_bytes().decode() if CARD in there else None
    card = dataset_card(name, ledger, stats, store.words if store is not None else (), PICTURE, card_there)
    kind, last = ledger.dataset.kind, ledger.done().last or ""
    about = f"{kind.capitalize()} for the patches of {ledger.manifest().rows:,} images, made with sea-pipeline."
    metadata = croissant(name, _address(name), about, __version__, last[:10], licence_of(card), tables_of(ledger))
    publish_bytes(work / CARD, card.encode(), work)
    publish_bytes(work / CROISSANT, metadata, work)
    paths |= {each: work / each for each in (PICTURE, CROISSANT, CARD)}
    return [_Upload(path, local, file_sha256(local)) for path, local in paths.items()]


def _address(name: str) -> str:
    """Return the URL of a dataset's page."""
    return f"{require('huggingface_hub.constants', 'data').ENDPOINT}/datasets/{name}"


def _look(ledger: Ledger, reporter: Reporter) -> tuple[LabelStore | None, Statistics | None]:
    if ledger.dataset.kind != LABELS:
        return None, None
    store = open_labels(ledger.root, verify=False)  # every file has just been hashed
    with reporter.progress("counting", len(store)) as advance:
        return store, statistics(store, advance)


def _missing(files: Sequence[_Upload], there: dict[str, HubFile]) -> list[_Upload]:
    return [file for file in files if file.path not in there or not is_same(file.local, there[file.path], file.sha256)]


def _commits(
    missing: Sequence[_Upload], there: dict[str, HubFile], kind: str, wanted: set[str]
) -> Iterator[tuple[list[_Upload], list[str]]]:
    """Yield the files that each commit adds and the paths that it deletes.

    See the module's docstring.
    """
    last = {MANIFEST, *_BESIDE}
    first = [file for file in missing if file.path not in there and file.path not in last]
    sizes = [file.local.stat().st_size for file in first]
    files_at_most = max(FILES_PER_COMMIT, -(-len(first) // COMMITS_AT_MOST))
    bytes_at_most = max(BYTES_PER_COMMIT, -(-sum(sizes) // COMMITS_AT_MOST))
    batch: list[_Upload] = []
    size = 0
    for file, length in zip(first, sizes, strict=True):
        if batch and (len(batch) == files_at_most or size + length > bytes_at_most):
            yield batch, []
            batch, size = [], 0
        batch.append(file)
        size += length
    if batch:
        yield batch, []
    folders = (f"{kind}/", f"{COMMITS}/", f"{QUARANTINE}/", f"{BY_WORD}/")
    gone = [path for path in there if path.startswith(folders) and path not in wanted]
    rest = [file for file in missing if file.path in there or file.path in last]
    if rest or gone:
        yield rest, gone


def _sent(name: str, head: str, files: Sequence[_Upload], gone: Sequence[str], reporter: Reporter) -> str:
    """Make one commit as `_send` does, and wait once if the hub takes no more of them in this hour."""
    try:
        return _send(name, head, files, gone)
    except UserError as error:
        if 429 not in error_statuses(error):
            raise
        asked = asked_to_wait(error.__cause__)
        seconds = _WAIT_AT_MOST if asked is None else min(asked + 1, _WAIT_AT_MOST)
    reporter.message(f"{name}: the hub takes no more commits for now; waiting {seconds:,} s, then going on")
    sleep(seconds)
    return _send(name, head, files, gone)


def _send(name: str, head: str, files: Sequence[_Upload], gone: Sequence[str]) -> str:
    """Make one commit on top of `head`, and return its id."""
    hub = require("huggingface_hub", "data")
    adds = [hub.CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=str(file.local)) for file in files]
    deletes = [hub.CommitOperationDelete(path_in_repo=path) for path in gone]
    what = "Add the manifest: this is whole now" if MANIFEST in {file.path for file in files} else "Add files"
    with asking(name, "write to it"):
        done = hub_api().create_commit(
            name, [*adds, *deletes], commit_message=f"{what} (sea-pipeline push)", repo_type="dataset",
            parent_commit=head,
        )  # fmt: skip
    return str(done.oid)


def _verified(name: str, revision: str, files: Sequence[_Upload], sent: int) -> Pushed:
    """Compare by hash the files that the hub lists with those that were to be sent."""
    there = hub_files(name, revision)
    if wrong := _missing(files, there):
        raise UserError(
            f"{name}@{revision[:12]}: {wrong[0].path}: is not there as it was sent; run the same command again"
        )
    size = sum(there[file.path].bytes for file in files)
    return Pushed(name, _address(name), revision, len(files), size, sent)
