"""What a teacher's codecs cost the losses: gradients by targets that went through one, beside those by exact targets.

V^ of the packaged LLM for crops of sample photos; codecs are fitted to crops of other photos than they are judged by.
"""

import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import get_args

import torch
import torch.nn.functional as F

from sea_pipeline.inputs.sources import list_samples
from tests.bench.bench_basic import BASIC, Tokens, gradient, tokens_of
from tests.bench.bench_label import crops
from tests.bench.measure import Figure
from tests.bench.steps import BATCH, conversations, one_step, prepare
from trainer.losses import equations
from trainer.targets.codecs import CodecName, fit_codec

CROPS, JUDGED_BY = 88, 3
"""Crops of all sample photos; photos that codecs are judged by, a crop of each."""


def figures() -> Iterator[Figure]:
    """teacher.*."""
    with tempfile.TemporaryDirectory() as scratch, redirect_stderr(StringIO()):
        prepare(Path(scratch))
        judge, others = _tokens(Path(scratch))
        yield from _figures(judge, others)


def _tokens(scratch: Path) -> tuple[Tokens, torch.Tensor]:
    """Tokens of the photos that codecs are judged by, and V^ of crops of the others."""
    folder, photos = crops(scratch / "crops", CROPS), len(list_samples(None).samples)
    names = sorted(path.name for path in folder.iterdir())  # the crop i is of the photo i % photos
    others = [name for place, name in enumerate(names) if place % photos >= JUDGED_BY]
    chosen = names[:JUDGED_BY] + others
    data = {"train": str(conversations(scratch / "crops.json", chosen)), "image_root": str(folder)}
    _, trainer, _ = one_step(scratch, BASIC, data=data)

    def of(rows: range) -> Tokens:
        return tokens_of(trainer, trainer.data_collator([trainer.data[row] for row in rows]))

    starts = range(JUDGED_BY, len(chosen), BATCH)
    refined = [of(range(start, min(start + BATCH, len(chosen)))).refined for start in starts]
    return of(range(JUDGED_BY)), torch.cat(refined)


def _figures(judge: Tokens, others: torch.Tensor) -> Iterator[Figure]:
    where = f"{len(judge.refined)} tokens of {JUDGED_BY} photos; fitted to {len(others):,} of others"
    for name in get_args(CodecName):
        codec = fit_codec(name, others.numpy())
        decoded = judge._replace(refined=torch.from_numpy(codec.decode(codec.encode(judge.refined.numpy()))))
        lost = 1 - F.cosine_similarity(judge.refined.double(), decoded.refined.double(), dim=-1).mean()
        yield Figure(f"teacher.{name}.bytes", codec.bytes_per_vector, "B", f"a vector of width {codec.width}")
        yield Figure(f"teacher.{name}.lost", float(lost), "", f"1 - cosine of V^ and what was decoded, {where}")
        for term in ("das", "sds"):
            exact, coarse = (
                gradient(lambda visual, of=of, term=term: _loss(term, visual, of), judge.visual).double()
                for of in (judge, decoded)
            )
            short = "" if (name, term) == ("int8", "sds") else f"{term}."
            said = f"L_{term}'s gradient by exact targets, {where}"
            whole = F.cosine_similarity(exact.flatten(), coarse.flatten(), dim=0)
            yield Figure(f"teacher.{name}.{short}grad_cosine", float(whole), "", said)
            each = F.cosine_similarity(exact, coarse, dim=-1).quantile(0.01)
            yield Figure(f"teacher.{name}.{short}grad_cosine_p1", float(each), "", f"1st percentile of tokens; {said}")


def _loss(term: str, visual: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    if term == "das":
        return equations.das(visual, tokens.refined, tokens.attention)
    return equations.sds(visual, tokens.refined, tokens.attention, tokens.embeddings)
