"""Train the model of a recipe, and write it with its metrics to a folder (`sea-pipeline train` as a function).

The folder has `run.json` (what the run is), `metrics.jsonl` (one object per logged step), `checkpoints/`, `kept/`
(weights along the run), `model/` (a stock LLaVA folder, which exists only when it is complete) and `summary.json`,
written last.
"""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import broadcast_object_list
from transformers import set_seed

from sea_pipeline.core.devices import without_autocast
from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT, ProgressOnly, Reporter
from sea_pipeline.core.renamed import taking_callbacks
from sea_pipeline.execution.dispatch import StageRun
from sea_pipeline.labels.run import LabelSettings, label_images
from sea_pipeline.output.records import load_record
from sea_pipeline.output.run_files import RunFile, SummaryFile, read_run_file
from sea_pipeline.storage.hashing import fingerprint_of
from sea_pipeline.storage.locks import claimed_for_run, locked
from sea_pipeline.storage.publish import make_folder, publish_bytes
from trainer.attach.folder import save_existing
from trainer.data.dataset import TrainingData
from trainer.data.inputs import (
    LABELS,
    Inputs,
    open_label_source,
    open_teacher,
    say_unread_teacher,
    say_unused_keys,
    say_what_labels_lack,
    warn_of_other_photos,
    without_untaught,
)
from trainer.data.run_rows import check_prompts, open_conversations, warn_of_rows, without_unreadable
from trainer.model import checkpoints
from trainer.model.aligned_llava import AlignedLlava
from trainer.model.aspect_ratio import pads
from trainer.model.assemble import init_model
from trainer.model.borders import border
from trainer.model.digests import MODELS, start_folder
from trainer.model.fsdp import agreed, is_first_process
from trainer.model.load import open_model_folder
from trainer.model.save import save_model
from trainer.model.trained_template import say_template
from trainer.recipes.recipe import ExistingModel, Parts, Recipe
from trainer.training import run_folder
from trainer.training.align_trainer import TrainedModel
from trainer.training.argument_checks import effective_arguments
from trainer.training.arguments import without_traces
from trainer.training.build import build, premise_of, trainable
from trainer.training.callbacks import FewPairs, MetricsLog, Screen
from trainer.training.checks import check_recipe, check_recipes, of_stage, unfinished
from trainer.training.existing import build_existing, existing_inputs
from trainer.training.input_checks import check_inputs
from trainer.training.kept_checkpoints import KeptCheckpoints
from trainer.training.match_norm import match_norm
from trainer.training.reporter import TrainReporter, reporter_of_told
from trainer.training.run_folder import METRICS, SUMMARY, after_stop, begin_run, check_begun, default_folder, run_fields
from trainer.training.run_summary import counted_rows, measured_on, refuse_untrained, start_and_end
from trainer.training.trackers import ending_trackers


@dataclass(frozen=True)
class TrainRun:
    """A finished run."""

    out: Path
    summary: dict[str, Any]

    @property
    def model(self) -> Path:
        """Return the trained model's folder."""
        return self.out / "model"

    def to_json(self) -> dict[str, Any]:
        """Return `folder`, `model`, and `summary.json` as `summary`, for machines."""
        return {"folder": str(self.out), "model": str(self.model), "summary": self.summary}


@taking_callbacks("told", made_by=reporter_of_told)
def train(recipe: Recipe, out: Path | None = None, *, resume: bool = False, reporter: Reporter = SILENT) -> TrainRun:
    """Train what a recipe says, or finish a run that was stopped.

    Args:
        recipe: see `Recipe`.
        out: the run's folder; None for one below runs/train whose name depends on the settings.
        resume: require a run to resume. A run that was stopped is resumed even without it.
        reporter: receives messages and progress, and tables if it is a `TrainReporter`.

    Raises:
        UserError: an input does not fit; the folder holds another run; a loss is not finite.
    """
    with without_autocast():  # the recipe alone decides the precision
        return _train(recipe, out, resume, reporter)


