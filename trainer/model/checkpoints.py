"""Writes and reads checkpoints that hold only what trains, each of them whole or absent.

A checkpoint of stage 1 is the projector, not the LLM, because the frozen parts are in the folder that the run started
from.

A checkpoint is written in a separate folder. When all of it is on disk, `files.json` is written into it, with the size
and the hash of each file, the step and the fingerprint of the run, and the folder gets its name. Checkpoints of
versions without such a record count if each of their files can be read from beginning to end.
"""

import json
import os
import shutil
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.core.parallel import ThreadPool, prefetched_map
from sea_pipeline.core.progress import SILENT, Reporter
from sea_pipeline.core.settings import Count
from sea_pipeline.output.records import FILES, FilesRecord, check_file, file_record, load_record, whole_record
from sea_pipeline.output.run_files import RunFile
from sea_pipeline.storage.json_files import Sha256
from sea_pipeline.storage.publish import TEMPORARY, sync, sync_folder, writing
from sea_pipeline.storage.retry import StoreError, refuse_unreadable
from trainer.model.fsdp import load_state, trained
from trainer.model.run_record import numbered
from trainer.model.tensor_files import save_tensors

TRAINED = "trained.safetensors"
_BALANCE = "balance."
_STATE = "trainer_state.json"
_PARTS = (TRAINED, "optimizer*", "scheduler.pt", "rng_state*.pth", _STATE)
"""The files that a run needs to go on as if it had not been stopped."""


class CheckpointRecord(FilesRecord):
    """`files.json` of a checkpoint."""

    run: Sha256 | None = None
    """The fingerprint of its run. Those of earlier versions lack it."""
    step: Count | None = None
    """The optimizer step after which it was written. Those of earlier versions lack it."""

    def to_bytes(self) -> bytes:
        """Encode the record as `Record` does, without what is None."""
        return (self.model_dump_json(indent=2, exclude_none=True) + "\n").encode()


def save_trained(state: dict[str, torch.Tensor], balances: nn.Module, folder: Path) -> None:
    """Write each parameter that trains, by name, and what the balances have measured."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: value.contiguous() for name, value in state.items()}
    kept |= {f"{_BALANCE}{name}": value for name, value in balances.state_dict().items()}
    save_tensors(kept, folder / TRAINED)


def load_trained(model: nn.Module, balances: nn.Module, folder: Path) -> None:
    """Read what `save_trained` wrote.

    Raises:
        UserError: it belongs to a run in which other parameters train.
    """
    found = load_file(folder / TRAINED)
    own = {name: found.pop(f"{_BALANCE}{name}") for name in balances.state_dict() if f"{_BALANCE}{name}" in found}
    balances.load_state_dict(own)
    parameters = trained(model)
    if differing := sorted(parameters.keys() ^ found.keys()):
        raise UserError(f"{folder}: holds other trained parameters than this recipe's, such as {differing[0]}")
    # Old checkpoints hold scalars of shape (), which FSDP could not cut.
    load_state(model, {name: value.view(parameters[name].shape) for name, value in found.items()})


def make_checkpoints_folder(folder: Path) -> None:
    """Create the folder of a run's checkpoints, if it does not exist.

    A link that leads nowhere is not followed, because a disk with checkpoints may be missing there.

    Raises:
        UserError: it cannot be created.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(
            f"{folder}: expected a folder; found a file, or a link that leads to none; mend or remove it, and run the "
            "same command again"
        )
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def unfinished(folder: Path) -> Path:
    """Return the folder in which a run's checkpoints are written.

    What a kill leaves there is worthless.
    """
    return folder / TEMPORARY


def clear(folder: Path) -> None:
    """Remove what a stopped run has left half-written."""
    shutil.rmtree(unfinished(folder), ignore_errors=True)


