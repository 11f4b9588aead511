"""Open the model of a run at its end or at a step, as a folder's files and the tensors that belong to them."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from transformers.core_model_loading import revert_weight_conversion

from sea_pipeline.core.errors import UserError
from trainer.export.checks import is_run
from trainer.model import checkpoints
from trainer.model.digests import begun_folder, weights_digest
from trainer.model.fsdp import state_of
from trainer.model.llm_weights import other_head
from trainer.model.load import ModelFolder, load_in_own_dtype, open_model_folder
from trainer.model.lora import A, B, merged_weight
from trainer.model.run_record import kept_path, kept_steps, last_step, read_run
from trainer.model.tensor_files import LLM, Entry, canonical, read_file, read_weights
from trainer.model.trained_template import set_template
from trainer.recipes.recipe import Lora

_BESIDE = ("sea_term.", "balance.")
"""Prefixes of a checkpoint's tensors that belong to the losses, not to the model."""
_ADVICE = "name another step, or train it again"


class RunModel(NamedTuple):
    """What an export is made from."""

    folder: ModelFolder
    """The model folder, used for everything but the weights."""
    weights: list[Entry]
    step: int | None = None
    """The step of a checkpoint; None for the run's end or a model folder."""
    notes: tuple[str, ...] = ()
    """What the user must know, one sentence each."""


def open_source(source: Path, checkpoint: int | None = None) -> RunModel:
    """Open the model of a finished run, of a run at a step, or of a LLaVA folder.

    Args:
        source: a run's folder, or a LLaVA folder.
        checkpoint: number of optimizer steps: 0 for the weights that the run began with, the step of a kept
            checkpoint or of one to resume from, or the last step. None for the end.

    Raises:
        UserError: the run or the step's checkpoint does not exist, the checkpoint is damaged, or the folder that the
            run began with is missing or has changed.
    """
    if not is_run(source, checkpoint):
        return _of_folder(source)
    last = last_step(source)
    if checkpoint is not None and checkpoint != last:
        return _at(source, checkpoint, last)
    if last is None:
        some = ", ".join(map(str, _steps(source)))
        raise UserError(
            f"{source}: this run is not finished; run the same sea-pipeline train command again, then export it, or "
            f"name one of the steps {some} with --checkpoint"
        )
    return _of_folder(source / "model")


def _of_folder(path: Path) -> RunModel:
    folder = open_model_folder(path)
    return RunModel(folder, _weights(folder))


def _weights(folder: ModelFolder) -> list[Entry]:
    """List a folder's tensors without a head that repeats the embeddings.

    The folder's config then says in both parts whether the head is tied. transformers 5 ties a head if the config or
    its LLM's part says so, and transformers 4 and vLLM if the part does.

    Raises:
        UserError: a file is missing or damaged, or a head that the LLM's part ties differs from the embeddings.
    """
    config, weights = folder.config, read_weights(folder.path)
    head = next((entry for entry in weights if entry.name == f"{LLM}lm_head.weight"), None)
    if head is not None and config.tie_word_embeddings:  # true if either part says so, see `LlavaConfig`
        own = head.read()
        others = (entry.read() for entry in weights if entry.name.startswith(LLM) and entry is not head)
        if any(other.shape == own.shape and torch.equal(other.to(own.dtype), own) for other in others):
            weights = [entry for entry in weights if entry.name != head.name]
            head = None
        elif config.text_config.tie_word_embeddings:
            raise other_head(str(folder.path), "text_config.")
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = config.tie_word_embeddings and head is None
    return weights


def _steps(run: Path) -> dict[int, Path | None]:
    """Map each step before a run's end that has weights to their folder, in order.

    Step 0 maps to None.
    """
    found: dict[int, Path | None] = {0: None} | checkpoints.complete(run / "checkpoints")
    found |= {step: kept_path(run, step) for step in kept_steps(run)}  # rounded as the model folder is
    return dict(sorted(found.items()))


def _at(run: Path, step: int, last: int | None) -> RunModel:
    checkpoint = _checkpoint(run, step, last)
    try:
        return _read_at(run, step, checkpoint)
    except UserError:
        _checkpoint(run, step, last)  # a run that goes on may have removed it meanwhile
        raise


def _checkpoint(run: Path, step: int, last: int | None) -> Path | None:
    steps = _steps(run)
    if step not in steps:
        there = ", ".join(map(str, sorted({*steps, *([] if last is None else [last])})))
        later = "this run is not finished, and may save the step later; " if last is None and step > max(steps) else ""
        raise UserError(
            f"--checkpoint {step}: {run} has no checkpoint of this step; expected one of {there}; {later}"
            "keep_checkpoints in a recipe keeps others"
        )
    return steps[step]


