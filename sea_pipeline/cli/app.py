"""Define the program that commands register with, its exit codes, and how commands print JSON."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from sea_pipeline import __version__
from sea_pipeline.cli import talk

app = typer.Typer(
    name="sea-pipeline",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Label image patches with words (SEA), and train projectors that bring visual tokens close to an LLM's words.",
    epilog="Every option but --help, --version and the two of completion can also be set by an environment variable: "
    "SEA_PIPELINE_LABEL_TOP_N=5 means label --top-n 5, and SEA_PIPELINE_QUIET=1 --quiet of any command. "
    "Exit codes: 0 done; 1 a problem that you can mend, said in one line; 2 a command line that cannot be read; "
    "3 finished, but shards failed; 130 interrupted.",
)


MENDABLE, MISUSED, FAILED_SHARDS, INTERRUPTED = 1, 2, 3, 130
"""Exit codes: a problem that the user can mend; a wrong command line; finished, but shards failed; Ctrl-C."""


def print_json(value: Mapping[str, Any]) -> None:
    """Print the object of `--json` on one line, which must be the only output on stdout, see `strict_json`."""
    from sea_pipeline.storage.json_files import strict_json

    print(strict_json(value))


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
