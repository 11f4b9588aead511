"""What all commands share: --quiet and --verbose, an environment variable for every option, what they need."""

import functools
import inspect
from collections.abc import Callable
from copy import copy
from typing import Annotated, Any, get_args, get_type_hints

from typer.models import OptionInfo

from sea_pipeline.cli.app import app
from sea_pipeline.cli.needs import refuse_lacking
from sea_pipeline.cli.talk import Quiet, Verbose, set_level

VARIABLES = "SEA_PIPELINE"
"""What the names of environment variables for options begin with."""


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Registers a command, which is called as its function is, with dashes.

    Before the function runs, its packages are looked for, see `refuse_lacking`: what it imports may take seconds.
    """
    name = function.__name__.replace("_", "-")

    @functools.wraps(function)
    def run(*, quiet: bool, verbose: bool, **asked: Any) -> None:  # noqa: ANN401 - whatever its options are
        set_level(quiet=quiet, verbose=verbose)
        refuse_lacking(name, asked)
        function(**asked)

    hints = get_type_hints(function, include_extras=True)
    common = [
        inspect.Parameter(word, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=hint)
        for word, hint in (("quiet", Quiet), ("verbose", Verbose))
    ]
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name])
        for parameter in inspect.signature(function).parameters.values()
    ]
    every = [parameter.replace(annotation=_with_variable(parameter, name)) for parameter in (*parameters, *common)]
    run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
    app.command(name)(run)
    return function


def _with_variable(parameter: inspect.Parameter, command_name: str) -> Any:  # noqa: ANN401 - a type
    """The annotation of a parameter, whose option can also be given as SEA_PIPELINE_<COMMAND>_<OPTION>."""
    kind, *metadata = get_args(parameter.annotation)
    (info,) = metadata
    if not isinstance(info, OptionInfo):
        return parameter.annotation
    # In an annotation the first spelling stands where a default would.
    spellings = [str(one) for one in (info.default, *(info.param_decls or ())) if str(one).startswith("--")]
    option = spellings[0].partition("/")[0] if spellings else parameter.name
    info = copy(info)
    info.envvar = "_".join((VARIABLES, command_name, option.strip("-"))).replace("-", "_").upper()
    info.show_envvar = False  # the help of the whole program says it once
    return Annotated[kind, info]