def _read_at(run: Path, step: int, checkpoint: Path | None) -> RunModel:
    record = read_run(run, finished=False)
    recipe, path = record.recipe, begun_folder(record.recipe)
    if not (path / "config.json").is_file():
        raise UserError(
            f"{run}: began with the model folder {path}, which is not there; put it back, or run this where train was "
            "run"
        )
    if weights_digest(path) != record.began_with:
        raise UserError(f"{run}: began with the model folder {path}, which has changed since; put back what it was")
    folder = open_model_folder(path, recipe.data.image_aspect_ratio)
    set_template(folder.processor, recipe.data.template)
    weights = _weights(folder)
    if checkpoint is None:
        return RunModel(folder, weights, step, ("These are the weights that the run began with.",))
    notes = [f"These are the weights of step {step}, before the run's end."]
    if not checkpoints.has_record(checkpoint):
        notes.append("No files.json of the checkpoint says whether they are as the run wrote them.")
    if not recipe.loss.lm and recipe.loss.sea.match_norm and not recipe.loss.sds.weight:
        notes.append("Its visual tokens are not scaled to the length of the LLM's embeddings, as at the run's end.")
    if problem := checkpoints.find_damage(checkpoint, run, checkpoints.TRAINED):
        raise UserError(f"{problem}; {_ADVICE}")
    trained = read_file(checkpoint / checkpoints.TRAINED, _ADVICE)
    _check_rank(trained, recipe.lora, checkpoint)
    dtype = (folder.config.dtype or torch.float32) if recipe.loss.lm else None
    return RunModel(folder, _with_trained(weights, trained, recipe.lora, dtype, folder), step, tuple(notes))


def _check_rank(trained: list[Entry], lora: Lora | None, checkpoint: Path) -> None:
    """Refuse a checkpoint whose adapters are not those of the recipe."""
    expected = None if lora is None else lora.rank
    found = next((entry.read().shape[0] for entry in trained if A in entry.name), None)
    if found != expected:
        said = ["no adapters" if rank is None else f"adapters of rank {rank}" for rank in (expected, found)]
        raise UserError(f"{checkpoint}: expected {said[0]}, as in the run's recipe; found {said[1]}; {_ADVICE}")


def _with_trained(
    weights: list[Entry], trained: list[Entry], lora: Lora | None, dtype: torch.dtype | None, start: ModelFolder
) -> list[Entry]:
    """Replace a folder's tensors by their trained values, and merge adapters.

    Args:
        weights: tensors of the folder.
        trained: tensors of a checkpoint.
        lora: the recipe's adapters.
        dtype: dtype of the result. None keeps each tensor's dtype in the folder; merged weights are then float32.
        start: the folder.
    """
    there = {entry.name: entry for entry in weights}
    own = {entry.name: entry for entry in trained if not entry.name.startswith(_BESIDE)}
    model = None
    if any(_target(name) not in there for name in own):  # a weight has another layout in files than in memory
        model = load_in_own_dtype(start)
        there = _entries(state_of(model))
    replaced: dict[str, Entry] = {}
    for name, entry in own.items():
        if (target := _target(name)) not in there:
            raise UserError(
                f"{start.path}: expected a tensor {target}, as the run trained it; found none; put back what it was"
            )
        if A in name:
            assert lora is not None
            replaced[target] = _merged(there[target], own, name, lora, dtype or torch.float32)
        elif B not in name:
            replaced[target] = _cast(entry, dtype or there[target].read().dtype)
    if model is not None:
        values = there | replaced
        state = {name: values[canonical(name)].read() for name in state_of(model)}
        replaced = _entries(revert_weight_conversion(model, state))
    return [replaced.get(entry.name, entry) for entry in weights]


def _entries(state: Mapping[str, torch.Tensor]) -> dict[str, Entry]:
    found = (Entry(canonical(name), value.nbytes, value.detach) for name, value in state.items())
    return {entry.name: entry for entry in found}


def _target(name: str) -> str:
    """Return the name of the weight that a checkpoint's tensor replaces or adapts."""
    layer = name.partition(A)[0].partition(B)[0]
    return name if layer == name else f"{layer}.weight"


def _cast(entry: Entry, dtype: torch.dtype) -> Entry:
    return Entry(entry.name, entry.read().numel() * dtype.itemsize, lambda: entry.read().to(dtype))


def _merged(base: Entry, own: Mapping[str, Entry], a: str, lora: Lora, dtype: torch.dtype) -> Entry:
    b = own[a.replace(A, B)]
    size = base.read().numel() * dtype.itemsize
    return Entry(base.name, size, lambda: merged_weight(base.read(), own[a].read(), b.read(), lora, dtype))
