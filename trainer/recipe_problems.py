"""What is wrong with a recipe, in one line: pydantic's errors at the places where a person wrote the values."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from sea_pipeline.core.settings import complaint
from trainer.recipe import Recipe

_Place = tuple[str | int, ...]


def problems(error: ValidationError, where: str, overrides: Mapping[str, Any]) -> str:
    """Everything that is wrong, each with the place that it comes from: `--set` or the recipe's file.

    Args:
        error: of `Recipe`.
        where: the recipe, and the stage.
        overrides: by what comes before their keys on the command line ("" or "stages.NAME."), the keys that it sets.
    """
    found: dict[_Place, list[Any]] = {}
    for item in error.errors():
        found.setdefault(_located(item)[0], []).append(item)
    for place in [place for place in found if place]:  # a mapping that would do but for keys inside it
        if any(other != place and other[: len(place)] == place for other in found):
            del found[place]
    in_file, on_line = [], []
    for place, items in found.items():
        prefix = next((prefix for prefix, keys in overrides.items() if place and _holds(keys, place)), None)
        line = ".".join(f"{part!s:.80}" for part in place) + (": " if place else "") + _line(place, items)
        if prefix is None:
            in_file.append(line)
        else:
            on_line.append(f"--set {prefix}{line}")
    if () in found and any(overrides.values()):
        where += ", with --set"
    return "; ".join(([f"{where}: {'; '.join(in_file)}"] if in_file else []) + on_line)


def _located(item: Any) -> tuple[_Place, type[BaseModel] | None]:  # noqa: ANN401 - pydantic's error
    """The keys to a value, without pydantic's names for the types of a union, and the model that they end in."""
    location = item["loc"]
    place: list[str | int] = []
    model: type[BaseModel] | None = Recipe
    for index, part in enumerate(location):
        unknown = item["type"] == "extra_forbidden" and index == len(location) - 1
        if isinstance(part, int) or unknown:
            place.append(part)
        elif model is not None and part in model.model_fields:
            place.append(part)
            kind = model.model_fields[part].annotation
            kinds = (kind, *get_args(kind))
            model = next((each for each in kinds if isinstance(each, type) and issubclass(each, BaseModel)), None)
    return tuple(place), model


def _holds(keys: Any, place: _Place) -> bool:  # noqa: ANN401 - any YAML
    """Whether overrides set what is at a place, or something around it that is no mapping."""
    for part in place:
        if not isinstance(keys, Mapping):
            return True
        if part not in keys:
            return False
        keys = keys[part]
    return True


def _line(place: _Place, items: Sequence[Any]) -> str:
    if items[0]["type"] == "extra_forbidden":
        _, model = _located(items[0])
        keys = list(model.model_fields) if model else []
        near = get_close_matches(str(place[-1]), keys, cutoff=0.7)
        return f"there is no such key; expected {' or '.join(near) or ', '.join(keys)}"
    first, *others = dict.fromkeys(complaint(item) for item in items)
    wanted = " or ".join([first, *(other.removeprefix("input should be ") for other in others)])
    return f"{wanted}, found {items[0]['input']!r:.80}" if place else wanted