def _train(recipe: Recipe, out: Path | None, resume: bool, reporter: Reporter, stages: Sequence[str] = ()) -> TrainRun:
    args = effective_arguments(recipe, out)
    check_recipe(recipe)
    if resume:
        check_begun(recipe, out)
    set_seed(recipe.seed)
    labels = not resume or out is not None  # a run whose folder is named after its labels has them
    begun_with = run_folder.begun_with_labels(out)
    inputs = _inputs(recipe, reporter, first=args.process_index == 0, labels=labels, begun_with=begun_with)
    fields, image_hashes = run_fields(inputs, args.world_size), run_folder.hash_images(inputs)
    out = out or default_folder(inputs, fields)
    args = effective_arguments(recipe, out)  # again, because the folder is known now
    if not (out / SUMMARY).is_file():
        check_inputs(inputs, args)
    make_folder(out.parent)
    with locked(out.parent):  # all processes of a run come here at once; the first one begins it
        begin_run(out, fields, recipe, resume, stages, image_hashes)
    reporter = reporter if args.process_index == 0 else SILENT
    if run_folder.is_finished(out):
        return _finished(out, fields, reporter)
    reporter.message(f"the run goes to {out}" + (f"; labels: {inputs.store.path}" if inputs.store else ""))
    say_template(inputs.folder.processor.tokenizer, recipe.data.template, reporter)
    warn_of_rows(inputs.conversations, recipe.data, inputs.folder.config.get_text_config(), reporter)
    if not stages:
        say_unread_teacher([recipe], reporter)
    say_unused_keys(recipe.labels, reporter)
    say_what_labels_lack(recipe, inputs.conversations, inputs.store, reporter)
    for store in filter(None, (inputs.store, inputs.targets)):
        warn_of_other_photos(store, inputs.conversations, reporter)
    with (
        claimed_for_run(out) if args.process_index == 0 else nullcontext(),
        border(f"{out}: training has stopped", partial(after_stop, out)),
        ending_trackers(),
    ):
        if run_folder.is_finished(out):  # by another run, for which this one waited
            return _finished(out, fields, reporter)
        # Another run may have begun the folder before it was claimed.
        run_folder.check_run(out, fields, recipe, image_hashes)
        return _Training(inputs, out, fields, reporter).finish()


def _finished(out: Path, fields: dict[str, Any], reporter: Reporter) -> TrainRun:
    grown = run_folder.labels_grown(load_record(out / "run.json", RunFile), fields)
    reporter.message(f"{out}: this run is finished" + (f"; {grown}" if grown else ""))
    return TrainRun(out, read_run_file(out / SUMMARY, SummaryFile, "start", "end", "steps", "seconds"))


def _inputs(
    recipe: Recipe, reporter: Reporter, *, first: bool = True, labels: bool = True, begun_with: str | None = None
) -> Inputs[Any]:
    """Open what a run reads; whatever each process does for itself, the first one says.

    With `labels` False, labels that are to be made are not made, and absent. `begun_with` is as in `open_label_source`.
    """
    make = partial(_label, reporter) if labels else None
    heard = reporter if first else SILENT
    if isinstance(recipe.model, ExistingModel):
        return existing_inputs(recipe, make, reporter, begun_with, first=first)
    folder = open_model_folder(_model_path(recipe, reporter), recipe.data.image_aspect_ratio)
    if recipe.data.random_crop and pads(folder.processor.image_processor):
        raise UserError(
            f"data.random_crop: its crops are squares, which get no bars, and {folder.path} pads images; set "
            "data.image_aspect_ratio: square, or random_crop: null"
        )
    conversations = open_conversations(recipe.data, folder, reporter=reporter, first=first)
    if not recipe.loss.lm and not conversations.image_ids:
        raise UserError(f"{conversations.file}: expected images, as loss.lm is 0; found none in what is trained on")
    if recipe.loss.basic_terms() and recipe.teacher is None:
        check_prompts(conversations, folder, recipe.loss.basic, "loss.basic.text")
    store = open_label_source(recipe, folder, conversations, make=make, begun_with=begun_with, reporter=heard)
    conversations = without_unreadable(conversations, recipe.data, store, heard)
    targets = open_teacher(recipe, folder, conversations)
    conversations = without_untaught(conversations, recipe.data, targets)
    return Inputs(recipe, folder, conversations, store, targets)


def _model_path(recipe: Recipe, reporter: Reporter) -> Path:
    if isinstance(recipe.model, Path):
        return recipe.model
    parts, path = recipe.model, start_folder(recipe)
    assert isinstance(parts, Parts)
    make_folder(MODELS)
    with locked(MODELS):  # all processes of a run come here at once; the first one makes it
        if not path.is_dir():
            reporter.message(f"making {path} of the vision tower {parts.vision} and the LLM {parts.llm}")
            try:
                init_model(parts.vision, parts.llm, path, projector=parts.projector, seed=recipe.seed)
            except UserError:
                if not path.is_dir():  # another machine that does not share the lock may have made it
                    raise
    return path


