"""The losses of both papers, pure functions of tensors: `sea` (Eq. 9), `das` (Eq. 6), `sds` (Eq. 7), `word_table`.

It may import `recipes`, `sampling` and `sea_pipeline`.
"""

from trainer.losses.equations import MAX_SCALE, SHORT, das, sds, sea, word_table

__all__ = ["MAX_SCALE", "SHORT", "das", "sds", "sea", "word_table"]
