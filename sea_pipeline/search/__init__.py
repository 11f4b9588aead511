"""The exact top-n words by cosine; it knows vectors and no images.

It may import `core` and `storage`.
"""

from typing import Literal

Backend = Literal["auto", "int8", "faiss", "torch"]
"""The method that proposes candidates; `exact.WordSearch` says what each name means."""
