"""Check the settings of `export` without torch, whose import takes seconds."""

from pathlib import Path
from shlex import quote

from sea_pipeline.core.errors import UserError
from sea_pipeline.output.run_files import stage_folders
from sea_pipeline.storage.json_files import read_json
from sea_pipeline.storage.publish import check_new_folder
from trainer.export.settings import ExportSettings
from trainer.model.existing_folder import has_attached, is_existing
from trainer.model.llava_folder import check_form, check_llava_folder
from trainer.model.weight_files import weight_files


def check_export(settings: ExportSettings) -> None:
    """Check the settings of `export`.

    Raises:
        UserError: options contradict each other, the source does not exist, `out` is not empty, or an upload is not
            possible.
    """
    if settings.format == "bin" and settings.kind != "projector":
        raise UserError("--format bin: is for --projector-only; models are written as safetensors")
    if settings.compat is not None and settings.names is not None:
        raise UserError("--names, --compat: expected one of them; --compat is what --names was called before")
    for option, version in (("--names", settings.names), ("--compat", settings.compat)):
        if settings.kind == "projector" and version is not None:
            raise UserError(f"{option} {version}: makes no difference to a projector's file; leave it out")
    _check_ours(settings)
    if settings.push is not None:
        from trainer.model import hub  # imported here because few exports are uploaded

        hub.check(settings.push)
    of_run = is_run(settings.source, settings.checkpoint)
    if not of_run:
        check_llava_folder(settings.source)
    check_new_folder(settings.out)
    if not of_run:
        weight_files(settings.source)


def _check_ours(settings: ExportSettings) -> None:
    """Refuse a model of another family, which is in its readers' own form already."""
    source, model = settings.source, settings.source
    if has_attached(source):
        model = source / "model"
        if not model.is_dir():
            raise UserError(
                f"{source}: trains a model of another family, which needs no export; run the same sea-pipeline "
                f"train command again, which ends in {model}"
            )
    elif not is_existing(source):
        return
    else:
        check_form(source, read_json(source / "config.json"))
    step = (
        "" if settings.checkpoint is None else f"--checkpoint {settings.checkpoint}: such a run keeps its end alone; "
    )
    upload = "" if settings.push is None else f": hf upload --private {settings.push} {quote(str(model))}"
    raise UserError(
        f"{step}{model} is in its family's own form already, which its readers take; nothing is to export, so use it "
        f"as it is{upload}"
    )


def is_run(source: Path, checkpoint: int | None) -> bool:
    """Tell whether a folder is a run's.

    Raises:
        UserError: the folder holds several runs, or `checkpoint` is given and it holds none.
    """
    if (source / "run.json").is_file():
        return True
    stages, ordered = stage_folders(source)
    if stages:
        names = ", ".join(stage.name for stage in stages)
        last = " the last one," if ordered else ""
        raise UserError(f"{source}: holds the stages {names}; name one, such as{last} {stages[-1]}")
    if checkpoint is not None:
        raise UserError(f"--checkpoint {checkpoint}: expected the folder of a run; found no run.json in {source}")
    return False
