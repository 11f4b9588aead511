"""Make a folder of BASIC's targets from a model folder and data (`sea-pipeline teacher` as a function)."""

import hashlib
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT, Reporter
from sea_pipeline.core.renamed import taking_callbacks
from sea_pipeline.execution.dispatch import StageRun
from sea_pipeline.execution.shard import LastAttempt
from sea_pipeline.execution.sharded_job import ShardedJob, run_job
from sea_pipeline.inputs.llava_json import grew_from
from sea_pipeline.inputs.pixels import DECODE_VERSION
from sea_pipeline.inputs.samples import BadSample, Listing
from sea_pipeline.inputs.sources import list_samples, open_source
from sea_pipeline.output.begin import Growing
from sea_pipeline.output.folder import COMMITS
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.storage.hashing import file_sha256
from sea_pipeline.storage.locks import locked
from sea_pipeline.storage.parquet import shard_footer
from sea_pipeline.storage.paths import Place
from sea_pipeline.storage.publish import publish_bytes
from sea_pipeline.storage.retry import StoreError
from trainer.data.dataset import TrainingData
from trainer.data.run_rows import Conversations, check_prompts, open_conversations
from trainer.data.same_teacher import teacher_samples
from trainer.losses.attention_tap import FAMILIES
from trainer.model.aspect_ratio import pads
from trainer.model.digests import processing_digests
from trainer.model.load import ModelFolder, load_model, open_model_folder
from trainer.model.terms import basic_term
from trainer.model.weight_files import weight_files
from trainer.recipes.recipe import SAMPLES, Data, LearningRates, Loss, Recipe
from trainer.targets.codecs import Codec, CodecName, codec_sha256, fit_codec, load_codec, save_codec
from trainer.targets.store import CODEC, KIND, bytes_per_image
from trainer.teacher.checks import check_teacher
from trainer.teacher.settings import TeachSettings as TeachSettings
from trainer.teacher.stage import TEACH_VERSION, Teacher, TeachStage

_LARGE = 100e9
"""Bytes. A larger folder needs --yes."""
_CALIBRATION = 64, 16_384
"""The most images and vectors that the codec is fitted to."""


@taking_callbacks("say", "progress")
def teach_images(settings: TeachSettings, reporter: Reporter = SILENT) -> StageRun:
    """Store the targets of all images of the data that are not stored yet.

    Two processes on one folder end with the same folder.

    Raises:
        UserError: an input does not fit; the folder would take more than 100 GB and `yes` is not given; or see
            `run_job`.
    """
    return run_job(TeachJob(settings), reporter)


class TeachJob(ShardedJob[TeachSettings]):
    """Run the command `teacher` as a sharded job."""

    name, doing, kind = "teach", "teaching", KIND

    def check(self) -> None:
        """Refuse wrong settings before anything is loaded.

        See `check_teacher`.
        """
        check_teacher(self.settings)

    def open(self, ledger: Ledger | None) -> None:
        """Open the model folder and the data."""
        self.folder = open_model_folder(self.settings.model, self.settings.image_aspect_ratio)
        self.recipe = _recipe(self.settings, self.folder)
        self.conversations = open_conversations(self.recipe.data, self.folder, reporter=self.reporter)
        if ledger is None:
            check_prompts(self.conversations, self.folder, self.settings.basic, "--text")

    def settings_for_workers(self) -> TeachSettings:
        """Return the settings with the model's folder and the data by their absolute paths."""
        asked = self.settings
        data = asked.data if asked.data == SAMPLES else str(Path(asked.data).absolute())
        root = asked.image_root and asked.image_root.absolute()
        return asked.model_copy(update={"model": asked.model.absolute(), "data": data, "image_root": root})

    def listing(self) -> Listing:
        """List the images of the data, or the sample photos."""
        asked, samples = self.settings, self.settings.data == SAMPLES
        data, root = (None, None) if samples else (asked.data, self.conversations.image_root)
        return list_samples(data, root, asked.limit)

    def fields(self) -> dict[str, Any]:
        """Return everything that decides the targets."""
        return _fields(self.settings, self.recipe, self.folder, self.conversations)

    def name_parts(self, listing: Listing) -> list[str]:
        """Name the data, the model and the codec."""
        return [listing.name, self.settings.model.resolve().name, self.settings.codec]

    def check_folder(self, out: Place, listing: Listing, reporter: Reporter) -> None:
        """Announce the size of the folder, and refuse a very large one without `yes`."""
        asked, width = self.settings, int(self.folder.config.text_config.hidden_size)
        images = len(listing.samples)
        size = bytes_per_image(self.folder.grid[0] * self.folder.grid[1], asked.codec, width) * images
        reporter.message(f"the targets go to {out}: {images:,} images, about {size / 1e9:,.2f} GB as {asked.codec}")
        if size > _LARGE and not asked.yes:
            raise UserError(
                f"{out}: would take {size / 1e9:,.0f} GB; in training the same targets cost next to nothing; give "
                "--yes to write it, or another --codec, or --limit"
            )

    def growing(self) -> Growing:
        """Return the fields that may grow, which is the data.

        Records added at the end change nothing of an image that is already stored, see `TeachSettings`.
        """
        return {"data": lambda earlier: grew_from(self.conversations.file, earlier)}

    def make_stage(self, ledger: Ledger) -> TeachStage:
        """Load the model, and fit the folder's codec if this process is the first."""
        model = load_model(self.folder, self.recipe, layers=self.recipe.loss.basic.layers)
        model.to(torch.device(self.device)).eval()  # type: ignore[arg-type]
        term = basic_term(model, self.folder, self.recipe, ("das", "sds"))
        locate, codec = self.conversations.locate, self.settings.codec
        data = TrainingData(self.conversations.train, locate, self.folder)
        teacher, root = Teacher(model, term, data, self.settings.batch_size), self.conversations.image_root
        teacher.read_from(LastAttempt(open_source(ledger.image_root), _CALIBRATION[0]), root)
        return TeachStage(teacher, _codec(ledger, codec, teacher), root, codec, teacher_samples(self.folder))


