"""Define the base of settings, recipes and records, which are checked as a whole."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sea_pipeline.core.errors import UserError

_KINDS = {
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "path_type": "a path",
    "tuple_type": "a list",
}


class Strict(BaseModel):
    """A frozen model that refuses unknown names, and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Device = Annotated[
    str,
    Field(description="The device to compute on: auto, cpu, cuda or cuda:N. auto takes a GPU if there is one."),
]

MOST_EXACT = 2**53
"""From here on, a reader of JSON that takes numbers for floats no longer holds each integer exactly."""
Count = Annotated[int, Field(ge=0, lt=MOST_EXACT)]
"""An integer that every reader of JSON holds exactly, and that NumPy, torch and `islice` take."""
Positive = Annotated[Count, Field(ge=1)]
"""A `Count` of at least 1."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What NumPy and torch both take."""


class Filled(Strict):
    """A model whose values are no empty texts, because an empty path would be the working folder."""

    @field_validator("*", mode="before")
    @classmethod
    def _filled(cls, value: Any) -> Any:  # noqa: ANN401 - whatever a field is given
        if isinstance(value, str) and not value:
            raise ValueError("expected a value")
        return value


class Options(Strict):
    """A model whose fields are options, and their docstrings the help."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    @classmethod
    def of(cls, **values: object) -> Self:
        """Make settings from options.

        Raises:
            UserError: one line with every value that is out of range.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = (
                f"--{str(item['loc'][-1]).replace('_', '-')}: {complaint(item)}, found {item['input']!r}"
                for item in error.errors()
            )
            raise UserError("; ".join(problems)) from error


class Settings(Filled, Options):
    """The base of a command's settings."""


def complaint(item: Any) -> str:  # noqa: ANN401 - one of pydantic's `errors()`
    """Return pydantic's message about one value, without the names of our classes."""
    if kind := _KINDS.get(item["type"]):
        return f"input should be {kind}"
    message: str = item["msg"].removeprefix("Value error, ").partition(", unable to ")[0]
    return message[0].lower() + message[1:]
