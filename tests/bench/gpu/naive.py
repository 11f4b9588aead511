"""L_lm + SEA + BASIC as the papers' formulas read, on transformers' own LLaVA: what the fast step is beside."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F

from trainer.model.aligned_llava import Batch
from trainer.training.align_trainer import AlignTrainer


def naive_step(trainer: AlignTrainer, batch: Batch, *, exact: bool = False) -> Callable[[], None]:
    """A step of the trainer's model: eager attentions and hidden states of all layers, both distributions in full.

    L_sds's products are in autocast's precision, as ours are; `exact`: in float32, as the formula reads.
    """
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    stock = type(model).__mro__[1]
    llm, k = model.model.language_model, model.basic_term.supervision.k
    tapped = llm.config._attn_implementation
    columns = batch["input_ids"] == model.config.image_token_id
    rows = batch["attention_mask"].bool() & ~columns

    def step() -> None:
        llm.config._attn_implementation = "eager"
        try:
            model.train()
            with trainer.accelerator.autocast():
                loss = _loss(model, stock, batch, columns, rows, k, exact)
            loss.backward()
            trainer.optimizer.step()
        finally:
            llm.config._attn_implementation = tapped
            trainer.optimizer.zero_grad()

    return step


def _loss(
    model: Any, stock: Any, batch: Batch, columns: torch.Tensor, rows: torch.Tensor, k: int, exact: bool
) -> torch.Tensor:
    given = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}  # type: ignore[literal-required]
    out = stock.forward(model, **given, output_hidden_states=True, output_attentions=True, use_cache=False)
    lm = F.cross_entropy(out.logits.flatten(0, 1)[batch["predict"]].float(), batch["targets"])
    visual = out.image_hidden_states.reshape(-1, out.image_hidden_states.shape[-1]).float()
    weights = [i**2 / sum(j**2 for j in range(1, k + 1)) for i in range(1, k + 1)]
    refined = sum(w * out.hidden_states[i + 1][columns].float() for i, w in enumerate(weights)).detach()
    scores = torch.stack([out.attentions[i].float().mean(1) for i in range(k)]).mean(0).detach()
    looked = (scores * rows.unsqueeze(-1)).sum(1)[columns].view(len(scores), -1)
    attention = (looked / looked.sum(-1, keepdim=True)).flatten() / len(scores)
    das = (attention * (F.normalize(visual, dim=-1) - F.normalize(refined, dim=-1)).square().sum(-1)).sum()
    embeddings = model.basic_term.embeddings(model.get_input_embeddings())
    embeddings = embeddings.float() if exact else embeddings
    with torch.autocast(visual.device.type, enabled=False) if exact else nullcontext():
        p, log_q = (refined @ embeddings.T).softmax(-1), (visual @ embeddings.T).log_softmax(-1)
        sds = (attention * F.kl_div(log_q.float(), p.float(), reduction="none").sum(-1)).sum()
    words = model.sea_term.word_embeddings(batch["sea_words"], model.get_input_embeddings())
    cosines = F.normalize(visual[batch["sea_patches"]], dim=-1) @ F.normalize(words, dim=-1).T
    own = torch.arange(len(cosines), device=cosines.device)
    contrast = (F.cross_entropy(cosines.float(), own) + F.cross_entropy(cosines.T.float(), own)) / 2
    total: torch.Tensor = lm + contrast + das + 0.01 * sds
    return total
