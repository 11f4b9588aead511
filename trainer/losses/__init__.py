"""The losses of both papers, pure functions of tensors: `sea` (Eq. 9), `das` (Eq. 6), `sds` (Eq. 7), `word_table`.

It may import `recipes`, `sampling` and `sea_pipeline`.
"""

from trainer.losses.equations import (
    MAX_SCALE as MAX_SCALE,
)
from trainer.losses.equations import (
    SHORT as SHORT,
)
from trainer.losses.equations import (
    das as das,
)
from trainer.losses.equations import (
    sds as sds,
)
from trainer.losses.equations import (
    sea as sea,
)
from trainer.losses.equations import (
    word_table as word_table,
)
