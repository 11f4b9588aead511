"""Make chat templates write the same date every day."""

import json
import re
from datetime import datetime

_DAY = datetime(2024, 7, 26)
_LITERAL = re.compile(r"strftime_now\(\s*(['\"])((?:(?!\1).)*)\1\s*\)")
_CALL = re.compile(r"\bstrftime_now\s*\(")
_DIRECTIVES = [*"aAwdbBmyYHIpMSfjUWcxXFTDRheuGVzZ", *(f"-{name}" for name in "dmyHIMSj")]


def with_fixed_date(own: str) -> str:
    """Make a template that writes today's date, such as Llama 3.2's and SmolLM3's, write the same one every day.

    Otherwise a run's tokens, and so its weights, would depend on the day, and prompts would not be those of training.
    The day is the one that Llama 3.2's template names itself where the date is not known.
    """
    fixed = _LITERAL.sub(lambda call: json.dumps(_DAY.strftime(call[2])), own)
    return _prelude() + fixed if _CALL.search(fixed) else fixed


def _prelude() -> str:
    """Return a macro that takes the place of `strftime_now`, for calls whose format is no literal."""
    steps = [("%%", "\0"), *((f"%{name}", _DAY.strftime(f"%{name}")) for name in _DIRECTIVES), ("\0", "%")]
    filters = "".join(f" | replace({json.dumps(old)}, {json.dumps(new)})" for old, new in steps)
    return f"{{%- macro strftime_now(format) -%}}{{{{- format{filters} -}}}}{{%- endmacro -%}}"
