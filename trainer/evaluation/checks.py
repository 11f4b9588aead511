"""Check the settings of `evaluate` without torch, whose import takes seconds."""

from pathlib import Path

from sea_pipeline.core.device_names import check_device_name
from sea_pipeline.core.errors import UserError
from sea_pipeline.output.folder import check_is_ours
from sea_pipeline.storage.paths import Place, place
from sea_pipeline.storage.results import ResultKind, check_result
from trainer.data.files import check_conversations, conversations_file
from trainer.evaluation.question_file import check_photos, read_questions
from trainer.evaluation.settings import NEW_TOKENS, EvaluateSettings
from trainer.model.existing_folder import check_existing_folder, is_existing, model_type
from trainer.model.llava_folder import check_llava_folder
from trainer.model.run_record import read_run
from trainer.recipes.recipe import Data

RESULT = ResultKind("--out", b'\n "model": ')
"""The file of --layers and --replace, by its first key."""


def check_evaluate(settings: EvaluateSettings) -> Data | None:
    """Check the settings of `evaluate`.

    Returns the conversations that the lens is made from, or None without a lens.

    Raises:
        UserError: a file or a folder does not exist or cannot be written, the device does not exist, or options
            contradict each other.
    """
    if settings.out is not None:
        if not (settings.layers or settings.replace):
            raise UserError(
                f"--out {settings.out}: holds what --layers and --replace find; give one of them, or leave --out out"
            )
        check_result(settings.out, RESULT, _reads(settings))
    if settings.save_figures is not None and settings.labels is None and not settings.layers:
        raise UserError("--save-figures: draws words with --labels and tokens with --layers; give one of them, or both")
    if settings.save_figures is not None and settings.save_figures.exists() and not settings.save_figures.is_dir():
        raise UserError(
            f"--save-figures {settings.save_figures}: expected a folder to write to; found a file; name another"
        )
    _check_used(settings)
    captions = _captions(settings)
    check_device_name(settings.device)
    if is_existing(settings.model):
        _check_existing(settings)
    else:
        check_llava_folder(settings.model)
    if settings.labels is not None:
        check_is_ours(settings.labels)
    check_conversations(settings.data, settings.image_root)
    if settings.questions is not None:
        _check_questions(settings, settings.questions)
    return captions


def _check_used(settings: EvaluateSettings) -> None:
    """Refuse options that would change nothing, because what they belong to is not asked for."""
    of_images = settings.layers or settings.replace or settings.lens is not None or settings.save_figures is not None
    analyses = "--layers, --lens, --replace or --save-figures"
    belongs = (
        ("--transfer", settings.transfer, settings.labels is not None, "--labels"),
        ("--question-root", settings.question_root is not None, settings.questions is not None, "--questions"),
        ("--new-tokens", settings.new_tokens != NEW_TOKENS, settings.replace, "--replace"),
        ("--limit-images", settings.limit_images is not None, of_images, analyses),
    )
    for name, given, used, other in belongs:
        if given and not used:
            raise UserError(f"{name}: goes with {other}; give that, or leave {name} out")


def _reads(settings: EvaluateSettings) -> list[Place]:
    """List the files and folders that an evaluation reads, without the photos."""
    given = (settings.model, settings.labels, settings.questions)
    files = [conversations_file(each) for each in (settings.data, settings.lens_data) if each is not None]
    return [*(place(each) for each in given if each is not None), *files]


def _check_questions(settings: EvaluateSettings, path: Path) -> None:
    if settings.template == "plain":
        raise UserError(
            f"--questions {path}: cannot be asked with the template plain, which leaves out what people say; take "
            "--template own or vicuna_v1"
        )
    check_photos(path, read_questions(path).asked, settings.question_root or settings.image_root or path.parent)


def _check_existing(settings: EvaluateSettings) -> None:
    """Refuse what cannot be done with a model of another family than ours."""
    check_existing_folder(settings.model)
    kind = model_type(settings.model)
    refused = {
        "--layers": settings.layers,
        "--replace": settings.replace,
        "--lens": settings.lens is not None,
        "--save-figures": settings.save_figures is not None,
        "--template": settings.template not in (None, "own"),
    }
    if found := [name for name, given in refused.items() if given]:
        said, advice = f"is a {kind}", f"leave {'it' if len(found) == 1 else 'them'} out"
        if kind == "llava":
            said += " that its run trained as an existing model"
            advice += ", or copy the folder out of its run, where it is read as one of sea-pipeline init"
        raise UserError(
            f"{' and '.join(found)}: for a model that sea-pipeline init makes; {settings.model} {said}; {advice}"
        )


def _captions(settings: EvaluateSettings) -> Data | None:
    """Choose the conversations whose answers the lens is made from, or None without a lens."""
    if settings.lens is None:
        if settings.lens_data is not None:
            raise UserError(f"--lens-data {settings.lens_data}: is for --lens contextual; give that, or leave it out")
        return None
    if settings.lens_data is not None:
        if not conversations_file(settings.lens_data).is_file():
            raise UserError(
                f"--lens-data {settings.lens_data}: expected a LLaVA .json or .jsonl file; found none there"
            )
        return Data(train=settings.lens_data, template=settings.template or "own")
    run = settings.model.resolve().parent
    if not (run / "run.json").is_file():
        raise UserError(
            f"--lens {settings.lens}: expected captions to read words in; {settings.model} is no run's model, whose "
            "training data would be taken; name a LLaVA file with --lens-data"
        )
    data = read_run(run).recipe.data
    if not conversations_file(data.train).is_file():
        raise UserError(
            f"--lens {settings.lens}: expected the run's training data, {data.train}, which is not there; name a LLaVA "
            "file with --lens-data"
        )
    return data
