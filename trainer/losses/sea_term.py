"""SEA's term of the loss as the model holds it, with its words as LLM tokens, its temperature and its negatives.

Shapes: q words of the list, F spellings of each (`word_prefix`), N drawn patches of a batch, d the LLM's width.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn

from trainer.losses import equations
from trainer.losses.compilation import uncompiled


class SeaTerm(nn.Module):
    """Computes L_a (Eq. 9) of a batch's drawn patches and words, with the learnable temperature.

    Eq. 8 is computed for the words of the batch alone. That is N rows instead of a table of q, and it stays right while
    the LLM's embeddings train.

    Args:
        tokens: for each of F spellings, for each of q words, its LLM token ids; see `word_tokens`.
        log_scale: log(1 / tau) at the start.
        learnable: whether the temperature trains.
        gather: take negatives, and one patch per word, over all processes.
        dedupe: with `gather`, what no two patches may share, the word or its LLM tokens.

    Raises:
        ValueError: the spellings are not of the same words, or a word has no token.
    """

    tokens: torch.Tensor
    """int64 (F, q, longest word), -1 after a shorter word's end."""
    keys: torch.Tensor
    """int64 (q,): with `gather`, one of the patches with equal keys is kept."""

    def __init__(
        self,
        tokens: Sequence[Sequence[Sequence[int]]],
        *,
        log_scale: float,
        learnable: bool,
        gather: bool,
        dedupe: Literal["word", "tokens"] = "word",
    ) -> None:
        super().__init__()
        if len({len(form) for form in tokens}) != 1 or not all(ids for form in tokens for ids in form):
            raise ValueError("expected at least one spelling, each of the same words, and of each word a token or more")
        longest = max(len(word) for form in tokens for word in form)
        padded = torch.full((len(tokens), len(tokens[0]), longest), -1)
        for form, spelled in enumerate(tokens):
            for word, ids in enumerate(spelled):
                padded[form, word, : len(ids)] = torch.tensor(ids)
        self.register_buffer("tokens", padded, persistent=False)
        # Words with equal tokens in all spellings share a key.
        _, same = torch.unique(padded.transpose(0, 1).flatten(1), dim=0, return_inverse=True)
        self.register_buffer("keys", same if dedupe == "tokens" else torch.arange(len(same)), persistent=False)
        self.log_scale = nn.Parameter(torch.tensor([float(log_scale)]), requires_grad=learnable)  # FSDP cuts no scalar
        self.gather = gather

    @uncompiled
    def forward(
        self,
        visual: torch.Tensor,
        patches: torch.Tensor,
        words: torch.Tensor,
        embed: nn.Module,
        seed: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute L_a and the number N of pairs that entered it.

        Args:
            visual: V, (images * m, d), the projector's output.
            patches: int64 (N,), rows of `visual`.
            words: int64 (N,), word ids; distinct unless `gather` is on.
            embed: the LLM's input embedding module.
            seed: with `gather`, decides which of the patches that share a word stays.
        """
        chosen = visual[patches]
        if self.gather:
            if dist.is_initialized() and dist.get_world_size() > 1:
                chosen, words, seed = gathered(chosen, words, seed)
            # A word twice in the batch would be its own negative in Eq. 9.
            kept = _one_per_key(self.keys[words], seed)
            chosen, words = chosen[kept], words[kept]
        loss = equations.sea(chosen, self.word_embeddings(words, embed), self.log_scale.squeeze())
        return loss, torch.full((), len(words), device=visual.device)  # unlike torch.tensor it does not wait for a GPU

    @torch.no_grad()
    def word_embeddings(self, words: torch.Tensor, embed: nn.Module) -> torch.Tensor:
        """Compute t of Eq. 8 for the given words, (N, d), in float32 at least.

        The mean is over tokens and then over spellings.
        """
        ids = self.tokens[:, words]  # (F, N, longest)
        there = (ids >= 0).unsqueeze(-1)
        vectors = embed.forward(ids.clamp(min=0))  # no call: FSDP's hooks count those, and these are too many
        vectors = equations.at_least_float32(vectors)
        # Eq. 8: the mean over a word's own tokens, as `there` leaves out the padding; then the mean over spellings
        mean: torch.Tensor = ((vectors * there).sum(2) / there.sum(2)).mean(0)
        return mean

    def clamp_scale(self) -> None:
        """Bring 1 / tau back to `MAX_SCALE` if a step took it beyond.

        Beyond it the temperature has no gradient, and could not return.
        """
        # float32 may round the logarithm itself upwards. By `data`, because graphs of other losses hold the parameter.
        self.log_scale.data.clamp_(max=math.log(equations.MAX_SCALE) - 1e-6)

    def extra_repr(self) -> str:
        """Return the size of the word list for printing."""
        return f"words={self.tokens.shape[1]}, spellings={self.tokens.shape[0]}"


def gathered(visual: torch.Tensor, words: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Gather the drawn patches and words of all processes, in the order of the ranks.

    Every process computes the same loss of all rows, and DDP averages gradients over processes. So the gradient w.r.t.
    this process's own rows is multiplied by the number of processes, and the average is the gradient of that one loss.

    Args:
        visual: (N, d), with a graph.
        words: int64 (N,); N may differ between processes.
        seed: of this process.

    Returns:
        The patches, the words, and the seed of the first process.
    """
    world, rank = dist.get_world_size(), dist.get_rank()
    # All processes must send one dtype, and one without images does not know in which the others have V.
    visual = equations.at_least_float32(visual)
    own = torch.tensor([len(words), seed], device=words.device)
    everyones = [torch.zeros_like(own) for _ in range(world)]
    dist.all_gather(everyones, own)
    sizes, seeds = zip(*torch.stack(everyones).tolist(), strict=True)
    # N differs between processes and all_gather wants equal shapes: pad to the largest, gather, cut to the sizes.
    padded_visual = visual.new_zeros(max(sizes), visual.shape[-1])
    padded_words = words.new_zeros(max(sizes))
    padded_visual[: len(visual)] = visual.detach()
    padded_words[: len(words)] = words
    all_visual = [torch.empty_like(padded_visual) for _ in range(world)]
    all_words = [torch.empty_like(padded_words) for _ in range(world)]
    dist.all_gather(all_visual, padded_visual)
    dist.all_gather(all_words, padded_words)
    rows = [part[:size] for part, size in zip(all_visual, sizes, strict=True)]
    # The value of V, and `world` times its gradient.
    rows[rank] = visual.detach() + world * (visual - visual.detach())
    return torch.cat(rows), torch.cat([part[:size] for part, size in zip(all_words, sizes, strict=True)]), seeds[0]


def _one_per_key(keys: torch.Tensor, seed: int) -> torch.Tensor:
    """Keep one patch at random for each key.

    Returns:
        Their positions, ascending, and the same on every process.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(keys), generator=generator).to(keys.device)
    # A stable sort by key of a random order: the first of each key is a random one.
    by_key = order[torch.argsort(keys[order], stable=True)]
    first = torch.ones_like(by_key, dtype=torch.bool)
    first[1:] = keys[by_key][1:] != keys[by_key][:-1]
    return by_key[first].sort().values
