"""Register commands, with --quiet and --verbose, an environment variable for every option, and a check of packages."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Annotated, Any, get_args, get_type_hints

import typer.main
from typer.core import TyperCommand
from typer.models import OptionInfo

from sea_pipeline.cli.app import app
from sea_pipeline.cli.needs import WITHOUT_TRAINER, refuse_lacking
from sea_pipeline.cli.talk import Quiet, Verbose, set_level
from sea_pipeline.core.own_trainer import take_own_trainer

VARIABLES = "SEA_PIPELINE"
"""The prefix of environment variables for options."""

_Function = Callable[..., None]
_Options = Callable[[], Sequence[inspect.Parameter]]


def command(function: _Function) -> _Function:
    """Register a function as a command, named like it with dashes, with its parameters as options.

    Before the function runs, its packages are looked for, see `refuse_lacking`, because its imports may take seconds.
    """
    return command_with(lambda: [])(function)


def command_with(options: _Options) -> Callable[[_Function], _Function]:
    """Register a command as `command` does, with more options before those of the function.

    The function takes them as `**asked`. They are made only when they are needed, because a shell that completes a line
    waits for the import of their settings.
    """

    def register(function: _Function) -> _Function:
        name = function.__name__.replace("_", "-")

        def signed() -> _Function:
            if name not in WITHOUT_TRAINER:
                take_own_trainer()
            return _signed(function, name, options())

        app.command(name, cls=functools.partial(_MadeLate, signed))(_stub(function))  # type: ignore[arg-type]
        return function

    return register


class _MadeLate(TyperCommand):
    """A command that makes its parameters when they are needed.

    Its name and its help exist at once.
    """

    def __init__(self, signed: Callable[[], _Function], *args: Any, **settings: Any) -> None:  # noqa: ANN401 - typer's
        self._signed = signed
        super().__init__(*args, **settings)

    @functools.cached_property
    def _made(self) -> Any:  # noqa: ANN401 - typer's; it has moved between versions
        alone = typer.Typer(add_completion=False)
        alone.command(self.name)(self._signed())
        return typer.main.get_command(alone)

    @property
    def params(self) -> Any:  # noqa: ANN401 - typer's
        return self._made.params

    @params.setter
    def params(self, none_yet: object) -> None:
        """Ignore the parameters of the stub that represents the command while it is registered."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - typer's; it has moved between versions
        """Print the help with words broken that have no room."""
        with _words_broken():
            super().format_help(ctx, formatter)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer's; it has moved between versions
        return self._made.invoke(ctx)


@contextmanager
def _words_broken() -> Iterator[None]:
    """Let tables break words that have no room. Rich cuts them, and typer has no setting for it."""
    from rich.table import Table  # late, because only help needs it

    printed = Table.__rich_console__

    def broken(table: Table, *given: Any) -> Any:  # noqa: ANN401 - rich's
        for column in table.columns:
            column.overflow = "fold"
        return printed(table, *given)

    Table.__rich_console__ = broken  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        Table.__rich_console__ = printed  # type: ignore[method-assign]


def _stub(function: _Function) -> Callable[[], None]:
    """Make a function of the same name and help without parameters."""

    def stub() -> None: ...

    stub.__name__, stub.__doc__ = function.__name__, function.__doc__
    return stub


def _signed(function: _Function, name: str, made: Sequence[inspect.Parameter]) -> _Function:
    """Make the function that runs the command, with a parameter for each of its options."""

    def run(*, quiet: bool, verbose: bool, **asked: Any) -> None:  # noqa: ANN401 - whatever its options are
        set_level(quiet=quiet, verbose=verbose)
        refuse_lacking(name, asked)
        function(**asked)

    hints = get_type_hints(function, include_extras=True)
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name])
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    common = [
        inspect.Parameter(word, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=hint)
        for word, hint in (("quiet", Quiet), ("verbose", Verbose))
    ]
    every = [parameter.replace(annotation=_with_variable(parameter, name)) for parameter in (*made, *own, *common)]
    run.__doc__ = function.__doc__
    run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
    return run


def _with_variable(parameter: inspect.Parameter, command_name: str) -> Any:  # noqa: ANN401 - a type
    """Return a parameter's annotation with the variable SEA_PIPELINE_<COMMAND>_<OPTION> for its option."""
    kind, *metadata = get_args(parameter.annotation)
    (info,) = metadata
    if not isinstance(info, OptionInfo):
        return parameter.annotation
    # In an annotation, typer stores the first spelling as the default.
    spellings = [str(one) for one in (info.default, *(info.param_decls or ())) if str(one).startswith("--")]
    option = spellings[0].partition("/")[0] if spellings else parameter.name
    info = copy(info)
    info.envvar = "_".join((VARIABLES, command_name, option.strip("-"))).replace("-", "_").upper()
    info.show_envvar = False  # the help of the program explains the variables once
    return Annotated[kind, info]
