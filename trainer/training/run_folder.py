"""Describe a training run by name and hash in `run.json`, and begin or recognise its folder.

Two runs whose fields are equal give the same weights.
"""

import dataclasses
import glob
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from traceback import walk_tb
from types import MappingProxyType
from typing import Any

import torch
import transformers
from accelerate.utils import broadcast_object_list
from transformers import TrainingArguments

from sea_pipeline import __version__
from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.crops import FULL
from sea_pipeline.output.records import load_record
from sea_pipeline.output.run_files import RunFile
from sea_pipeline.storage.hashing import differing_fields, file_sha256, fingerprint_of, leaves
from sea_pipeline.storage.locks import claimed_for_run
from sea_pipeline.storage.paths import entries
from sea_pipeline.storage.publish import TEMPORARY, make_folder, publish_bytes, sweep
from sea_pipeline.storage.retry import StoreError
from trainer.attach.folder import ExistingFolder
from trainer.data.inputs import Inputs
from trainer.model import checkpoints
from trainer.model.borders import has_lost_others, lacks_memory
from trainer.model.digests import processing_digests, start_folder, weights_digest
from trainer.model.load import ModelFolder
from trainer.model.text_lens import lens_fields
from trainer.recipes.recipe import Parts, Recipe
from trainer.targets.store import CODEC
from trainer.training.align_trainer import AlignTrainer
from trainer.training.argument_table import EARLIER, changes_weights
from trainer.training.arguments import DEFAULTS
from trainer.training.schedule import BY_EVALUATION

NO_RUN = "expected a run to go on with; found none; leave out --resume to begin one"
RUNS = Path("runs") / "train"
METRICS, SUMMARY = "metrics.jsonl", "summary.json"
_CHECKPOINTS = ("checkpoints/checkpoint-*", "kept/checkpoint-*")
ACCUMULATION = "gradient_accumulation_steps"
_MICRO_BATCHES = f"processes x training_arguments.{ACCUMULATION}"
_ARGUMENTS = "recipe.training_arguments."


def run_fields(inputs: Inputs[Any], processes: int) -> dict[str, Any]:
    """Collect everything that decides the trained weights, by name.

    The number of micro-batches in a step is part of it, but not how they are shared among processes.
    """
    recipe, folder, store, targets = inputs.recipe, inputs.folder, inputs.store, inputs.targets
    aside = {"name", "preset", "model", "labels", "teacher", "evaluate_every", "keep_checkpoints"}
    aside |= {"lora"} if recipe.lora is None else set()
    settings = recipe.model_dump(mode="json", exclude=aside)
    if recipe.loss.sds.temperature == 1:
        del settings["loss"]["sds"]["temperature"]
    lens = settings["loss"]["basic"].pop("lens")
    if lens != "none" and recipe.loss.basic_terms():
        settings["loss"]["basic"]["lens"] = {"kind": lens, **lens_fields()}
    elsewhere = ("train", "image_root", "evaluate", "bad_rows")
    settings["data"] = {key: value for key, value in settings["data"].items() if key not in elsewhere}
    if recipe.data.image_aspect_ratio is None:  # so that runs from before this key keep their fields
        del settings["data"]["image_aspect_ratio"]
    arguments = settings["training_arguments"]
    schedule = arguments.get("lr_scheduler_type")
    settings["training_arguments"] = {key: value for key, value in arguments.items() if changes_weights(key, schedule)}
    if processes > 1:
        settings["training_arguments"][ACCUMULATION] = processes * arguments.get(ACCUMULATION, 1)
    labels = store if store is not None and recipe.loss.sea.weight else None
    rare = inputs.conversations.bad.fields()
    if labels is not None and folder.reach != FULL:
        rare["reach"] = list(folder.reach)
    return rare | {
        "recipe": settings,
        "transfer": recipe.labels.transfer,
        "crops": recipe.labels.crops,
        **_model_fields(folder),
        "data": file_sha256(inputs.conversations.file),
        "labels": None if labels is None else labels.fingerprint,
        # A label folder may grow under one fingerprint: old labels stay, but more of our images may have labels.
        "labelled": None if labels is None else sum(image in labels for image in inputs.conversations.image_ids),
        "teacher": None if targets is None else [targets.fingerprint, file_sha256(targets.path / CODEC)],
    }


