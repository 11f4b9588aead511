"""Check the settings of `label`, `plan` and `probe` without torch, whose import takes seconds.

The commands check before they load anything. What passes is checked again when it is used.
"""

from pathlib import Path

from sea_pipeline.core.device_names import check_device_name
from sea_pipeline.core.errors import UserError
from sea_pipeline.encoders import EncoderOptions, check_encoder
from sea_pipeline.inputs.wordlists import WordList, find_wordlist, load_wordlist
from sea_pipeline.labels.settings import LabelSettings, LlmProbeSettings, ProbeSettings
from sea_pipeline.storage.paths import Place, is_url, lies_in, place


def check_label(settings: LabelSettings) -> None:
    """Check the settings of `label` or of `plan`.

    Raises:
        UserError: a file or a folder does not exist, there is no encoder or device of that name, or options contradict
            each other.
    """
    find_wordlist(settings.wordlist)
    if settings.crew.in_process:
        check_device_name(settings.device)
    check_encoder(settings.encoder, EncoderOptions(settings.precision, settings.template))
    from sea_pipeline.inputs.sources import check_input  # here because pyarrow takes a while

    check_input(settings.images, settings.image_root, streaming=settings.streaming)
    out = None if settings.out is None or is_url(str(settings.out)) else place(settings.out)  # never ask a store twice
    check_out(settings, out)


def check_out(settings: LabelSettings, out: Place | None) -> None:
    """Check the folder that labels go to, or only the options if it is not known yet.

    Raises:
        UserError: the folder is a file or is inside the input; or it is to be extended by a part of the images.
    """
    if settings.extend and settings.limit:
        raise UserError(
            f"--limit {settings.limit}: not with --extend, which adds every image that is new; leave one out"
        )
    if out is None:
        return
    if settings.images is not None and _lies_inside(out, settings.images):
        raise UserError(f"--out {out}: lies inside the input folder {settings.images}; choose a folder elsewhere")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: expected a folder; found a file")


def _lies_inside(out: Place, images: str) -> bool:
    if not isinstance(out, Path):
        return f"{out}/".startswith(images.rstrip("/") + "/")
    return Path(images).is_dir() and lies_in(out, images)


def words_of(settings: LabelSettings | ProbeSettings) -> WordList:
    """Load the word list that is asked for.

    Raises:
        UserError: see `load_wordlist`; or it has fewer words than `top_n`.
    """
    words = load_wordlist(settings.wordlist)
    if settings.top_n > len(words):
        raise UserError(
            f"--top-n {settings.top_n}: expected at most {len(words):,}, the length of {settings.wordlist}; "
            f"give --top-n {len(words)} or less"
        )
    return words


def check_probe(settings: ProbeSettings) -> None:
    """Check the settings of `probe`.

    Raises:
        UserError: a file does not exist, or there is no encoder or device of that name.
    """
    find_wordlist(settings.wordlist)
    if settings.data.suffix.lower() not in (".json", ".jsonl") or not settings.data.is_file():
        raise UserError(f"--data {settings.data}: expected LLaVA's .json or .jsonl with captions; found no such file")
    check_device_name(settings.device)
    for spec in settings.encoder:
        check_encoder(spec, EncoderOptions(settings.precision, settings.template))


def check_llm_probe(settings: LlmProbeSettings) -> str | None:
    """Check the settings of `probe --llm`, and return the text to read, None for ours.

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
