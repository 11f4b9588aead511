"""The two ways in which a user begins the command line."""

import sys
import tomllib

from tests.support.paths import ROOT

_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
_FILE, _, _FUNCTION = _PROJECT["scripts"]["sea-pipeline"].partition(":")
MODULE = [sys.executable, "-m", "sea_pipeline"]
SCRIPT = [sys.executable, "-P", "-c", f"from {_FILE} import {_FUNCTION}; {_FUNCTION}()"]
"""The command `sea-pipeline`: a script of pip's does not have the working folder on its path, either."""
