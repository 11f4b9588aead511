"""Parse the command line, call one function, and print its result. Heavy imports happen inside the commands.

It may import all rooms, and `trainer`. The commands share `app`, `options` and `terminal`.
"""

import re
import sys
from contextlib import suppress
from itertools import pairwise
from typing import Any

import typer

from sea_pipeline.cli import app, streams, talk
from sea_pipeline.cli.app import INTERRUPTED, MENDABLE, MISUSED
from sea_pipeline.core.errors import UserError, blamed_file, is_limited, with_advice
from sea_pipeline.core.own_trainer import working_folder

_STOPPED = {
    "label": "finished shards are kept; run the same command again to go on",
    "teacher": "finished shards are kept; run the same command again to go on",
    "train": "run the same command again to go on from the newest checkpoint, if there is one",
    "demo": "run the same command again to go on",
    "push": "what was sent stays there; run the same command again to go on",
    "pull": "what was fetched is kept; run the same command again to go on",
    "merge": "finished shards are kept; run the same command again to go on",
    "select": "finished shards are kept; run the same command again to go on",
    "export": "the folder is there whole or not at all",
    "export --push": "the folder is there whole or not at all, but it may be uploaded in part; if it is there, go on "
    "with: hf upload --private OWNER/NAME FOLDER",
    "init": "the folder is there whole or not at all",
}
"""The state after an interruption, by command. Every other command writes its results completely or not at all."""


def main() -> None:
    """Run the command line, and exit with a code of `app`, or `streams.CLOSED` if nobody reads its output."""
    streams.prepare()
    with talk.heard():
        code = _run()
        raise SystemExit(streams.flushed(code))


def _run() -> int:
    """Run the command, report what went wrong, and return the exit code."""
    try:
        working_folder()  # refused if it is gone, whatever the command
        _refuse_arguments_of_no_use()
        with talk.interruptions_told(_stopping()):
            code = app.app(prog_name="sea-pipeline", standalone_mode=False) or 0
        return _told(code, _stopped()) if code == INTERRUPTED else code
    except UserError as problem:
        return _told(MENDABLE, str(problem), problem)
    except OSError as problem:
        return _unwritten(problem)
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        return _unwritten(end.__context__)  # typer and rich exit like this, whichever pipe broke
    except (typer.Abort, KeyboardInterrupt):
        return _told(INTERRUPTED, _stopped())
    except Exception as mistake:
        if is_limited(mistake):
            return _told(MENDABLE, with_advice(mistake), mistake)
        if not hasattr(mistake, "format_message"):  # typer's errors, such as an unknown option, have it
            raise
        return _told(MISUSED, _misused(mistake))


def _unwritten(problem: OSError) -> int:
    """Report a file or a pipe that cannot be read or written, and return the exit code."""
    if streams.is_closed(problem):
        return streams.CLOSED
    if streams.is_of_printing(problem):
        return streams.given_up(sys.stdout, problem)
    said = with_advice(problem, problem.strerror)
    return _told(MENDABLE, f"{named}: {said}" if (named := blamed_file(problem)) else said, problem)


def _told(code: int, problem: str, cause: BaseException | None = None) -> int:
    """Log the problem, and with --verbose its traceback, and return the exit code."""
    with suppress(BrokenPipeError):
        if problem:
            talk.LOG.error("%s", problem)
        if cause is not None:
            talk.LOG.debug("it came from here:", exc_info=cause)
    return code


def _misused(mistake: Any) -> str:  # noqa: ANN401 - typer's; it has moved between versions
    """Return typer's message for a command line that it cannot parse, with advice where to look.

    Empty if typer has shown the help.
    """
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


def _stopping() -> str:
    of_training = ", which is at most one step of training" if _given_command() in ("train", "demo") else ""
    return f"stopping: what is running now ends first{of_training}"


def _stopped() -> str:
    command = _given_command()
    pushes = any(re.match(r"--push(=|$)", argument) for argument in sys.argv)
    state = (pushes and _STOPPED.get(f"{command} --push")) or _STOPPED.get(command, "nothing is left half done")
    return f"stopped; {state}"


def _given_command() -> str:
    return next((argument for argument in sys.argv[1:] if not argument.startswith("-")), "")


def _refuse_arguments_of_no_use() -> None:
    """Refuse arguments that are not UTF-8 or empty: an empty path would be the working folder."""
    for before, argument in pairwise(sys.argv):
        if re.fullmatch(r"(--[^=]+=)?", argument):
            name = argument.rstrip("=") or (before if before.startswith("-") else "an argument")
            raise UserError(f"{name}: expected a value; found an empty text; give one, or leave it out")
        try:
            argument.encode()
        except UnicodeEncodeError:
            shown = argument.encode(errors="backslashreplace").decode()
            raise UserError(f"{shown}: expected a name in UTF-8; rename it") from None


# Each import registers a command, in the order of --help.
from sea_pipeline.cli import demo, label, inspect, status, verify, probe, plan, recipes  # noqa: E402, F401  # isort: skip
from sea_pipeline.cli import init, train, evaluate, tokens, teacher, report, export, eval_commands  # noqa: E402, F401  # isort: skip
from sea_pipeline.cli import push, pull, merge, select  # noqa: E402, F401  # isort: skip