def publish(written: Path, folder: Path, *, limit: int | None = None, best: int | None = None) -> None:
    """Give a written checkpoint its name in `folder`, and remove the oldest beyond `limit`.

    Args:
        written: a folder below `unfinished`, with the name that the checkpoint gets.
        folder: the folder of the run's checkpoints, in the run's folder.
        limit: the number to keep, this one included; None or 0 keeps all.
        best: the step of a checkpoint to keep in any case.
    """
    sync_folder(written)
    write_record(written, folder.parent, step_of(written))
    sync(written / FILES)
    sync(written)
    path = folder / written.name
    _remove(path, folder)  # a damaged one, from before the run went on from an older one
    written.rename(path)
    sync(folder)
    others = [other for other in _own(folder) if other != path]
    others.sort(key=lambda other: (step_of(other) == best, _has_all(other), step_of(other)))
    spare = max(0, len(others) + 1 - limit) if limit else 0
    for other in others[:spare]:
        if step_of(other) != best:
            _remove(other, folder)
    clear(folder)


def write_record(checkpoint: Path, run: Path, step: int) -> None:
    """Write `files.json` into a run's checkpoint of a step, with the size and the hash of each of its files."""
    paths = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    with ThreadPool() as pool:  # large files are hashed in parallel
        files = list(prefetched_map(pool, partial(file_record, checkpoint), paths))
    record = CheckpointRecord(files=files, run=_fingerprint(run), step=step)
    (checkpoint / FILES).write_bytes(record.to_bytes())


def _remove(checkpoint: Path, folder: Path) -> None:
    """Remove a checkpoint in one step for all readers.

    A kill leaves no half of it in `folder`.
    """
    if checkpoint.exists():
        aside = unfinished(folder) / f"removed-{checkpoint.name}"
        checkpoint.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def latest(folder: Path, reporter: Reporter = SILENT) -> Path | None:
    """Find the newest whole checkpoint of a run, or None if there is none at all.

    `reporter` is told of newer, damaged ones.

    Raises:
        UserError: there are checkpoints, and none of them is whole.
    """
    problems: list[str] = []
    for _, checkpoint in reversed(numbered(folder)):
        problem = find_damage(checkpoint, folder.parent)
        if problem is None:
            for line in problems:
                reporter.message(f"{line}; this checkpoint is left out")
            return checkpoint
        problems.append(problem)
    if problems:
        raise UserError(
            f"{'; '.join(problems[:3])}; expected a whole checkpoint in {folder}, found none; put back a copy of one, "
            f"or remove {folder} to begin the run anew"
        )
    return None


def complete(folder: Path) -> dict[int, Path]:
    """Return the checkpoints of a run, by step, in which each file exists with its size."""
    return {step_of(checkpoint): checkpoint for checkpoint in _own(folder) if _has_all(checkpoint)}


def has_record(checkpoint: Path) -> bool:
    """Tell whether a checkpoint lists its files.

    Those of older versions do not.
    """
    return (checkpoint / FILES).exists()


def _own(folder: Path) -> list[Path]:
    """List the checkpoints of a folder by step, without those that another run wrote."""
    found = [checkpoint for _, checkpoint in numbered(folder)]
    with suppress(UserError):  # a record that cannot be read says nothing
        own = _fingerprint(folder.parent)
        return [checkpoint for checkpoint in found if own is None or _run_of(checkpoint) in (None, own)]
    return found


def _run_of(checkpoint: Path) -> str | None:
    """Return the fingerprint of the run that wrote a checkpoint, or None if its record is old, absent or damaged."""
    record = whole_record(checkpoint / FILES, CheckpointRecord)
    return record.run if record else None


def _fingerprint(run: Path) -> str | None:
    """Return the fingerprint that a run was begun with, or None if its record is absent or damaged."""
    record = whole_record(run / "run.json", RunFile)
    return (record and record.fingerprint) or None


