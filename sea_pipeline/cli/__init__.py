"""The command `sea-pipeline`: parses, calls one function, prints what it says. Heavy imports happen inside."""

import sys
from typing import Annotated, Literal

import typer

from sea_pipeline import __version__
from sea_pipeline.errors import UserError

app = typer.Typer(
    name="sea-pipeline",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Per-patch word labels for images (SEA), and projectors that put visual tokens where the LLM keeps its words.",
)

Precision = Annotated[
    Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the image tower; words are float32 always.")
]
Template = Annotated[
    Literal["bare", "photo", "ensemble"],
    typer.Option(help='Embed words bare, as "a photo of a {}.", or as the mean of 80 such sentences.'),
]
"""Options of every command that embeds words."""


def main() -> None:
    """Runs the command line: exit 0, 1 with one line for what the user can mend, 2 where shards failed."""
    from sea_pipeline import console

    try:
        _refuse_arguments_that_are_not_utf8()
        code = app(prog_name="sea-pipeline", standalone_mode=False) or 0
    except UserError as problem:
        console.error(str(problem))
        code = 1
    except OSError as problem:
        console.error(f"{problem.filename or 'the file system'}: {problem.strerror or problem}")
        code = 1
    except typer.Abort:
        code = 130
    except Exception as mistake:
        if not hasattr(mistake, "format_message"):  # typer's own: an unknown option, a missing argument
            raise
        context = getattr(mistake, "ctx", None)
        if text := mistake.format_message():
            console.error(f"{text.rstrip('.')}; see {context.command_path if context else 'sea-pipeline'} --help")
        code = 1
    if code == 130:
        console.error("stopped; run the same command again to go on")
    raise SystemExit(code)


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
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


from sea_pipeline.cli import export, labels, probe, report, teacher, training  # noqa: E402, F401 - they register their commands
