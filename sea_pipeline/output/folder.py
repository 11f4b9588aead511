"""Name the parts of an output folder, measure its progress, and say how to bring back a lost file."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sea_pipeline.core.errors import UserError
from sea_pipeline.output.records import Commit
from sea_pipeline.storage.paths import Place, is_url, place
from sea_pipeline.storage.retry import looking

DATASET = "dataset.json"
MANIFEST = "manifest.json"
COMMITS = "commits"
QUARANTINE = "quarantine"
LOGS = "logs"

_AGAIN = "run the command that made the folder again, which makes it anew"


@dataclass(frozen=True)
class FolderProgress:
    """The progress of an output folder, from its commits."""

    shards: int
    images: int
    """The number of images with a row."""
    bad: int
    reasons: Counter[str]
    """Bad images by stage and error."""
    bytes: int
    """The size of the shards and quarantine tables."""
    last: str | None
    """The time at which the latest shard was finished, ISO 8601; None without one."""

    @classmethod
    def of(cls, commits: Sequence[Commit]) -> Self:
        """Sum up the progress of a folder with these commits."""
        return cls(
            shards=len(commits),
            images=sum(commit.rows for commit in commits),
            bad=sum(commit.bad for commit in commits),
            reasons=sum((Counter(commit.reasons) for commit in commits), Counter()),
            bytes=sum(file.bytes for commit in commits for file in commit.files),
            last=max((commit.finished for commit in commits), default=None),
        )


def advised(problem: str) -> str:
    """Add to a problem with a file the advice that brings the file back."""
    first = "remove it, and" if problem.endswith(("found a folder", "found a file")) else "restore it, or"
    return f"{problem}; {first} {_AGAIN}"


def lost_beginning(problem: str) -> str:
    """Add to a problem with `dataset.json` the advice that brings the file back.

    A damaged one must be restored or deleted first, because it may be a later version's.
    """
    if problem.endswith(("found a folder", "expected a file; found none")):
        return advised(problem)
    return f"{problem}; restore it, or delete it and {_AGAIN}"


def is_ours(root: Place) -> bool:
    """Tell whether a command that works shard by shard began this folder."""
    with looking(root):
        return any((root / name).exists() for name in (DATASET, MANIFEST)) or (root / COMMITS).is_dir()


def check_is_ours(path: str | Place) -> None:
    """Refuse a folder of this machine that no such command has begun.

    A folder in a store elsewhere is not checked.

    Raises:
        UserError: the path holds something else, or nothing.
    """
    # A URL costs requests to check; opening the folder refuses it anyway.
    if not is_url(str(path)):
        refuse_others(place(path))


def refuse_others(root: Place) -> None:
    """Refuse a folder that no such command has begun.

    Raises:
        UserError: the path holds something else, or nothing.
    """
    if not is_ours(root):
        wanted = "a folder of labels or targets" if _is_run(root) else "a folder that sea-pipeline wrote"
        raise UserError(
            f"{root}: expected {wanted}; found {other_than_ours(root)}; "
            "give the output folder of label or teacher, such as one below runs/labels"
        )


def other_than_ours(root: Place) -> str:
    """Describe for people what is at a path that is no such folder."""
    if not root.is_dir():
        return "a file" if root.exists() else "no such folder"
    if _is_run(root):
        return "a training run, which sea-pipeline report shows at its end; its metrics.jsonl says how far it is"
    return "no dataset.json in it"


def _is_run(root: Place) -> bool:
    """Tell whether a folder is that of a training run, or of its stages."""
    return isinstance(root, Path) and any(any(root.glob(pattern)) for pattern in ("run.json", "*/run.json"))
