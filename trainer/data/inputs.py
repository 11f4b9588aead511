"""Open a run's inputs, which are labels that fit its conversations and a teacher's targets."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT, Reporter
from sea_pipeline.encoders.spec import EncoderSpec
from sea_pipeline.execution.dispatch import StageRun
from sea_pipeline.inputs.llava_json import shown
from sea_pipeline.inputs.wordlists import WordList, load_wordlist
from sea_pipeline.label_cache import label_cache
from sea_pipeline.labels.run import LabelSettings, label_images
from sea_pipeline.labels.store import LabelStore, open_labels
from sea_pipeline.output.row_store import RowStore
from sea_pipeline.storage.hashing import file_sha256
from trainer.data.bad_rows import image_names, rows_with
from trainer.data.dataset import TrainingLabels
from trainer.data.files import LABELS as LABELS
from trainer.data.run_rows import Conversations, without_bad
from trainer.data.same_teacher import refuse_another_teacher
from trainer.model.aspect_ratio import pads
from trainer.model.load import ModelFolder
from trainer.recipes.recipe import SAMPLES, Data, LabelSource, Recipe, Sea
from trainer.targets.store import TargetStore, open_targets
from trainer.words import word_tokens

_COMPARED = 32
"""At most so many photos are compared with the labelled ones."""
_MOST_BY_CHANCE = 0.1
"""A label_hit above this that chance alone gives is warned of; 2of12 gives 0.0002."""

Folder = TypeVar("Folder")


def open_label_source(
    recipe: Recipe,
    folder: ModelFolder,
    conversations: Conversations,
    *,
    make: Callable[[LabelSettings], StageRun] | None = label_images,
    begun_with: str | None = None,
    reporter: Reporter = SILENT,
) -> LabelStore | None:
    """Open the labels of a run, or make them.

    Takes the folder that the recipe names, else the newest one that fits, else makes new labels if L_a has a weight.
    Labels with the fingerprint `begun_with` come before newer ones: a run that goes on keeps its own. Returns None if
    nothing fits and L_a has no weight, or `make` is None.

    Raises:
        UserError: the named folder is no label folder, shares no image with the data or has too few crops; or see
            `label_images`.
    """
    labels = recipe.labels
    wanted = conversations.image_ids
    if labels.path is not None:
        store = open_labels(labels.path, reporter=reporter)
        _refuse_foreign(store, wanted, conversations)
        if _crops(store) < labels.crops:
            raise UserError(
                f"{labels.path}: expected {labels.crops} labelled crops of each image, found {_crops(store)}; "
                f"label with --crops {labels.crops}, or set labels.crops to {_crops(store)}"
            )
        return store
    if (newest := _newest(folder, conversations, labels, begun_with, reporter)) is not None:
        return newest
    if not recipe.loss.sea.weight:
        return None
    if pads(folder.processor.image_processor) and not labels.transfer:
        raise UserError(
            f"labels.transfer: {folder.path} pads images to a square, and the labels to be made are of the image "
            "itself; set it to true"
        )
    return None if make is None else _made(recipe, conversations, make, reporter)


def _refuse_foreign(store: LabelStore, wanted: set[str], conversations: Conversations) -> None:
    if wanted and not any(image in store for image in wanted):
        raise UserError(
            f"{store.path}: holds none of the {len(wanted):,} images of {conversations.file}; {_ids(store, wanted)}"
        )


def _ids(store: LabelStore, names: Iterable[str]) -> str:
    """Say what image ids are, with an example that the labels lack."""
    lacking = min(name for name in names if name not in store)
    return f"image ids are what the data calls an image, such as {lacking!r}; found {store.ids[:1]}"


def warn_of_other_photos(store: RowStore, conversations: Conversations, reporter: Reporter) -> None:
    """Warn of labels or targets that were made of other photos with the same names."""
    compared = _compared(store, conversations)
    if others := [name for name, is_same in compared.items() if not is_same]:
        reporter.warning(
            f"{store.path}: made of other files than {conversations.file} names, by {len(others)} of the "
            f"{len(compared)} photos that were compared (such as {others[0]!r}); make it again in another --out, "
            "unless they show the same in another form"
        )


def _compared(store: RowStore, conversations: Conversations) -> dict[str, bool]:
    """Tell of some images, spread over the names, whether their files are those that a store was made of."""
    names = sorted(name for name in conversations.image_ids if name in store)
    found = {}
    for name in names[:: -(-len(names) // _COMPARED) or 1]:
        with suppress(OSError):  # whoever reads the images says so
            found[name] = file_sha256(conversations.locate(name)) == store.image_sha256(name).hex()
    return found


def check_measured_labels(store: LabelStore, conversations: Conversations, reporter: Reporter) -> None:
    """Refuse labels that hold no image that is to be measured, and warn of those of only some or of other photos.

    Raises:
        UserError: they hold none.
    """
    wanted = conversations.image_ids
    _refuse_foreign(store, wanted, conversations)
    held = sum(image in store for image in wanted)
    if held < len(wanted):
        reporter.warning(
            f"{store.path}: holds {held:,} of the {len(wanted):,} images of {conversations.file}; label_hit and "
            f"meaningful are measured on them alone; {_ids(store, wanted)}"
        )
    warn_of_other_photos(store, conversations, reporter)
    warn_of_few_words(store, reporter)


def warn_of_few_words(store: LabelStore, reporter: Reporter) -> None:
    """Warn that chance alone gives a high label_hit, if a patch's labels are many of the list's words."""
    labels, words = min(store.manifest["fields"]["top_n"], 10), len(store.words)
    if labels > _MOST_BY_CHANCE * words:
        reporter.warning(
            f"label_hit@10: a patch has {labels} of the list's {words} words as labels, so a blind model has "
            f"{labels / words:.2f} by chance, or more; a list of more words lowers that"
        )


def _made(
    recipe: Recipe, conversations: Conversations, make: Callable[[LabelSettings], StageRun], reporter: Reporter
) -> LabelStore:
    """Make the labels of a run."""
    labels, samples = recipe.labels, recipe.data.train == SAMPLES
    made = make(
        LabelSettings.of(
            images=None if samples else recipe.data.train,
            image_root=None if samples else conversations.image_root,
            wordlist=labels.wordlist,
            encoder=labels.encoder,
            top_n=labels.top_n,
            crops=labels.crops,
        )
    )
    return open_labels(made.ledger.root, reporter=reporter)


def say_unread_teacher(stages: Collection[Recipe], reporter: Reporter) -> None:
    """Warn of a teacher that no stage reads, because none has a term of BASIC."""
    if any(stage.teacher for stage in stages) and not any(stage.loss.basic_terms() for stage in stages):
        reporter.warning(
            "teacher: is not read, because loss.das.weight and loss.sds.weight are 0; give one of them a weight, or "
            "set teacher to null"
        )


def say_unused_keys(labels: LabelSource, reporter: Reporter) -> None:
    """Say which keys of `labels` change nothing, because a folder is named."""
    unused = labels.model_dump(include={"wordlist", "encoder", "top_n"}, exclude_defaults=True)
    if labels.path is not None and unused:
        keys = " and ".join(f"labels.{key}" for key in unused)
        reporter.message(f"labels.path: names the folder of labels, so that {keys} are not used")


def say_what_labels_lack(
    recipe: Recipe, conversations: Conversations, store: LabelStore | None, reporter: Reporter
) -> None:
    """Say that a run has no labels to measure with, or labels of few of its images."""
    held_out = image_names(conversations.held_out) if conversations.held_out is not None else set()
    if store is None:
        if held_out:
            reporter.message(
                f"no labels are measured (label_hit, gap): no folder below {LABELS} holds all "
                f"{len(conversations.image_ids):,} images of {conversations.file}; labels.path names one that holds "
                "some of them"
            )
        return
    if held_out:
        warn_of_few_words(store, reporter)
    for names, what, effect in (
        (conversations.image_ids, "trained on", "SEA skips the others" if recipe.loss.sea.weight else None),
        (held_out, "held out", "label_hit is measured on them alone"),
    ):
        held = sum(name in store for name in names)
        if names and effect is not None and 2 * held < len(names):
            reporter.warning(
                f"{store.path}: holds {held:,} of the {len(names):,} images {what}; {effect}; {_ids(store, names)}"
            )


def _crops(store: LabelStore) -> int:
    number: int = store.manifest["fields"].get("crops", {}).get("per_image", 0)
    return number


def _openable(manifests: Iterable[Path]) -> Iterator[LabelStore]:
    for manifest in manifests:
        with suppress(UserError):
            yield open_labels(manifest.parent, verify=False)


def _newest(
    folder: ModelFolder, conversations: Conversations, labels: LabelSource, begun_with: str | None, reporter: Reporter
) -> LabelStore | None:
    manifests = sorted(LABELS.glob("*/manifest.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    words = load_wordlist(labels.wordlist) if manifests and "wordlist" in labels.model_fields_set else None
    stores: Iterable[LabelStore] = _openable(manifests)
    if begun_with is not None:
        stores = sorted(stores, key=lambda store: store.fingerprint != begun_with)
    for store in stores:
        padded = pads(folder.processor.image_processor)  # a recipe must name labels of padded images
        fits = labels.transfer or (tuple(store.grid) == tuple(folder.grid) and not padded)
        fits = fits and _crops(store) >= labels.crops and _as_named(store, labels, words)
        fits = fits and _holds(store, conversations.image_ids)
        if fits and (store.fingerprint == begun_with or _is_of(store, conversations)):
            return open_labels(store.path, reporter=reporter)
    return None


def _is_of(store: LabelStore, conversations: Conversations) -> bool:
    """Tell whether a store is of these photos, a few of which may have been replaced, and not of others so named."""
    same = _compared(store, conversations).values()
    return 2 * sum(same) >= len(same)


def _holds(store: LabelStore, wanted: set[str]) -> bool:
    """Tell whether each image has a row or is known to be bad, which takes reading the ids."""
    if len(store) + store.manifest["bad"] < len(wanted):
        return False
    lacking = wanted.difference(store.ids)
    return not lacking or lacking <= {bad["image_id"] for bad in store.quarantine()}


def _as_named(store: LabelStore, labels: LabelSource, words: WordList | None) -> bool:
    """Tell whether word list, encoder and n are those that the recipe names.

    What the recipe leaves to its default may have any value.
    """
    named = labels.model_fields_set
    if "top_n" in named and store.top_n != labels.top_n:
        return False
    if "encoder" in named:
        asked = EncoderSpec.parse(labels.encoder)
        default = () if asked.path else (str(asked.at("final")), str(asked.at("pool")))  # whichever the model has
        if store.encoder not in (str(asked), *default):
            return False
    return words is None or bool(store.manifest["fields"]["wordlist"]["sha256"] == words.sha256)


def labels_for(
    store: LabelStore, folder: ModelFolder, sea: Sea, *, transfer: bool, reporter: Reporter = SILENT
) -> TrainingLabels:
    """Make the `TrainingLabels` that a run's words are drawn from."""
    keys = None
    if sea.dedupe == "tokens":
        spelled = word_tokens(folder.processor.tokenizer, store.words, sea.word_prefix)
        sequences = [tuple(tuple(form[word]) for form in spelled) for word in range(len(store.words))]
        numbers = {sequence: number for number, sequence in enumerate(dict.fromkeys(sequences))}
        keys = np.array([numbers[sequence] for sequence in sequences])
    return TrainingLabels(label_cache(store, reporter=reporter), sea, transfer, keys)


