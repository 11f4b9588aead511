"""`sea-pipeline teacher` as a function: a model folder and data in, a folder of BASIC's targets out."""

import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sea_pipeline.core.devices import resolve_device
from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import ProgressBar, no_bar
from sea_pipeline.execution.dispatch import StageRun, do_shards, driver_device, take_back
from sea_pipeline.execution.run_report import Report
from sea_pipeline.inputs.llava_json import grew_from
from sea_pipeline.inputs.pixels import DECODE_VERSION
from sea_pipeline.inputs.samples import BadSample, Listing
from sea_pipeline.inputs.sources import list_samples
from sea_pipeline.output.begin import begin
from sea_pipeline.output.folder import COMMITS
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.storage.hashing import file_sha256, fingerprint_of
from sea_pipeline.storage.leftovers import files_like
from sea_pipeline.storage.locks import alone
from sea_pipeline.storage.parquet import shard_footer
from sea_pipeline.storage.paths import Place, place
from sea_pipeline.storage.publish import publish_bytes
from sea_pipeline.storage.retry import StoreError
from trainer.data.dataset import TrainingData
from trainer.data.run_rows import Conversations, check_prompts, open_conversations
from trainer.losses.attention_tap import FAMILIES
from trainer.model.aspect_ratio import pads
from trainer.model.digests import processing_digests
from trainer.model.load import ModelFolder, load_model, open_model_folder
from trainer.model.terms import basic_term
from trainer.recipes.recipe import SAMPLES, Data, LearningRates, Loss, Recipe
from trainer.targets.codecs import Codec, CodecName, codec_sha256, fit_codec, load_codec, save_codec
from trainer.targets.store import CODEC, KIND, bytes_per_image
from trainer.teacher.checks import check_teacher
from trainer.teacher.settings import TeachSettings as TeachSettings
from trainer.teacher.stage import TEACH_VERSION, Teacher, TeachStage

_LARGE = 100e9
"""Bytes; more are asked about."""
_CALIBRATION = 64, 16_384
"""Images and vectors that the codec is fitted to, at most."""


def teach_images(
    settings: TeachSettings,
    *,
    say: Any = lambda line: None,  # noqa: ANN401 - a function of a line
    progress: ProgressBar = no_bar,
) -> StageRun:
    """Stores the targets of every image of the data, or what is missing of them.

    Two of these on one folder at once both end with the same folder.

    Raises:
        UserError: an input does not fit; the folder would be large and `yes` is not given.
    """
    check_teacher(settings)
    device, _ = driver_device(settings.crew, settings.device)
    folder = open_model_folder(settings.model, settings.image_aspect_ratio)
    recipe = _recipe(settings, folder)
    conversations = open_conversations(recipe.data, folder)
    check_prompts(conversations, folder, settings.basic, "--text")
    samples = settings.data == SAMPLES
    data, root = (None, None) if samples else (settings.data, conversations.image_root)
    listing = list_samples(data, root, settings.limit)
    fields = _fields(settings, recipe, folder, conversations)
    out = place(settings.out or _default_out(settings, listing, fields))
    _announce(settings, folder, len(listing.samples), out, say)
    # Records behind the others change nothing of an image that is there: its first sample counts.
    growing = {"data": lambda earlier: grew_from(conversations.file, earlier)}
    ledger = begin(out, KIND, fields, listing, settings.shard_size, {}, extend=settings.extend, growing=growing)
    take_back(settings, ledger, progress, say)
    if ledger.complete:
        return StageRun(ledger, listing, Report(), device)
    stage = _stage(settings, recipe, folder, conversations, ledger, device) if settings.crew.alone else None
    done = ledger.done()
    with progress("teaching", ledger.dataset.images, done.images + done.bad) as advance:
        report, device, backend = do_shards(settings, ledger, stage, TeachRecipe(settings), advance, say)
    return StageRun(ledger, listing, report, device, backend)


