"""Make the options of commands from their settings, which alone hold names, types, defaults and help."""

from collections.abc import Callable, Collection, Iterator, Mapping
from inspect import Parameter
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sea_pipeline.cli import completion
from sea_pipeline.cli.own_options import local_output
from sea_pipeline.core.settings import Settings

_OFFERED: Mapping[str, Callable[[], list[str]]] = {
    "device": completion.devices,
    "encoder": completion.encoders,
    "labels": completion.labels,
    "model": completion.models,
    "wordlist": completion.wordlists,
}
"""The completions that a shell offers for a field, by its name."""
_RESULTS = ("out", "save_figures")
"""Fields that name an output, which must be on this machine if the type is `Path`."""
_Made = TypeVar("_Made", bound=Settings)


def options_of(
    settings: type[BaseModel],
    *,
    absent: Collection[str] = (),
    first: Collection[str] = (),
    arguments: Mapping[str, str | None] = {},
    spelled: Mapping[str, str] = {},
    optional: Collection[str] = (),
    in_range: Collection[str] = (),
    hidden: Collection[str] = (),
    offered: Mapping[str, Callable[[], list[str]]] = {},
) -> list[Parameter]:
    """Make the options of a command in the order of the fields, including those of nested settings.

    Args:
        settings: the settings.
        absent: fields without an option.
        first: fields whose options come before the others.
        arguments: fields that are given without a name, with their names in the help (None for the field's).
        spelled: spellings of options that differ from their fields' names.
        optional: fields whose options may be left out although the settings need them or have a default of their own.
        in_range: fields whose range the parser checks (exit 2), in addition to the settings (exit 1).
        hidden: fields whose options the help leaves out.
        offered: completions for a field, if not those for all fields of its name.
    """
    made: dict[str, Parameter] = {}
    for name, field in _fields(settings, absent):
        kind, default = _kind(field.annotation), Parameter.empty if field.is_required() else field.default
        spelling = spelled.get(name, f"--{name.replace('_', '-')}") + (f"/--no-{name}" if default is True else "")
        if name in arguments:
            info, default = typer.Argument(metavar=arguments[name], show_default=False), Parameter.empty
        elif name in _RESULTS and Path in (kind, *get_args(kind)):
            info = local_output("", spelling)
        else:
            info = typer.Option(spelling, hidden=name in hidden)
        info.help = None if name in hidden else " ".join((field.description or "").split())
        info.autocompletion = offered.get(name, _OFFERED.get(name))
        if name in in_range:
            info.min, info.max = _limits(field.annotation, *field.metadata)
        if name in optional:
            kind, default = kind | None, None
        made[name] = Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])
    return [*(made.pop(name) for name in first), *made.values()]


def settings_of(settings: type[_Made], asked: Mapping[str, object]) -> _Made:
    """Make settings from the options of a command, ignoring options that they have no field for.

    Raises:
        UserError: see `Settings.of`.
    """
    fields = settings.model_fields
    values = {name: asked[name] for name in fields if name in asked}
    others = {name: value for name, value in asked.items() if name not in fields}
    for name, field in fields.items():
        within = field.annotation
        if isinstance(within, type) and issubclass(within, Settings):
            values[name] = settings_of(within, others)
        elif isinstance(within, type) and issubclass(within, BaseModel):
            values[name] = {inner: others[inner] for inner in within.model_fields if inner in others}
    return settings.of(**values)


def _fields(settings: type[BaseModel], absent: Collection[str]) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in settings.model_fields.items():
        if name in absent:
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, absent)
        else:
            yield name, field


def _kind(annotation: Any) -> Any:  # noqa: ANN401 - a type
    """Return the type for typer, without ranges, with lists for tuples, and with text for a path that may be a URL."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0])
    if origin is tuple:
        return list[inner[0]]  # type: ignore[valid-type]
    if origin in (Union, UnionType):
        return _kind(inner[0]) | None if NoneType in inner else _kind(inner[0])
    return annotation


def _limits(*found: object) -> tuple[Any, Any]:
    """Return the smallest and the largest value that a type and its metadata allow, None for no limit."""
    least = most = None
    for one in found:
        inner = _limits(*get_args(one)) if get_args(one) else _limits(*getattr(one, "metadata", ()))
        least, most = (getattr(one, "ge", least), getattr(one, "le", most)) if inner == (None, None) else inner
    return least, most
