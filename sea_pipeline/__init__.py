"""From photos to per-patch word labels: the first stage of SEA and BASIC.

`open_labels` reads the labels; docs/reference.md lists what else a script of yours imports. The rest is reached through
the command `sea-pipeline`.
Importing this package loads neither torch nor FAISS, and what it offers only when it is asked for: a shell that
completes a command line waits for this import.
"""

from typing import TYPE_CHECKING

__all__ = ["LabelStore", "Labels", "open_labels"]
__version__ = "0.1.0"

if TYPE_CHECKING:
    from sea_pipeline.labels.store import Labels, LabelStore, open_labels
else:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from sea_pipeline.labels import store

        return getattr(store, name)