@dataclass(frozen=True)
class TeachRecipe:
    """How a worker makes its `TeachStage`; see `workers.Recipe`."""

    settings: TeachSettings
    name: str = "teach"

    def stage(self, ledger: Ledger) -> TeachStage:
        """Loads the model and the data; the first worker fits the folder's codec."""
        from sea_pipeline.execution.worker import refuse_other_fields

        folder = open_model_folder(self.settings.model, self.settings.image_aspect_ratio)
        recipe = _recipe(self.settings, folder)
        conversations = open_conversations(recipe.data, folder)
        refuse_other_fields(ledger, _fields(self.settings, recipe, folder, conversations))
        return _stage(self.settings, recipe, folder, conversations, ledger, resolve_device(self.settings.device))


def _recipe(settings: TeachSettings, folder: ModelFolder) -> Recipe:
    """Nothing trains; the weights of the terms do not matter here."""
    llm = folder.config.text_config
    layers = settings.basic.layers or max(1, llm.num_hidden_layers // 2)
    if layers > llm.num_hidden_layers:
        raise UserError(f"--layers {layers}: the LLM has {llm.num_hidden_layers} layers; give so many or less")
    if settings.basic.degree == "auto" and llm.model_type not in FAMILIES:
        raise UserError(
            f"--degree auto: the attention of an LLM of the model type {llm.model_type!r} cannot be read; expected one "
            f"of {', '.join(FAMILIES)}; give --degree equal"
        )
    if settings.basic.lens != "none":
        raise UserError(
            "basic.lens: is for supervision that is computed in training; expected none for a teacher's targets"
        )
    if settings.basic.outliers:
        raise UserError("basic.outliers: depends on the batch that an image is in; expected 0 for a teacher's targets")
    return Recipe(
        model=settings.model,
        data=Data(
            train=settings.data, image_root=settings.image_root, template=settings.template,
            max_length=settings.max_length, image_aspect_ratio=settings.image_aspect_ratio, bad_rows=settings.bad_rows,
        ),
        loss=Loss(basic=settings.basic.model_copy(update={"layers": layers})),
        learning_rates=LearningRates(projector=None),
        frozen_dtype=settings.dtype,
    )  # fmt: skip


def _fields(
    settings: TeachSettings, recipe: Recipe, folder: ModelFolder, conversations: Conversations
) -> dict[str, Any]:
    """Everything that decides the targets, by name."""
    weights = {path.name: file_sha256(path) for path in files_like(folder.path, "*.safetensors")}
    bars = {"image_aspect_ratio": "pad"} if pads(folder.processor.image_processor) else {}
    bad = conversations.bad
    without = {"left_out": [len(bad.rows), bad.sha256()]} if bad.rows else {}
    return (
        bars
        | without
        | {
            "teach_version": TEACH_VERSION,
            "decode_version": DECODE_VERSION,
            "codec": settings.codec,
            "grid": list(folder.grid),
            "width": int(folder.config.text_config.hidden_size),
            "basic": recipe.loss.basic.model_dump(mode="json", exclude={"lens"}),
            "template": settings.template,
            "max_length": settings.max_length,
            "dtype": settings.dtype,
            "model": {"config": file_sha256(folder.path / "config.json"), "weights": weights},
            "processing": processing_digests(folder.path),
            "data": file_sha256(conversations.file),
        }
    )


def _default_out(settings: TeachSettings, listing: Listing, fields: dict[str, Any]) -> Path:
    origin = {"source": listing.origin, "image_root": listing.root, "shard_size": settings.shard_size}
    parts = [listing.name, settings.model.resolve().name, settings.codec]
    parts += [f"first{settings.limit}"] if settings.limit else []
    name = "-".join([*parts, fingerprint_of(fields | origin)[:8]])
    return Path("runs") / "targets" / re.sub(r"[^\w.-]+", "_", name)


def _announce(settings: TeachSettings, folder: ModelFolder, images: int, out: Place, say: Any) -> None:  # noqa: ANN401
    width = int(folder.config.text_config.hidden_size)
    size = bytes_per_image(folder.grid[0] * folder.grid[1], settings.codec, width) * images
    say(f"targets go to {out}: {images:,} images, about {size / 1e9:,.2f} GB as {settings.codec}")
    if size > _LARGE and not settings.yes:
        raise UserError(
            f"{out}: would take {size / 1e9:,.0f} GB; in training the same targets cost next to nothing; give "
            "--yes to write it, or another --codec, or --limit"
        )


def _stage(
    settings: TeachSettings,
    recipe: Recipe,
    folder: ModelFolder,
    conversations: Conversations,
    ledger: Ledger,
    device: str,
) -> TeachStage:
    model = load_model(folder, recipe, layers=recipe.loss.basic.layers)
    model.to(torch.device(device)).eval()  # type: ignore[arg-type]
    term = basic_term(model, folder, recipe, ("das", "sds"))
    data = TrainingData(conversations.train, conversations.locate, folder.processor, folder.grid)
    teacher = Teacher(model, term, data, settings.batch_size)
    return TeachStage(teacher, _codec(ledger, settings.codec, teacher), conversations.locate, settings.codec)


def _codec(ledger: Ledger, name: CodecName, teacher: Teacher) -> Codec:
    """The folder's codec; fitted to some of its images and written before the first shard, or again if it is lost."""
    path = ledger.root / CODEC
    with alone(ledger.root):  # of several processes that fit at once, the first one's codes would be another's
        problem = _codec_problem(ledger, path)
        if problem is None:
            return load_codec(path)
        images, vectors = (1, 1) if name == "float16" else _CALIBRATION
        begun_with = range(ledger.plan.files[0].end)  # images that were added later change no codec
        samples = [sample for shard in begun_with for sample in ledger.samples(shard)]
        chosen = samples[:: max(1, len(samples) // images)][:images]
        ignored: list[BadSample] = []
        found = [targets.refined for _, targets in teacher(chosen, ignored)]
        if not found:
            raise UserError(f"{ledger.root}: none of {len(chosen)} images could be read: {ignored[0].message}")
        every = np.concatenate(found)
        fitted = fit_codec(name, every[:: max(1, len(every) // vectors)])
        if not _wrote_shards(ledger, fitted, unless_known=False):
            raise UserError(
                f"{problem}; the one that is fitted now is another than finished shards were written with; restore it, "
                f"or remove {ledger.root / COMMITS} and run the same command again, which teaches every image again"
            )
        with suppress(FileExistsError):  # of a store without locks
            is_link = isinstance(path, Path) and path.is_symlink()  # which may lead nowhere
            publish_bytes(path, save_codec(fitted), ledger.root, exclusive=not (path.exists() or is_link))
    return load_codec(path)


def _codec_problem(ledger: Ledger, path: Place) -> str | None:
    """Why the codec that lies there, if any, cannot be that of the finished shards; None if it can."""
    try:
        fits = _wrote_shards(ledger, load_codec(path), unless_known=True)
    except StoreError:
        raise
    except UserError as problem:
        return str(problem)
    return None if fits else f"{path}: expected the codec of the finished shards; found another"


def _wrote_shards(ledger: Ledger, codec: Codec, *, unless_known: bool) -> bool:
    """Whether finished shards, if there are any, were written with a codec; `unless_known` where none of them says."""
    commits = list(ledger.commits())
    for commit in commits:
        with ledger.reading(commit.files[0]):
            said = shard_footer(ledger.shard_path(commit.shard)).get("codec_sha256")
        if said is not None:
            return bool(said == codec_sha256(codec))
    manifest = ledger.read_manifest()  # shards of older versions do not say
    saved = hashlib.sha256(save_codec(codec)).hexdigest()
    records = [] if manifest is None else [file.sha256 == saved for file in manifest.other_files if file.path == CODEC]
    return not commits or (records[0] if records else unless_known)
