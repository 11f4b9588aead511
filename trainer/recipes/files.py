"""Reads recipe files: YAML over a base, cut into stages, with overrides from the command line."""

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from sea_pipeline.core.errors import MOST, UserError, one_line
from sea_pipeline.core.settings import complaint
from sea_pipeline.core.yaml_keys import UniqueKeyLoader
from trainer.recipes.recipe import PRESETS, Recipe


class _Yaml(UniqueKeyLoader):
    """A YAML loader that reads 1e-3 as a number, which YAML 1.1 reads as text for lack of a dot."""


_FAULTS = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""The errors of a text that is not YAML. Wrong dates and bytes that are not text are ValueErrors; the others come from
PyYAML's own handling of tags and of depth."""

_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_recipes(path: Path, overrides: Sequence[str] = ()) -> dict[str, Recipe]:
    """Read the runs that a recipe file asks for, by name and in order.

    There is one, named "", unless the file has `stages`.

    `stages` maps names to the keys that differ in each. Each stage but the first starts from the model that the one
    before it left. `base` names another recipe file in the same folder, whose keys hold if this one's do not say
    otherwise. A stage of null leaves out a stage of the base.

    Args:
        path: a YAML file.
        overrides: `key.inner=value` with the value in YAML, for all stages, or with `stages.NAME.` in front for one.
            `stages.NAME=null` leaves a stage out.

    Raises:
        UserError: something is wrong; one line names everything.
    """
    content = _read(path)
    given = content.pop("stages", None)
    stages = given or {"": {}}
    if not isinstance(stages, dict) or not all(isinstance(stage, dict | None) for stage in stages.values()):
        raise UserError(f"{path}: stages: expected a mapping of names to keys; found {stages!r:.80}")
    common, own = _split_overrides(overrides)
    stages, own = _with_text_as_names(stages), _with_text_as_names(own)
    for name in stages if given else ():
        _check_folder_name(name, f"{path}: stages.{name!s:.80}")
    if unknown := sorted(own.keys() - stages.keys()):
        names = ", ".join(name for name in stages if name)
        wanted = f"expected one of its stages, {names}" if names else "it has no stages; give the key without them"
        raise UserError(f"{path}: --set stages.{unknown[0]}: {wanted}")
    stages = {name: stage for name, stage in stages.items() if stage is not None and own.get(name, {}) is not None}
    if not stages:
        raise UserError(f"{path}: stages: expected at least one that is not null; found none")
    recipes = {}
    for name, stage in stages.items():
        mine = own.get(name, {})
        merged = _merge(_merge(content, stage), _merge(common, mine))
        where = f"{path}: stages.{name}" if name else str(path)
        recipes[name] = _recipe(merged, where, {f"stages.{name}.": mine, "": common})
        _check_folder_name(recipes[name].name, f"{where}: name")  # here, because runs of earlier versions have any
    return recipes


def _check_folder_name(name: str, where: str) -> None:
    if not name.isprintable() or "/" in name or name in ("", ".", ".."):
        raise UserError(f"{where}: expected a folder's name, printable and without slashes; found {name!r:.80}")


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a file's keys, over those of the file that its `base` names."""
    try:
        content = yaml.load(path.read_text("utf-8"), _Yaml)
    except OSError as error:
        shown = path if len(str(path)) <= MOST else f"{str(path)[:MOST]}…"  # a `base` may say anything
        raise UserError(
            f"{shown}: cannot be read: {error.strerror}; give a recipe's file, or a name that sea-pipeline recipes "
            "lists"
        ) from error
    except _FAULTS as error:
        raise UserError(f"{path}: expected YAML; {one_line(error)}") from error
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"{content!r:.40}"
        raise UserError(f"{path}: expected keys and values, as the recipes in jobs/ have them; found {found}")
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str) or path.resolve() in above:
        raise UserError(f"{path}: base: expected another recipe's file; found {base!r}")
    return _merge(_read(path.parent / base, (*above, path.resolve())), content)


def _recipe(content: dict[str, Any], where: str, overrides: Mapping[str, Any]) -> Recipe:
    preset = content.get("preset")
    try:
        return Recipe.model_validate(_merge(PRESETS.get(preset, {}) if isinstance(preset, str) else {}, content))
    except ValidationError as error:
        raise UserError(problems(error, where, overrides)) from error


