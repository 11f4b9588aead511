"""Where this checkout is, and its source files."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
_FILES = (path for package in ("sea_pipeline", "trainer") for path in sorted((ROOT / package).rglob("*.py")))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in _FILES}
"""The source files of both packages, by their modules' names."""
