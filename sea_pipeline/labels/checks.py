"""What can be wrong with the settings of `label`, `plan` and `probe` and is known without torch, which takes seconds.

The commands ask it before they load anything. What passes is looked at again where it is used.
"""

from pathlib import Path

from sea_pipeline.core.device_names import check_device_name
from sea_pipeline.core.errors import UserError
from sea_pipeline.encoders import EncoderOptions, check_encoder
from sea_pipeline.inputs.wordlists import find_wordlist
from sea_pipeline.labels.settings import LabelSettings, LlmProbeSettings, ProbeSettings
from sea_pipeline.storage.paths import Place, is_url, place


def check_label(settings: LabelSettings) -> None:
    """Looks at the settings of `label`, or of `plan`.

    Raises:
        UserError: a file or a folder is not there, there is no encoder or device of that name, or options contradict
            each other.
    """
    find_wordlist(settings.wordlist)
    if settings.crew.alone:
        check_device_name(settings.device)
    check_encoder(settings.encoder, EncoderOptions(settings.precision, settings.template))
    from sea_pipeline.inputs.sources import check_input  # here: pyarrow takes a while

    check_input(settings.images, settings.image_root, streaming=settings.streaming)
    out = None if settings.out is None or is_url(str(settings.out)) else place(settings.out)  # no store is asked twice
    check_out(settings, out)


def check_out(settings: LabelSettings, out: Place | None) -> None:
    """Looks at where labels go; None: at a place that is not known yet.

    Raises:
        UserError: it is a file, or lies in the input; or the folder is to be extended by a part of the images.
    """
    if settings.extend and settings.limit:
        raise UserError(f"--limit {settings.limit}: not with --extend, which adds every image that is new")
    if out is None:
        return
    if settings.images is not None and _lies_inside(out, settings.images):
        raise UserError(f"--out {out}: lies inside the input folder {settings.images}; choose a folder elsewhere")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: expected a folder; found a file")


def _lies_inside(out: Place, images: str) -> bool:
    if not isinstance(out, Path):
        return f"{out}/".startswith(images.rstrip("/") + "/")
    return Path(images).is_dir() and out.resolve().is_relative_to(Path(images).resolve())


def check_probe(settings: ProbeSettings) -> None:
    """Looks at the settings of `probe`.

    Raises:
        UserError: a file is not there, or there is no encoder or device of that name.
    """
    find_wordlist(settings.wordlist)
    if settings.data.suffix.lower() not in (".json", ".jsonl") or not settings.data.is_file():
        raise UserError(f"--data {settings.data}: expected LLaVA's .json or .jsonl with captions; found no such file")
    check_device_name(settings.device)
    for spec in settings.encoder:
        check_encoder(spec, EncoderOptions(settings.precision, settings.template))


def check_llm_probe(settings: LlmProbeSettings) -> str | None:
    """Looks at the settings of `probe --llm`; gives the text that is to be read, None for that of ours.

    Raises:
        UserError: the text cannot be read, or there is no device of that name.
    """
    text = None if settings.text is None else _text(settings.text)
    check_device_name(settings.device)
    return text


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--text {path}: expected UTF-8; byte {error.start} is none; save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"--text {path}: expected a text file; {error.strerror}") from error
