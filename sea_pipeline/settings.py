"""What a command is asked for: frozen, unknown names refused, every problem told at once."""

from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from sea_pipeline.errors import UserError


class Strict(BaseModel):
    """Frozen, and unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Settings(Strict):
    """The base of a command's settings; the fields are its options."""

    @classmethod
    def of(cls, **values: object) -> Self:
        """Settings from options.

        Raises:
            UserError: one line with every value that is out of range.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = (
                f"--{str(item['loc'][-1]).replace('_', '-')}: {item['msg'][0].lower() + item['msg'][1:]}, "
                f"found {item['input']!r}"
                for item in error.errors()
            )
            raise UserError("; ".join(problems)) from error
