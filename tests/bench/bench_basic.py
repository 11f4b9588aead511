"""BASIC's terms beside the ways to compute them that come to mind first: packaged models, float32 unless said."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from tests.bench.measure import Figure, in_turn, peak_bytes
from tests.bench.steps import BATCH, SEA, one_step, prepare
from trainer.losses import equations
from trainer.model.aligned_llava import Batch
from trainer.training.align_trainer import AlignTrainer

BASIC: dict[str, Any] = {"das": {"weight": 1}, "sds": {"weight": 0.01}}
HALF = {"das": {"weight": 1}, "sds": {"weight": 0.01, "precision": "bfloat16"}}


class Tokens(NamedTuple):
    """Visual tokens of real photos with their targets: V, V^ (m, d), a (m,), E (V, d)."""

    visual: torch.Tensor
    refined: torch.Tensor
    attention: torch.Tensor
    embeddings: torch.Tensor


def figures() -> Iterator[Figure]:
    """tap.*, sds.* and step.*."""
    with tempfile.TemporaryDirectory() as scratch, redirect_stderr(StringIO()):
        prepare(Path(scratch))
        yield from _figures(Path(scratch))


def _figures(scratch: Path) -> Iterator[Figure]:
    _, trainer, batch = one_step(scratch, BASIC)
    yield from _tap(trainer, batch)
    yield from _sds(tokens_of(trainer, trainer.data_collator([trainer.data[row] for row in range(3)])))
    yield from _steps(scratch)


def _tap(trainer: AlignTrainer, batch: Batch) -> Iterator[Figure]:
    """Four samples through the LLM, forward only: with a_i, without, and with transformers' own attentions."""
    model, term = trainer.model.eval(), trainer.model.basic_term
    ids, mask = batch["input_ids"][:4], batch["attention_mask"][:4]
    embeds, columns = model.get_input_embeddings()(ids), ids == model.config.image_token_id
    llm, rows = model.model.language_model, mask.bool() & (ids != model.config.image_token_id)
    tapped = llm.config._attn_implementation

    @torch.no_grad()
    def run(implementation: str, *, watched: bool = False, attentions: bool = False) -> None:
        llm.set_attn_implementation(implementation)
        if watched:
            with term.supervision.watching(columns, rows, mask.bool()):
                llm(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
        else:
            llm(inputs_embeds=embeds, attention_mask=mask, use_cache=False, output_attentions=attentions)

    without, with_tap = (lambda: run("sdpa"), lambda: run(tapped, watched=True))
    plain, seconds = in_turn(without, with_tap)
    peaks = {
        name: peak_bytes(action)
        for name, action in (("ours", with_tap), ("eager", lambda: run("eager", attentions=True)))
    }
    llm.set_attn_implementation(tapped)
    where = f"4 x {ids.shape[1]} tokens, layers 1 to {term.supervision.k}"
    yield Figure(
        "tap.time_ratio", seconds / plain, "x", f"the LLM's forward without V^ and a_i, {plain:.2f} s, {where}"
    )
    yield Figure(
        "tap.memory_ratio",
        peaks["eager"] / peaks["ours"],
        "x",
        f"ours, {peaks['ours'] / 2**20:.0f} MiB at most; transformers' eager output_attentions, {where}",
    )


def tokens_of(trainer: AlignTrainer, batch: Batch) -> Tokens:
    """A batch's, of one image a sample."""
    model, term = trainer.model.eval(), trainer.model.basic_term
    columns = batch["input_ids"] == model.config.image_token_id
    embed = model.get_input_embeddings()
    with torch.no_grad(), term.watching(dict(batch), columns, embed) as seen:
        stock = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
        visual = model(**stock).image_hidden_states.flatten(0, -2)
    images = len(columns)
    weights = term.degrees(seen.attention.view(images, -1)).flatten() / images
    return Tokens(visual, seen.refined, weights, term.embeddings(embed))


def _naive_sds(visual: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    p = (tokens.refined @ tokens.embeddings.T).softmax(-1)
    log_q = (visual @ tokens.embeddings.T).log_softmax(-1)
    return (tokens.attention * F.kl_div(log_q, p, reduction="none").sum(-1)).sum()


def gradient(loss: Callable[[torch.Tensor], torch.Tensor], visual: torch.Tensor) -> torch.Tensor:
    """That of a loss by V."""
    leaf = visual.detach().clone().requires_grad_()
    loss(leaf).backward()
    assert leaf.grad is not None
    return leaf.grad


def _sds(tokens: Tokens) -> Iterator[Figure]:
    def ours(visual: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        _, refined, attention, embeddings = tokens
        return equations.sds(visual, refined, attention, embeddings, matmul_dtype=dtype)

    ways: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "naive": lambda visual: _naive_sds(visual, tokens),
        "fp32": ours,
        "bf16": lambda visual: ours(visual, torch.bfloat16),
    }
    actions = {name: (lambda way=way: gradient(way, tokens.visual)) for name, way in ways.items()}
    products = _products(tokens, torch.bfloat16)
    naive, *rest, alone = in_turn(*actions.values(), products)
    rate = 8 * tokens.visual.numel() * len(tokens.embeddings) / alone / 1e9
    peaks = {name: peak_bytes(action) for name, action in actions.items()}
    exact = gradient(ways["naive"], tokens.visual)
    size = f"{len(tokens.visual)} tokens x {len(tokens.embeddings):,} entries, forward and backward"
    for name, seconds in zip(("fp32", "bf16"), rest, strict=True):
        yield Figure(
            f"sds.{name}.speedup", naive / seconds, "x", f"both distributions by autograd, {naive:.2f} s, {size}"
        )
        yield Figure(
            f"sds.{name}.memory_ratio",
            peaks["naive"] / peaks[name],
            "x",
            f"ours, {peaks[name] / 2**20:.0f} MiB at most; the same as above",
        )
        cosine = F.cosine_similarity(gradient(ways[name], tokens.visual).flatten(), exact.flatten(), dim=0)
        yield Figure(f"sds.{name}.grad_cosine", float(cosine), "", "the gradient of both distributions by autograd")
    yield Figure(
        "sds.bf16.gemm_floor",
        alone / rest[1],
        "of the time",
        f"ours in all, {rest[1]:.3f} s; its products with the vocabulary alone {alone:.3f} s, {rate:.0f} GFLOP/s; "
        f"autograd's over these is {naive / alone:.1f}: the most that these products allow",
    )


def _products(tokens: Tokens, dtype: torch.dtype) -> Callable[[], object]:
    """The products that `losses.sds` needs, block by block of the vocabulary, and nothing else."""
    queries = torch.cat([tokens.visual, tokens.refined]).to(dtype)
    blocks = [rows.to(dtype) for rows in torch.split(tokens.embeddings, 1024)]
    shares = torch.rand(len(queries), 1024).to(dtype)

    def multiply() -> None:
        for entries in blocks:
            _ = queries @ entries.T
            _ = shares[:, : len(entries)] @ entries

    return multiply


def _steps(scratch: Path) -> Iterator[Figure]:
    lm, ours, half = (one_step(scratch, loss).take for loss in ({}, SEA | BASIC, SEA | HALF))
    naive = _naive_step(*one_step(scratch, SEA | BASIC)[1:])
    plain, full, bf16, slow = in_turn(lm, ours, half, naive, repeats=3)
    yield Figure("step.both_fp32", full / plain, "x", f"a step of L_lm alone, {plain:.2f} s for {BATCH} samples")
    yield Figure("step.both_bf16", bf16 / plain, "x", "the same; products with the vocabulary in bfloat16")
    yield Figure(
        "step.naive_over_ours",
        slow / bf16,
        "x",
        f"ours with bfloat16 products, {bf16:.2f} s; {slow / full:.2f} with float32 ones; naive: eager attentions of "
        "all layers, the list of hidden states, loops over patches, both distributions by autograd",
    )


def _naive_step(trainer: AlignTrainer, batch: Batch) -> Callable[[], object]:
    """L_lm + SEA + BASIC as the papers' formulas read, on the stock model."""
    model, term = trainer.model, trainer.model.basic_term
    stock = type(model).__mro__[1]
    layers, sea = term.supervision.k, model.sea_term
    embeddings = term.embeddings(model.get_input_embeddings())

    def step() -> None:
        model.model.language_model.set_attn_implementation("eager")
        out = stock.forward(
            model,
            **{name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")},
            output_hidden_states=True,
            output_attentions=True,
            use_cache=False,
        )
        lm = F.cross_entropy(out.logits.flatten(0, 1)[batch["predict"]].float(), batch["targets"])
        visual = out.image_hidden_states.view(-1, out.image_hidden_states.shape[-1])
        columns = batch["input_ids"] == model.config.image_token_id
        weights = [i**2 / sum(j**2 for j in range(1, layers + 1)) for i in range(1, layers + 1)]
        refined = sum(w * out.hidden_states[i + 1][columns] for i, w in enumerate(weights)).detach()
        scores = torch.stack([out.attentions[i].mean(1) for i in range(layers)]).mean(0).detach()
        rows = batch["attention_mask"].bool() & ~columns
        degrees = torch.stack([scores[b][rows[b]].sum(0)[columns[b]] for b in range(len(scores))])
        attention = (degrees / degrees.sum(-1, keepdim=True)).flatten() / len(scores)
        das = sum(a * (F.normalize(v, dim=0) - F.normalize(r, dim=0)).square().sum()
                  for a, v, r in zip(attention, visual, refined, strict=True))  # fmt: skip
        sds = _naive_sds(visual, Tokens(visual, refined, attention, embeddings))
        words = sea.word_embeddings(batch["sea_words"], model.get_input_embeddings())
        cosines = torch.stack([F.cosine_similarity(visual[patch], words, dim=-1) for patch in batch["sea_patches"]])
        target = torch.arange(len(cosines))
        contrast = (F.cross_entropy(cosines, target) + F.cross_entropy(cosines.T, target)) / 2
        (lm + contrast + das + 0.01 * sds).backward()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return step