def find_damage(checkpoint: Path, run: Path, only: str | None = None) -> str | None:
    """Say in one line what of a checkpoint is not as its run has written it, or return None.

    Args:
        checkpoint: its folder.
        run: the folder of its run.
        only: name of the one file to hash. Without a record, which older versions lack, it need only be there.
    """
    if not has_record(checkpoint):
        return _unrecorded_problem(checkpoint, (only,) if only else _PARTS) or _other_step(checkpoint, None)
    try:
        record = load_record(checkpoint / FILES, CheckpointRecord)
    except StoreError:
        raise
    except UserError as error:
        return str(error)
    files, own = record.files, _fingerprint(run)
    if own and record.run and record.run != own:
        return f"{checkpoint}: expected a checkpoint of the run {own[:12]}…; found one of the run {record.run[:12]}…"
    if problem := _other_step(checkpoint, record.step):
        return problem
    if only and not (files := [file for file in files if file.path == only]):
        return f"{checkpoint / FILES}: damaged: expected {only} in it; found none"
    with ThreadPool() as pool:
        return next(filter(None, prefetched_map(pool, partial(check_file, checkpoint), files)), None)


def _other_step(checkpoint: Path, written: Any) -> str | None:  # noqa: ANN401 - whatever JSON holds
    """Describe a step that is not the one of the folder's name, or return None.

    If no record says the step at which it was `written`, transformers' state of a checkpoint to resume from does.
    """
    expected = step_of(checkpoint)
    if written is None:
        with suppress(OSError, ValueError):
            state = json.loads((checkpoint / _STATE).read_bytes())  # it may hold NaN
            written = state.get("global_step") if isinstance(state, dict) else None
    if written in (None, expected):
        return None
    return f"{checkpoint}: expected a checkpoint of step {expected}, as its name says; found one of step {written}"


def _unrecorded_problem(checkpoint: Path, patterns: Sequence[str]) -> str | None:
    for pattern in patterns:
        files = sorted(checkpoint.glob(pattern))
        if not files:
            return f"{checkpoint / pattern}: expected a file, as no {FILES} says what there was; found none"
        for path in files:
            try:
                _read_through(path)
            except Exception as error:  # a damaged file can raise nearly anything
                refuse_unreadable(path, error)
                return f"{path}: damaged: {one_line(error)}"
    return None


def _read_through(path: Path) -> None:
    if path.suffix == ".json":
        json.loads(path.read_text("utf-8"))
    elif path.suffix == ".safetensors":
        with safe_open(path, framework="pt"):  # compares what the header names with the file's size
            pass
    elif path.is_file():  # otherwise it is FSDP's folder of an optimizer in pieces
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} has another checksum")


def _has_all(checkpoint: Path) -> bool:
    """Check whether each file exists with its size, without reading gigabytes."""
    if not has_record(checkpoint):
        return all(any(checkpoint.glob(pattern)) for pattern in _PARTS)
    try:
        files = load_record(checkpoint / FILES, CheckpointRecord).files
        return all((checkpoint / file.path).stat().st_size == file.bytes for file in files)
    except (OSError, UserError):
        return False


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def processes_of(checkpoint: Path) -> int:
    """Count the processes that wrote a checkpoint.

    Each has left the state of its random numbers.
    """
    return len(list(checkpoint.glob("rng_state*.pth")))


def exactness(checkpoint: Path, processes: int) -> str:
    """Describe in what a run that goes on from a checkpoint differs, if at all.

    The checkpoint may be of an older version without records, or of another number of processes.
    """
    before = processes_of(checkpoint)
    aside = "" if has_record(checkpoint) else ", which an older version wrote; all of it can be read"
    if before == processes:
        return aside
    return (
        f" of {before} processes with {processes}{aside}: samples, weights and optimizer go on as they were; sums over "
        "a step are rounded otherwise, and dropout is drawn anew"
    )


def kept(folder: Path) -> str:
    """Say for a message which checkpoint is not lost."""
    found = list(complete(folder).values())
    return f"{found[-1]} is kept" if found else "there is no checkpoint yet"
