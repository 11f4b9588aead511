"""The command `sea-pipeline`: parses, calls one function, prints what it says. Heavy imports happen inside."""

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sea_pipeline import __version__
from sea_pipeline.cli import completion, streams, talk
from sea_pipeline.errors import UserError, one_line

app = typer.Typer(
    name="sea-pipeline",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Per-patch word labels for images (SEA), and projectors that put visual tokens where the LLM keeps its words.",
    epilog="Every option can be set by a variable of the environment, too: SEA_PIPELINE_LABEL_TOP_N=5 is label --top-n "
    "5. Exit codes: 0 done; 1 what you can mend, in one line; 2 a command line that cannot be read; 3 finished, but "
    "shards failed; 130 interrupted.",
)

# Options of the commands that embed words.
Encoder = Annotated[
    str,
    typer.Option(
        help="packaged (Python packages; nothing is downloaded); or open_clip:ARCH/PRETRAINED, open_clip:FOLDER or "
        "open_clip:hf-hub:ORG/NAME, and #final, #value, #vv or #pool behind it. s2: before any: at three scales.",
        autocompletion=completion.encoders,
    ),
]
Precision = Annotated[
    Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the image tower; words are float32 always.")
]
Template = Annotated[
    Literal["bare", "photo", "ensemble"],
    typer.Option(help='Embed words bare, as "a photo of a {}.", or as the mean of 80 such sentences.'),
]
WordListName = Annotated[
    str,
    typer.Option(
        help="2of12, a UTF-8 file with one word per line, or mine:CAPTIONS.json.", autocompletion=completion.wordlists
    ),
]
TopN = Annotated[int, typer.Option(help="At most this many labels per patch.")]
Search = Annotated[
    Literal["auto", "int8", "faiss", "torch"],
    typer.Option(
        help="What proposes words; the labels are the same. int8: 8 bits with a bound on the error; faiss: FAISS's "
        "flat index; torch: float32; auto: on a CPU the fastest of them there, by a trial."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", autocompletion=completion.devices)]


def local_output(teaches: str) -> Any:  # noqa: ANN401 - typer's
    """The option of an output that is no folder of shards: a `Path` made of a URL would be a folder `s3:`."""
    return typer.Option(parser=_of_this_machine, metavar="<path>", help=teaches)


def _of_this_machine(text: str | Path) -> Path:
    from sea_pipeline.storage import is_url

    if is_url(str(text)):
        raise typer.BadParameter(
            f"expected a path of this machine, found {text}: only label, teacher, merge and select write to stores"
        )
    return Path(text)


MENDABLE, MISUSED, FAILED_SHARDS, INTERRUPTED = 1, 2, 3, 130
"""Exit codes: what the user can mend; a command line that cannot be read; finished, but shards failed; Ctrl-C."""
_STOPPED = {
    "label": "finished shards are kept; run the same command again to go on",
    "teacher": "finished shards are kept; run the same command again to go on",
    "train": "run the same command again to go on from the newest checkpoint",
    "demo": "run the same command again to go on",
    "push": "what was sent stays there; run the same command again to go on",
    "pull": "what was fetched is kept; run the same command again to go on",
    "merge": "finished shards are kept; run the same command again to go on",
    "select": "finished shards are kept; run the same command again to go on",
    "export": "the folder is there whole or not at all, but with --push it may be uploaded in part; if it is there, go "
    "on with: hf upload --private OWNER/NAME FOLDER",
}
"""What to know of it; every other command writes its results whole or not at all."""


def main() -> None:
    """Runs the command line, and exits with one of the codes above; `streams.CLOSED` if nobody reads its output."""
    streams.prepare()
    with talk.heard():
        code = _run()
        raise SystemExit(streams.flushed(code))


def _run() -> int:
    """The exit code; what there is to say of it has been said."""
    try:
        _refuse_arguments_that_are_not_utf8()
        code = app(prog_name="sea-pipeline", standalone_mode=False) or 0
        return _told(code, _stopped()) if code == INTERRUPTED else code
    except UserError as problem:
        return _told(MENDABLE, str(problem), problem)
    except OSError as problem:
        return _unwritten(problem)
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        return _unwritten(end.__context__)  # typer and rich end a program so, whichever pipe it was
    except typer.Abort:
        return _told(INTERRUPTED, _stopped())
    except Exception as mistake:
        if not hasattr(mistake, "format_message"):  # typer's own: an unknown option, a missing argument
            raise
        return _told(MISUSED, _misused(mistake))


def _unwritten(problem: OSError) -> int:
    """The exit code of a file or a pipe that cannot be read or written."""
    if streams.is_closed(problem):
        return streams.CLOSED
    said = problem.strerror or one_line(problem)
    return _told(MENDABLE, f"{problem.filename}: {said}" if problem.filename else said, problem)


def _told(code: int, problem: str, cause: BaseException | None = None) -> int:
    """Says what is wrong, and with --verbose where it came from; the exit code."""
    with suppress(BrokenPipeError):
        if problem:
            talk.LOG.error("%s", problem)
        if cause is not None:
            talk.LOG.debug("it came from here:", exc_info=cause)
    return code


def _misused(mistake: Any) -> str:  # noqa: ANN401 - typer's; it has moved between versions
    """What typer says of a command line that it cannot read, and where to look; empty if it has shown the help."""
    text: str = mistake.format_message()
    context: typer.Context | None = getattr(mistake, "ctx", None)
    option = getattr(mistake, "param", None)
    if not text:
        return ""
    if context and option is not None and getattr(option, "envvar", None):
        source = context.get_parameter_source(option.name)
        text = text.rstrip(".") + (f", set by {option.envvar}" if source and source.name == "ENVIRONMENT" else "")
    path, teaches = f"sea-pipeline {_given_command()}".rstrip(), ""
    if context:
        path, teaches = context.command_path, context.command.help or ""
    _, _, example = teaches.partition("Example: ")
    shown = f"such as {example}; " if example and text.startswith(("Missing", "Got unexpected")) else ""
    return f"{text.rstrip('.').replace('Value error, ', '')}; {shown}see {path} --help"


def _stopped() -> str:
    return f"stopped; {_STOPPED.get(_given_command(), 'nothing is left half done')}"


def _given_command() -> str:
    return next((argument for argument in sys.argv[1:] if not argument.startswith("-")), "")


def print_json(value: Mapping[str, Any]) -> None:
    """What `--json` prints: one object, on one line, alone on stdout."""
    print(json.dumps(value))


def _refuse_arguments_that_are_not_utf8() -> None:
    for argument in sys.argv[1:]:
        try:
            argument.encode()
        except UnicodeEncodeError:
            shown = argument.encode(errors="backslashreplace").decode()
            raise UserError(f"{shown}: expected a name in UTF-8; rename it") from None


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sea-pipeline {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    quiet: talk.Quiet = False,
    verbose: talk.Verbose = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    talk.set_level(quiet=quiet, verbose=verbose)


# Each registers its commands, in the order in which --help lists them.
from sea_pipeline.cli import demo, labels, probe, forecast, recipes, training  # noqa: E402, F401  # isort: skip
from sea_pipeline.cli import tokens, teacher, report, export, evaluation  # noqa: E402, F401  # isort: skip
from sea_pipeline.cli import hub, join  # noqa: E402, F401  # isort: skip
