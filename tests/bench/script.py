"""The rival of `label`: what a good engineer writes in a day to give every patch of a folder of photos its words.

Images are decoded ahead in threads, by the preprocessing that comes with the model; the image tower runs in batches of
16, in bfloat16 if asked; scores are `torch.mm` and `topk` in float32, some hundreds of patches at a time; pyarrow
writes a row an image with the types of our shards. It does not do what `label` does besides: no bad images, no proof
that an answer is exact, no hashes, no resumption. Loading the model and embedding the words are not part of it.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image

BATCH, BLOCK = 16, 512


def label_by_script(
    paths: Sequence[Path],
    out: Path,
    preprocess: Callable[[Image.Image], torch.Tensor],
    tower: Callable[[torch.Tensor], torch.Tensor],
    words: torch.Tensor,
    sign: int,
    top_n: int,
) -> None:
    """Writes one Parquet file: `tower` makes (B, P, D) of pixels, `words` (W, D) are of unit length."""
    fields = [("image_id", pa.string()), ("words", pa.list_(pa.uint16())), ("scores", pa.list_(pa.float16()))]
    with ThreadPoolExecutor() as pool, pq.ParquetWriter(out, pa.schema(fields), compression="zstd") as writer:
        pixels = pool.map(lambda path: preprocess(Image.open(path).convert("RGB")), paths)
        for start in range(0, len(paths), BATCH):
            names = [path.name for path in paths[start : start + BATCH]]
            ids, scores = words_of_patches(tower(torch.stack(list(islice(pixels, BATCH)))), words, sign, top_n)
            columns = ids.flatten(1).numpy().astype(np.uint16), scores.flatten(1).numpy().astype(np.float16)
            writer.write_table(pa.table([names, *map(list, columns)], pa.schema(fields)))


@torch.inference_mode()
def words_of_patches(
    vectors: torch.Tensor, words: torch.Tensor, sign: int, top_n: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and scores (B, P, n) of the best words of each patch, by SEA's Eq. 6; id 65,535 and score 0 for none."""
    parts = F.normalize(vectors.float(), dim=-1).flatten(0, 1).split(BLOCK)
    scores, ids = (torch.cat(part) for part in zip(*((sign * p @ words.T).topk(top_n) for p in parts), strict=True))
    ids, scores = torch.where(scores < 0, 65_535, ids), scores.clamp_min(0)
    return ids.view(*vectors.shape[:2], top_n), scores.view(*vectors.shape[:2], top_n)
