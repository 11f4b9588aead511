"""Check the names and numbers in the recipe's `training_arguments`, which transformers takes without a look."""

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Annotated, Any, get_args, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from transformers import TrainingArguments

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.near_names import nearest_name
from sea_pipeline.core.settings import MOST_EXACT, complaint

_CHECKED = {bool, int, float, type(None)}
"""The types of the arguments that are checked. The declared types of the others leave out values that work."""
_RANGES = {
    "per_device_train_batch_size": Field(ge=1),
    "per_device_eval_batch_size": Field(ge=1),
    "gradient_accumulation_steps": Field(ge=1),
    "save_steps": Field(gt=0),
}
_FINITE = ConfigDict(allow_inf_nan=False)


def checked_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check names, numbers and booleans, and convert whole floats to the integers that they are.

    Raises:
        UserError: one line with every argument that does not exist, or is of another type or out of range. A string is
            no number and no boolean.
    """
    kinds, found, problems = _kinds(), dict(given), []
    for name, value in given.items():
        said = f"training_arguments.{name}"
        if name not in kinds:
            problems.append(f"{said}: there is no such key{nearest_name(name, kinds)}")
        elif kind := kinds[name]:
            try:
                read = kind.validate_python(value, strict=isinstance(value, str))
            except ValidationError as error:
                wanted = " or ".join(dict.fromkeys(complaint(item) for item in error.errors()))
                problems.append(f"{said}: {wanted}, found {value!r:.80}")
                continue
            if isinstance(value, float):  # such as 1e3 for max_steps; anything else is passed on as it was given
                found[name] = read
    if problems:
        raise UserError("; ".join(problems))
    return found


def is_checked(name: str) -> bool:
    """Tell whether the value of an argument is checked here."""
    return _kinds().get(name) is not None


@cache
def _kinds() -> dict[str, TypeAdapter[Any] | None]:
    """Map each argument to its type, or to None if its value is not checked."""
    hints = get_type_hints(TrainingArguments)
    return {field.name: _kind(field.name, hints[field.name]) for field in fields(TrainingArguments)}


def _kind(name: str, hint: Any) -> TypeAdapter[Any] | None:  # noqa: ANN401 - a type
    parts = set(get_args(hint)) or {hint}
    if not parts <= _CHECKED:
        return None
    kind = hint | None if bool in parts else hint  # null is false to transformers
    most = Field(lt=MOST_EXACT) if float not in parts and int in parts else Field()
    ranged: Any = Annotated[kind, _RANGES.get(name, Field()), most]
    return TypeAdapter(ranged, config=_FINITE)