def hash_images(inputs: Inputs[Any]) -> dict[str, str]:
    """Hash the images that a run's labels and its teacher's targets were made of.

    Their fingerprints say how they were made. The hashes are no part of a run's fields, so that runs of earlier
    versions keep their fingerprints.
    """
    labels = inputs.store if inputs.recipe.loss.sea.weight else None
    stores = {"labels": labels, "teacher": inputs.targets}
    wanted = inputs.conversations.image_ids
    return {name: store.images_sha256(wanted) for name, store in stores.items() if store is not None}


def _model_fields(folder: ModelFolder | ExistingFolder) -> dict[str, Any]:
    weights = weights_digest(folder.path, folder.projector)
    return {
        "model": {"config": file_sha256(folder.path / "config.json"), "weights": weights},
        "processing": processing_digests(folder.path),
    }


def check_start(folder: ModelFolder | ExistingFolder, fields: dict[str, Any], out: Path) -> None:
    """Refuse to save a run whose model folder has changed since `run_fields` was called.

    What did not train is read from it again then.

    Raises:
        UserError: it has changed, or cannot be read any more.
    """
    now: dict[str, Any] = {}
    with suppress(OSError, UserError):
        now = _model_fields(folder)
    if now != {name: fields[name] for name in ("model", "processing")}:
        raise UserError(
            f"{folder.path}: has changed since the run began; put it back and run the same command again "
            f"({checkpoints.kept(out / 'checkpoints')})"
        )


def begun_with_labels(out: Path | None) -> str | None:
    """Return the fingerprint of the labels that a run in a folder was begun with, if there is one that has some."""
    if out is not None and (out / "run.json").is_file():
        with suppress(UserError):  # `begin_run` says what is wrong with it
            found = load_record(out / "run.json", RunFile).fields.get("labels")
            return found if isinstance(found, str) else None
    return None


def _default_name(inputs: Inputs[Any], fields: dict[str, Any], image_root: Path) -> str:
    """Return the name of a run's folder, which also depends on what is no part of its fields.

    A resumed run may find its images elsewhere, and be measured on other rows.
    """
    evaluate = inputs.recipe.data.evaluate
    others = {
        "image_root": str(image_root),
        "evaluate": file_sha256(Path(evaluate)) if evaluate and Path(evaluate).is_file() else evaluate,
    }
    return f"{inputs.recipe.name}-{fingerprint_of(fields | others)[:8]}"


def default_folder(inputs: Inputs[Any], fields: dict[str, Any]) -> Path:
    """Return the folder of a run for which none is named; its name is a hash of what the run is.

    Earlier versions counted more arguments and the place of the whole project, so a run that one of them began is found
    by its earlier name.
    """
    recipe = inputs.recipe
    once = {key: value for key, value in recipe.training_arguments.items() if key not in EARLIER}
    later = {key: value for key, value in once.items() if changes_weights(key, BY_EVALUATION[0])}
    own = fields["recipe"]["training_arguments"]
    recipes = [fields["recipe"] | {"training_arguments": each | own} for each in (once, later, {})]
    every = [fields | {"recipe": each} for each in recipes]
    root, here = inputs.conversations.image_root.resolve(), Path.cwd().resolve()
    roots = [root, root.relative_to(here)] if root.is_relative_to(here) else [root]
    names = [_default_name(inputs, each, one) for one in roots for each in every]
    *earlier, name = (RUNS / one for one in names)
    return next((one for one in earlier if (one / "run.json").is_file()), name)


def folders_named(name: str) -> list[Path]:
    """List the folders that `default_folder` has named for runs of a recipe's name."""
    return list(RUNS.glob(f"{glob.escape(name)}-*"))


def has_saved(out: Path) -> bool:
    """Tell whether a run has saved anything that was trained."""
    return any(any(out.glob(pattern)) for pattern in (SUMMARY, "model", *_CHECKPOINTS))


