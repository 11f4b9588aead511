"""Give the package index the README with absolute links; hatchling runs this when it builds the package."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(\]\(|(?:src|srcset)=\")(?![a-z]+:|#)([^)\"\s]+)")


def on_the_index(readme: str, repository: str) -> str:
    """Make a README's relative links absolute."""

    def absolute(link: re.Match[str]) -> str:
        kind = "raw" if link[2].endswith((".webp", ".png", ".svg")) else "blob"
        return f"{link[1]}{repository}/{kind}/main/{link[2]}"

    return _LINK.sub(absolute, readme)


class ReadmeHook(MetadataHookInterface):
    """Takes the README, and the address from `Repository` in [project.urls]."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the `readme` of the package."""
        text = (Path(self.root) / "README.md").read_text("utf-8")
        text = on_the_index(text, metadata["urls"]["Repository"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
