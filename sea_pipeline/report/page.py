"""Put data, style and scripts into one HTML file that may not use the network.

Data stays text everywhere. jinja2 escapes it, the JSON has no character that ends a script, and the scripts set
`textContent`. The page's policy allows only these scripts and styles, by their hashes.
"""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from sea_pipeline import __version__
from sea_pipeline.core.extras import require

_ASSETS = Path(__file__).parent / "assets"
_SCRIPTS = ("core", "charts", "grid", "words", "photos", "tokens", "training", "main")
"""The scripts, each after those it needs."""
_ESCAPED = {code: f"\\u{code:04x}" for code in (*map(ord, "<>&\u2028\u2029"), *range(0x7F, 0xA0))}
"""Beside what HTML and scripts give a meaning, control characters, which HTML may not hold."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def render(data: dict[str, Any], title: str) -> bytes:
    """Render the page as UTF-8.

    Args:
        data: JSON values with `labels` and `runs`, either of which may be absent.
        title: the page's title.

    Raises:
        UserError: jinja2 is not installed.
    """
    jinja2: Any = require("jinja2", "report")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_ASSETS), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    style = (_ASSETS / "style.css").read_text("utf-8")
    sources = "\n".join((_ASSETS / f"{name}.js").read_text("utf-8") for name in _SCRIPTS)
    script = f'(() => {{\n"use strict";\n{sources}}})();\n'
    policy = (
        f"default-src 'none'; img-src data:; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    page: str = environment.get_template("page.html.jinja").render(
        title=_CONTROL.sub("\ufffd", title),
        version=__version__, policy=policy, style=style, script=script, data=json_text(data),
        labels="labels" in data, runs="runs" in data,
    )  # fmt: skip
    return page.encode()


def json_text(value: Any) -> str:  # noqa: ANN401 - whatever JSON holds
    """Encode JSON for a script element, so that nothing in it ends the element or begins a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_ESCAPED)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