def check_begun(recipe: Recipe, out: Path | None) -> None:
    """Refuse to resume a run that cannot have begun, before anything is made for it.

    Raises:
        UserError: `out` holds no run, or without `out` the model that the run would begin with is not there.
    """
    if out is None and not isinstance(recipe.model, Parts):
        return
    begun = start_folder(recipe) if out is None else out / "run.json"
    if not begun.exists():
        if out is not None:
            _refuse_lost_record(out)
        raise UserError(f"{out or begun}: {NO_RUN}")


def begin_run(
    out: Path,
    fields: dict[str, Any],
    recipe: Recipe,
    resume: bool,
    stages: Sequence[str] = (),
    image_hashes: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Begin a run's folder, or check that the folder is this run's.

    A folder of another run that has saved nothing, and that nobody works on, is begun anew.

    Args:
        out: the folder.
        fields: what the run is, see `run_fields`.
        recipe: recipe to write to the record.
        resume: require a run to resume.
        stages: names of the stages of which this is one, in order, to write to the record.
        image_hashes: see `hash_images`.

    Raises:
        UserError: the folder holds another run or other files, or `resume` is set and it holds no run.
    """
    described = out / "run.json"
    held = {path.name for path in entries(out)}
    if described.name not in held:
        _refuse_lost_record(out)
        if resume:
            raise UserError(f"{out}: {NO_RUN}")
        if held - {TEMPORARY}:
            raise UserError(f"{out}: expected a new folder or one of a run; found other files; choose another --out")
        make_folder(out)
        sweep(out)
        with suppress(FileExistsError):  # another machine that does not share the lock was faster
            publish_bytes(described, _described(fields, recipe, stages, image_hashes), out, exclusive=True)
            return
    if described.name in held and _differences(out, fields, recipe, image_hashes) and not has_saved(out):
        with suppress(UserError), claimed_for_run(out, seconds=0):
            (out / METRICS).unlink(missing_ok=True)
            publish_bytes(described, _described(fields, recipe, stages, image_hashes), out)
            return
    check_run(out, fields, recipe, image_hashes)
    sweep(out)


def check_run(out: Path, fields: dict[str, Any], recipe: Recipe, image_hashes: Mapping[str, str]) -> None:
    """Refuse a folder that holds another run than this one.

    Raises:
        UserError: it does, or its record is damaged, or the model folder has changed since the run began.
    """
    if not (differences := _differences(out, fields, recipe, image_hashes)):
        return
    said = "; ".join(differences[:6])
    record = load_record(out / "run.json", RunFile)
    same_model = record.recipe.get("model") == recipe.model_dump(mode="json")["model"]
    if same_model and all(each.startswith(("model.", "processing.")) for each in differences):
        raise UserError(
            f"{start_folder(recipe)}: has changed since {out} began with it: {said}; put it back and run the same "
            "command again, or choose another --out"
        )
    of_labels = ("labelled:", "labels (sha256")
    if (more_labels := labels_grown(record, fields)) and all(each.startswith(of_labels) for each in differences):
        raise UserError(
            f"{out}: {more_labels}; remove this folder to begin it again with them, or choose another --out"
        )
    more = fields.get("left_out", [0])[0] - record.fields.get("left_out", [0])[0]
    if more > 0 and record.fields.get("data") == fields.get("data"):
        raise UserError(
            f"{out}: holds another run: {said}; {more:,} of its rows would be left out now: an earlier version took "
            "them, or their images were there; finish it with that version, put the images back, or choose another "
            "--out"
        )
    raise UserError(f"{out}: holds another run: {said}; choose another --out")


def labels_grown(begun: RunFile, fields: dict[str, Any]) -> str:
    """Say how many more images of a run have labels than when it began, or nothing."""
    before, now = begun.fields.get("labelled"), fields.get("labelled")
    if not before or not now or now <= before or begun.fields.get("labels") != fields.get("labels"):
        return ""
    return f"{before:,} of its images had labels when it began, and {now:,} have some now"


def is_finished(out: Path) -> bool:
    """Tell whether a run is finished; the first process looks, and all processes get its answer."""
    found = [(out / SUMMARY).is_file()]
    broadcast_object_list(found)
    return found[0]


def after_stop(out: Path, error: BaseException) -> str:
    """Say what to do after an error of another library in training, and what is not lost."""
    kept = checkpoints.kept(out / "checkpoints")
    if lacks_memory(error):
        if any(frame.f_code is AlignTrainer.evaluate.__code__ for frame, _ in walk_tb(error.__traceback__)):
            return (
                "free some memory or set a smaller training_arguments.per_device_eval_batch_size, and run the same "
                f"command again ({kept})"
            )
        return (
            f"free some memory and run the same command again ({kept}), or begin anew with another --out and a smaller "
            "training_arguments.per_device_train_batch_size"
        )
    missing = "install what is missing" if isinstance(error, ImportError) else "mend that"
    cause = "see what another process of this run has said" if has_lost_others(error) else missing
    return f"{cause}, and run the same command again ({kept})"


def _described(fields: dict[str, Any], recipe: Recipe, stages: Sequence[str], image_hashes: Mapping[str, str]) -> bytes:
    """Write a run's record."""
    record = {"fields": fields, "fingerprint": fingerprint_of(fields), "recipe": recipe.model_dump(mode="json")}
    record["versions"] = {
        "sea-pipeline": __version__, "torch": torch.__version__, "transformers": transformers.__version__
    }  # fmt: skip
    record |= {"stages": list(stages)} if stages else {}
    record |= {"images": dict(image_hashes)} if image_hashes else {}
    return (json.dumps(record, indent=2) + "\n").encode()


def _refuse_lost_record(out: Path) -> None:
    """Refuse the folder of a run that has lost its record.

    Raises:
        UserError: the folder has what only a run leaves.
    """
    if any(any(out.glob(pattern)) for pattern in (METRICS, *_CHECKPOINTS)):
        raise UserError(
            f"{out / 'run.json'}: expected the record of the run whose files are in {out}; found none; put it back, or "
            "choose another --out"
        )


def _differences(out: Path, fields: dict[str, Any], recipe: Recipe, image_hashes: Mapping[str, str]) -> list[str]:
    """Describe each setting and input that differs from those of a folder's run, by the key that users write.

    A setting that is not given has its default. In a finished run nothing is trained any more, so the number
    of processes may be another, and its labels may have grown.

    Raises:
        UserError: the folder's record is damaged.
    """
    try:
        found = load_record(out / "run.json", RunFile)
    except StoreError:
        raise
    except UserError as damage:
        raise UserError(f"{damage}; restore it, or choose another --out") from damage
    accumulation = f"{_ARGUMENTS}{ACCUMULATION}"
    both = found.images.keys() & image_hashes.keys()  # earlier versions write none
    pair = [_with_defaults(found.fields, fields), _with_defaults(fields, found.fields)]
    for each in pair:  # an earlier version may have written more arguments
        schedule = each.get(f"{_ARGUMENTS}lr_scheduler_type")
        for key in [key for key in each if key.startswith(_ARGUMENTS)]:
            if not changes_weights(key.removeprefix(_ARGUMENTS).partition(".")[0], schedule):
                del each[key]
    if (out / SUMMARY).is_file():
        arguments = found.recipe.get("training_arguments", {})
        if arguments.get(ACCUMULATION, 1) == recipe.training_arguments.get(ACCUMULATION, 1):
            for each in pair:
                each.pop(accumulation, None)
        if labels_grown(found, fields):
            both -= {"labels"}
            for each in pair:
                del each["labelled"]
    shown = {accumulation: _MICRO_BATCHES, "transfer": "labels.transfer", "crops": "labels.crops"}
    for each, hashes in zip(pair, (found.images, image_hashes), strict=True):
        each |= {f"{name} (sha256 of their images)": hashes[name] for name in sorted(both)}
    named = [{shown.get(key, key.removeprefix("recipe.")): value for key, value in each.items()} for each in pair]
    return differing_fields(named[0], named[1])


def _with_defaults(fields: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Flatten a run's fields, with the defaults of the settings that only another run's fields give."""
    own = leaves(fields)
    arguments = {field.name: field.default for field in dataclasses.fields(TrainingArguments)} | DEFAULTS
    known = {f"{_ARGUMENTS}{name}": value for name, value in arguments.items()}
    known |= leaves(Recipe().model_dump(mode="json"), "recipe.")
    for key in leaves(other).keys() - own.keys():
        value = known.get(key, dataclasses.MISSING)
        if isinstance(value, str | int | float | None):
            own[key] = value
    return own