def open_teacher(recipe: Recipe, folder: ModelFolder, conversations: Conversations) -> TargetStore | None:
    """Open the teacher's targets that a recipe names, if a loss term needs them.

    Raises:
        UserError: the folder holds no targets, has another grid, width, aspect ratio, image processing, LLM or setting
            of the supervision, or lacks an image of the data whose rows are not to be left out.
    """
    if recipe.teacher is None or not recipe.loss.basic_terms():
        return None
    store = open_targets(recipe.teacher, verify=False)  # too large; damage is found on reading
    wanted, found = (*folder.grid, folder.config.text_config.hidden_size), (*store.grid, store.width)
    if wanted != found:
        raise UserError(
            f"{recipe.teacher}: expected targets of {wanted[0]} x {wanted[1]} visual tokens of width {wanted[2]}, as "
            f"{folder.path} has; found {found[0]} x {found[1]} of width {found[2]}; run sea-pipeline teacher with a "
            "model of the same parts"
        )
    ratio = "pad" if pads(folder.processor.image_processor) else "square"
    if (seen := store.manifest["fields"].get("image_aspect_ratio", "square")) != ratio:
        raise UserError(
            f"{recipe.teacher}: expected targets of images as the stage sees them, data.image_aspect_ratio: {ratio}; "
            f"found {seen}; run sea-pipeline teacher with --image-aspect-ratio {ratio}, or set the key to {seen}"
        )
    refuse_another_teacher(store, folder)
    asked, made = recipe.loss.basic, store.manifest["fields"]["basic"]
    for name in sorted(asked.model_fields_set - {"lens"}):  # a recipe with a teacher cannot have a lens
        value = getattr(asked, name)
        if value not in (None, made[name]) and (name, value) != ("degree", "equal"):  # fits any targets
            raise UserError(
                f"loss.basic.{name}: {value!r}, but the targets of {recipe.teacher} were made with {made[name]!r}; "
                "leave it out, or run sea-pipeline teacher with it"
            )
    if recipe.data.bad_rows == "stop":
        _refuse_untaught(store, conversations)
    return store