def _recipe(settings: TeachSettings, folder: ModelFolder) -> Recipe:
    """Make a recipe for reading the model and the data.

    Nothing is trained, so the weights of the loss terms do not matter.
    """
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
    """Return everything that decides the targets, by name."""
    weights = {path.name: file_sha256(path) for path in weight_files(folder.path)}
    bars = {"image_aspect_ratio": "pad"} if pads(folder.processor.image_processor) else {}
    return (
        bars
        | conversations.bad.fields()
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


def _codec(ledger: Ledger, name: CodecName, teacher: Teacher) -> Codec:
    """Load the folder's codec, or fit and write it.

    It is fitted to some of the folder's images before the first shard, and again if the file is lost.
    """
    path = ledger.root / CODEC
    with locked(ledger.root):  # two processes that fit at once would get two codecs, and write shards with both
        problem = _codec_problem(ledger, path)
        if problem is None:
            return load_codec(path)
        images, vectors = (1, 1) if name == "float16" else _CALIBRATION
        begun_with = range(ledger.plan.files[0].end)  # images that were added later do not change the codec
        samples = [sample for shard in begun_with for sample in ledger.samples(shard)]
        chosen = samples[:: max(1, len(samples) // _CALIBRATION[0])][: _CALIBRATION[0]]
        ignored: list[BadSample] = []
        found = [targets.refined for _, targets in islice(teacher(chosen, ignored), images)]
        if not found:
            raise UserError(f"{ledger.root}: none of {len(chosen)} images could be read: {ignored[0].message}")
        every = np.concatenate(found)
        fitted = fit_codec(name, every[:: max(1, len(every) // vectors)])
        if not _wrote_shards(ledger, fitted, unless_known=False):
            raise UserError(
                f"{problem}; the one that is fitted now is another than finished shards were written with; restore it, "
                f"or remove {ledger.root / COMMITS} and run the same command again, which teaches every image again"
            )
        with suppress(FileExistsError):  # the store may have no locks, and another process was faster
            is_link = isinstance(path, Path) and path.is_symlink()  # a broken one does not exist, yet blocks
            publish_bytes(path, save_codec(fitted), ledger.root, exclusive=not (path.exists() or is_link))
    return load_codec(path)


def _codec_problem(ledger: Ledger, path: Place) -> str | None:
    """Tell why the stored codec is missing or cannot be that of the finished shards.

    Returns None if nothing is wrong with it.
    """
    try:
        fits = _wrote_shards(ledger, load_codec(path), unless_known=True)
    except StoreError:
        raise
    except UserError as problem:
        return str(problem)
    return None if fits else f"{path}: expected the codec of the finished shards; found another"


def _wrote_shards(ledger: Ledger, codec: Codec, *, unless_known: bool) -> bool:
    """Tell whether the finished shards were written with a codec.

    True if there are none; `unless_known` if neither a shard nor the manifest says.
    """
    commits = list(ledger.commits())
    for commit in commits:
        with ledger.reading(commit.files[0]):
            said = shard_footer(ledger.shard_path(commit.shard)).get("codec_sha256")
        if said is not None:
            return bool(said == codec_sha256(codec))
    manifest = ledger.read_manifest()  # shards of older versions do not name their codec
    saved = hashlib.sha256(save_codec(codec)).hexdigest()
    records = [] if manifest is None else [file.sha256 == saved for file in manifest.other_files if file.path == CODEC]
    return not commits or (records[0] if records else unless_known)
