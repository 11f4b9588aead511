"""Recipes as files: YAML over a base, cut into stages, with overrides from the command line."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from sea_pipeline.core.errors import MOST, UserError, one_line
from trainer.recipe import PRESETS, Recipe
from trainer.recipe_problems import problems


class _Yaml(yaml.SafeLoader):
    """YAML 1.1 takes 1e-3, without a dot, for text; here it is a number."""


_FAULTS = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What a text that is no YAML raises: dates that are none are ValueErrors, bytes that are no text too; the other ones
come of PyYAML's own handling of tags and of depth."""

_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_recipes(path: Path, overrides: Sequence[str] = ()) -> dict[str, Recipe]:
    """The runs that a recipe file asks for, by name and in order; one named "" unless the file has `stages`.

    `stages` is a mapping of names to what is different in each; every stage but the first starts from the model that
    the one before it left. `base` names another recipe file beside it, whose keys hold where this one's say
    nothing; a stage of null leaves out a stage of the base.

    Args:
        path: a YAML file.
        overrides: `key.inner=value` with the value in YAML; for every stage, or with `stages.NAME.` in front for one;
            `stages.NAME=null` leaves a stage out.

    Raises:
        UserError: one line with everything that is wrong.
    """
    content = _read(path)
    stages = content.pop("stages", None) or {"": {}}
    if not isinstance(stages, dict) or not all(isinstance(stage, dict | None) for stage in stages.values()):
        raise UserError(f"{path}: stages: expected a mapping of names to keys; found {stages!r:.80}")
    common, own = _split_overrides(overrides)
    stages, own = _with_text_as_names(stages), _with_text_as_names(own)
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
    return recipes


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's keys, over those of the file that its `base` names."""
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
        if not equals or not key.strip():
            raise UserError(f"--set {text}: expected KEY=VALUE, such as loss.sea.weight=10")
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
    """YAML takes 1 for a number."""
    return {str(name): keys for name, keys in stages.items()}


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`, key by key."""
    merged = dict(below)
    for key, value in above.items():
        before = merged.get(key)
        nested = isinstance(before, Mapping) and isinstance(value, Mapping)
        merged[key] = _merge(before, value) if nested else value  # type: ignore[arg-type]
    return merged