def _split_overrides(overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    common: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not all(key.strip().split(".")):
            raise UserError(f"--set {text}: expected KEY=VALUE, such as loss.sea.weight=10")
        if not value.strip():  # YAML takes it for null, which would drop what the recipe says
            raise UserError(f"--set {text}: expected a value; found none; write {text.strip()}null for none")
        try:
            nested = yaml.load(value, _Yaml)
        except _FAULTS as error:
            raise UserError(f"--set {text}: the value is no YAML: {one_line(error)}") from error
        for part in reversed(key.strip().split(".")):
            nested = {part: nested}
        common = _merge(common, nested)
    own = common.pop("stages", {})
    if not isinstance(own, dict):
        raise UserError(f"--set stages: expected stages.NAME.KEY=VALUE; found {own!r:.80}")
    for name, keys in own.items():
        if not isinstance(keys, dict | None):
            raise UserError(f"--set stages.{name}: expected stages.{name}.KEY=VALUE; found {keys!r:.80}")
    return common, own


def _with_text_as_names(stages: Mapping[Any, Any]) -> dict[str, Any]:
    """Convert the names of stages to text, because YAML takes 1 for a number."""
    return {str(name): keys for name, keys in stages.items()}


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `above` over `below`, key by key."""
    merged = dict(below)
    for key, value in above.items():
        before = merged.get(key)
        nested = isinstance(before, Mapping) and isinstance(value, Mapping)
        merged[key] = _merge(before, value) if nested else value  # type: ignore[arg-type]
    return merged


_KeyPath = tuple[str | int, ...]
_OF_FILES = ["stages", "base"]
"""Keys of a file that are none of a `Recipe`."""


def problems(error: ValidationError, where: str, overrides: Mapping[str, Any]) -> str:
    """Describe everything that is wrong, each with `--set` or the recipe's file as its place.

    Args:
        error: of `Recipe`.
        where: the recipe, and the stage.
        overrides: the keys set on the command line, by the prefix that they have there ("" or "stages.NAME.").
    """
    found: dict[_KeyPath, list[Any]] = {}
    for item in error.errors():
        found.setdefault(_located(item)[0], []).append(item)
    for key_path in [key_path for key_path in found if key_path]:  # a mapping that would do but for keys inside it
        if any(other != key_path and other[: len(key_path)] == key_path for other in found):
            del found[key_path]
    in_file, on_line = [], []
    for key_path, items in found.items():
        prefix = next((prefix for prefix, keys in overrides.items() if key_path and _holds(keys, key_path)), None)
        line = ".".join(f"{part!s:.80}" for part in key_path) + (": " if key_path else "") + _line(key_path, items)
        if prefix is None:
            in_file.append(line)
        else:
            on_line.append(f"--set {prefix}{line}")
    if () in found and any(overrides.values()):
        where += ", with --set"
    return "; ".join(([f"{where}: {'; '.join(in_file)}"] if in_file else []) + on_line)


def _located(item: Any) -> tuple[_KeyPath, type[BaseModel] | None]:  # noqa: ANN401 - pydantic's error
    """Return the keys to a value and the model that they end in.

    pydantic's names for the types of a union are left out.
    """
    location = item["loc"]
    key_path: list[str | int] = []
    model: type[BaseModel] | None = Recipe
    for index, part in enumerate(location):
        unknown = item["type"] == "extra_forbidden" and index == len(location) - 1
        if isinstance(part, int) or unknown:
            key_path.append(part)
        elif model is not None and part in model.model_fields:
            key_path.append(part)
            kinds = list(_models_in(model.model_fields[part].annotation))
            named = [kind for kind in kinds if kind.__name__ in location]  # the one of a union that the value is
            model = next(iter(named or kinds), None)
    return tuple(key_path), model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401 - a type, or a union
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _holds(keys: Any, key_path: _KeyPath) -> bool:  # noqa: ANN401 - any YAML
    """Tell whether overrides set the value at a place, or something around it that is not a mapping."""
    for part in key_path:
        if not isinstance(keys, Mapping):
            return True
        if part not in keys:
            return False
        keys = keys[part]
    return True


def _line(key_path: _KeyPath, items: Sequence[Any]) -> str:
    if items[0]["type"] == "extra_forbidden":
        _, model = _located(items[0])
        keys = list(model.model_fields) if model else []
        keys += _OF_FILES if model is Recipe and key_path[-1] not in _OF_FILES else []
        near = get_close_matches(str(key_path[-1]), keys, cutoff=0.7)
        return f"there is no such key; expected {' or '.join(near) or ', '.join(keys)}"
    first, *others = dict.fromkeys(complaint(item) for item in items)
    wanted = " or ".join([first, *(other.removeprefix("input should be ") for other in others)])
    return f"{wanted}, found {items[0]['input']!r:.80}" if key_path else wanted