def _label(reporter: Reporter, settings: LabelSettings) -> StageRun:
    make_folder(LABELS)
    with locked(LABELS):
        reporter.message("making labels, as none fit")
        return label_images(settings, ProgressOnly(reporter))


class _Training:
    """Train one run from its inputs to its summary."""

    def __init__(self, inputs: Inputs[Any], out: Path, fields: dict[str, Any], reporter: Reporter) -> None:
        self.inputs = inputs
        self.out = out
        self.reporter = reporter
        self.tables = reporter if isinstance(reporter, TrainReporter) else TrainReporter()
        self.fields = fields
        self.log = MetricsLog(out / METRICS, self.tables.metrics, measured_on(inputs))
        kept = KeptCheckpoints(inputs.recipe, out, inputs.folder.config.dtype or torch.float32, reporter)
        callbacks = [self.log, Screen(reporter), kept]
        callbacks += [FewPairs(reporter, inputs.store.path, len(inputs.store.words))] if inputs.store else []
        if isinstance(inputs.recipe.model, ExistingModel):
            self.trainer = build_existing(inputs, out, reporter, callbacks)
        else:
            self.trainer = build(inputs, out, reporter, callbacks)

    def finish(self) -> TrainRun:
        """Train from the newest checkpoint or from the start, evaluate, and save."""
        self.tables.data(counted_rows(self.inputs))
        model = cast("TrainedModel", self.trainer.model)
        self.tables.trainable(trainable(model, self.inputs.recipe))
        if self.trainer.is_world_process_zero():
            self._say_premise(model)
        checkpoint = self._checkpoint()
        with agreed():
            if self.trainer.is_world_process_zero():
                self.log.cut(checkpoints.step_of(checkpoint) if checkpoint else 0)
        if checkpoint is None:
            cast("torch.nn.Module", self.trainer.model).to(self.trainer.args.device)  # FSDP has not sharded it yet
            self._evaluate(0)
        else:
            told = checkpoints.exactness(checkpoint, self.trainer.args.world_size)
            self.reporter.message(f"going on from {checkpoint}{told}")
        self.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        state = self.trainer.state
        if state.global_step < state.max_steps:  # the trainer only warns, and a callback may have stopped it
            kept = checkpoints.kept(self.out / "checkpoints")
            at = f"stopped at step {state.global_step} of {state.max_steps}"
            raise UserError(f"{self.out}: {at}; run the same command again ({kept})")
        with agreed():
            if self.trainer.is_world_process_zero():
                refuse_untrained(self.log.lines(), self.out)
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        loss = self.inputs.recipe.loss
        if not model.with_lm and loss.sea.match_norm and not loss.sds.weight:
            match_norm(
                cast("AlignedLlava", model), cast("TrainingData", self.trainer.data), self.inputs.folder.vocabulary
            )
            if self.trainer.is_world_process_zero():
                self.log.forget_evaluation(self.trainer.state.global_step)
        self._evaluate(self.trainer.state.global_step)
        self._save(model)
        if self.trainer.args.should_save:
            self._summarise()
        self.trainer.accelerator.wait_for_everyone()
        return TrainRun(self.out, json.loads((self.out / SUMMARY).read_text("utf-8")))

    def _say_premise(self, model: TrainedModel) -> None:
        """Announce whether BASIC's premise holds on the LLM, if a term is made from its layers."""
        if (found := premise_of(model, self.inputs)) is not None:
            (self.reporter.message if found.near else self.reporter.warning)(found.text)

    def _save(self, model: TrainedModel) -> None:
        recipe, write = self.inputs.recipe, self.trainer.args.should_save
        with agreed():
            if write:
                run_folder.check_start(self.inputs.folder, self.fields, self.out)
        if isinstance(model, AlignedLlava):
            save_model(model, self.inputs.folder, self.out / "model", recipe, write=write)
        else:
            save_existing(model.vlm, self.inputs.folder, self.out / "model", lora=recipe.lora, write=write)

    def _checkpoint(self) -> Path | None:
        """Find the newest complete checkpoint, and remove incomplete ones.

        The first process looks, and all processes get its answer.

        Raises:
            UserError: there are checkpoints, but none is complete. All processes raise it.
        """
        folder = self.out / "checkpoints"
        found: list[Path | UserError | None] = [None]
        if self.trainer.is_world_process_zero():
            checkpoints.clear(folder)
            try:
                found = [checkpoints.latest(folder, self.reporter)]
            except UserError as problem:
                found = [problem]
        broadcast_object_list(found)
        if isinstance(found[0], UserError):
            raise found[0]
        return found[0]

    def _evaluate(self, step: int) -> None:
        """Measure the metrics at a step, unless they are logged already."""
        if (held_out := self.inputs.conversations.held_out) is None:
            return
        with agreed():
            logged = [self.trainer.is_world_process_zero() and self.log.keep_evaluation(step)]
        broadcast_object_list(logged)  # the first process's file decides for all
        if not logged[0]:
            with self.reporter.progress("evaluating", len(held_out)) as advance:
                self.trainer.evaluate(advance=advance)

    def _summarise(self) -> None:
        steps = self.trainer.state.global_step
        start, end = start_and_end(self.log.lines(), steps, self.out, self.reporter)
        written = {
            "name": self.inputs.recipe.name,
            "start": start,
            "end": end,
            "steps": steps,
            "seconds": round(self.log.seconds(), 1),
            "seed": self.inputs.recipe.seed,
            "fingerprint": fingerprint_of(self.fields),
            "labels": self.fields["labels"],
            "rows": counted_rows(self.inputs),
        }
        publish_bytes(self.out / SUMMARY, (json.dumps(written, indent=2) + "\n").encode(), self.out)