def _refuse_untaught(store: TargetStore, conversations: Conversations) -> None:
    missing = _untaught(store, conversations)
    lacks = f"{store.path}: lacks {len(missing):,} images of {conversations.file}, such as"
    for image, reason in missing.items():
        if reason is None:
            raise UserError(
                f"{lacks} {image!r}; run sea-pipeline teacher on that file, or leave their rows out with "
                "data.bad_rows: leave_out"
            )
    for image, reason in missing.items():
        raise UserError(
            f"{lacks} {image!r}, of which its quarantine says: {reason}; mend that and run sea-pipeline teacher with "
            "another --out, or leave their rows out with data.bad_rows: leave_out"
        )


def _untaught(store: TargetStore, conversations: Conversations) -> dict[str, str | None]:
    """Find the images to train on that have no targets, with what the quarantine says of each, if anything."""
    missing = sorted(image for image in conversations.image_ids if image not in store)
    reasons = {bad["image_id"]: bad["message"] for bad in store.quarantine()} if missing else {}
    return {image: reasons.get(image) for image in missing}


def without_untaught(conversations: Conversations, data: Data, store: TargetStore | None) -> Conversations:
    """Drop the rows to train on that show an image without a teacher's targets.

    Raises:
        UserError: no other rows are left.
    """
    if store is None or not (missing := _untaught(store, conversations)):
        return conversations
    problems = {
        image: f"expected images with a teacher's targets; found {shown(image)} without any in {store.path}: "
        + (reason or "it was not among those that were taught")
        for image, reason in missing.items()
    }
    return without_bad(conversations, data, lambda rows: rows_with(rows, problems), lambda _: [])


@dataclass(frozen=True)
class Inputs(Generic[Folder]):
    """All inputs that a run reads, with the folder of a LLaVA or of an existing model."""

    recipe: Recipe
    folder: Folder
    conversations: Conversations
    store: LabelStore | None
    targets: TargetStore | None = None
