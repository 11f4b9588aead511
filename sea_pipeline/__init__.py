"""From photos to per-patch word labels: the first stage of SEA and BASIC.

The public way in is `open_labels`; everything else is reached through the command `sea-pipeline`.
Importing this package loads neither torch nor FAISS.
"""

from sea_pipeline.store import Labels, LabelStore, open_labels

__all__ = ["LabelStore", "Labels", "open_labels"]
__version__ = "0.1.0"