@taking_callbacks("told", made_by=reporter_of_told)
def train_stages(
    recipes: dict[str, Recipe], out: Path | None = None, *, resume: bool = False, reporter: Reporter = SILENT
) -> dict[str, TrainRun]:
    """Train each stage that is not finished, see `train`.

    Args:
        recipes: the result of `read_recipes`, in order.
        out: the folder; several stages each get a folder below it.
        resume: require that the first stage has begun, see `train`.
        reporter: receives messages and progress, and tables if it is a `TrainReporter`.

    Raises:
        UserError: see `train`.
    """
    todo = unfinished(recipes, out)
    first = next(iter(recipes))
    if resume:
        check_begun(recipes[first], out and out / first)
    if len(todo) > 1:
        _check_ahead(recipes, todo, out, reporter)
    runs: dict[str, TrainRun] = {}
    existing = isinstance(recipes[first].model, ExistingModel)
    for name, recipe in recipes.items():
        with of_stage(name):
            args = effective_arguments(recipe, out and out / name)
        if name and args.process_index == 0:
            if todo and not runs:
                say_unread_teacher(recipes.values(), reporter)
            reporter.message(f"stage {name}")
        if runs:
            recipe = _from_model(recipe, next(reversed(runs.values())).model, existing)
        with without_autocast():
            runs[name] = _train(recipe, out and out / name, resume and not runs, reporter, [*filter(None, recipes)])
    return runs


def _from_model(recipe: Recipe, model: Path, existing: bool) -> Recipe:
    return recipe.model_copy(update={"model": ExistingModel(attach=model) if existing else model})


def _check_ahead(recipes: dict[str, Recipe], todo: dict[str, Recipe], out: Path | None, reporter: Reporter) -> None:
    """Check what all unfinished stages, `todo`, read, before the first of them trains for hours.

    Each is opened with the model that the first one begins with, because training changes nothing but weights.
    """
    check_recipes(recipes, out)
    arguments = {}
    for name, recipe in todo.items():
        with of_stage(name), without_traces():
            arguments[name] = effective_arguments(recipe, out and out / name)
    beginning = list(recipes)[: list(recipes).index(next(iter(todo)))]
    first = next(iter(recipes.values()))
    existing = isinstance(first.model, ExistingModel)
    if beginning:
        assert out is not None
        model = out / beginning[-1] / "model"
    else:
        model = first.model.attach if isinstance(first.model, ExistingModel) else _model_path(first, reporter)
    ratio = None
    for name, recipe in todo.items():
        ratio = recipe.data.image_aspect_ratio or ratio  # a stage leaves its own to the next one
        data = recipe.data.model_copy(update={"image_aspect_ratio": ratio})
        with of_stage(name):
            stage = _from_model(recipe.model_copy(update={"data": data}), model, existing)
            begun_with = run_folder.begun_with_labels(out and out / name)
            inputs = _inputs(stage, reporter, first=is_first_process(), labels=False, begun_with=begun_with)
            check_inputs(inputs, arguments[name])
