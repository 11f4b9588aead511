"""Reads plain text with an LLM, for the hidden states of tokens whose own embeddings are known.

Shapes: R rows of L tokens, T of them looked at, d the LLM's width, V its vocabulary, l decoder layers.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from sea_pipeline.core.progress import Advance
from trainer.losses.embeddings import input_scale, llm_embeddings
from trainer.losses.supervision import watching_layers
from trainer.model.prompts import front

ROW = 128
"""The number of tokens of text in a row. A shorter text makes one row."""
_AT_ONCE = 8
_LOOKED_AT = 1024
"""The number of values hashed at the beginning of each weight."""
_ASIDE = ("_name_or_path", "architectures", "dtype", "transformers_version", "vocab_size", "tie_word_embeddings")
"""Keys of an LLM's configuration that change no state of a layer, besides the ids of tokens."""


@dataclass(frozen=True)
class Reader:
    """An LLM with what it needs to read text.

    Args:
        llm: a base decoder such as `LlamaModel`, whose `layers` give the residual stream.
        embed: its input embedding module.
        tokenizer: its tokenizer.
        vocabulary: V, how many of its token ids are real ones.
    """

    llm: Any
    embed: nn.Module
    tokenizer: PreTrainedTokenizerBase
    vocabulary: int

    @property
    def device(self) -> torch.device:
        """Return the device of the LLM."""
        return next(self.embed.parameters()).device

    @property
    def embeddings(self) -> torch.Tensor:
        """Return E, float32 (V, d), see `llm_embeddings`."""
        return llm_embeddings(self.embed, self.vocabulary).float()

    @cached_property
    def front(self) -> list[int]:
        """Return the ids that the tokenizer puts before a text by itself."""
        return front(self.tokenizer)

    def rows(self, text: str, tokens: int) -> torch.Tensor:
        """Cut the first tokens of a text into rows, int64 (R, L).

        Each row begins with `front`.

        Args:
            text: any. A rest that fills no row is left out, unless there is no other row.
            tokens: the most tokens of it to take.
        """
        ids = self.tokenizer([text], add_special_tokens=False, verbose=False)["input_ids"][0][:tokens]
        length = min(ROW, len(ids)) or 1
        starts = range(0, len(ids) - length + 1, length)
        rows = [[*self.front, *ids[start : start + length]] for start in starts]
        return torch.tensor(rows, dtype=torch.int64).view(len(rows), len(self.front) + length)

    def columns(self, rows: torch.Tensor) -> torch.Tensor:
        """Tell which tokens of rows are looked at, bool (R, L).

        The first of a row are not, because layers use them as a sink.
        """
        looked_at = torch.ones_like(rows, dtype=torch.bool)
        looked_at[:, : max(len(self.front), 1)] = False
        return looked_at

    @torch.no_grad()
    def read(
        self,
        rows: torch.Tensor,
        look: Callable[[int, torch.Tensor], None],
        layers: int | None = None,
        advance: Advance = lambda _: None,
    ) -> None:
        """Let the LLM read rows, a few at a time, and pass on the states of the tokens that are looked at.

        Args:
            rows: int64 (R, L).
            look: called with 0 and what the first layer gets, float32 (T, d), and with i and the i-th layer's output.
            layers: the number of layers that are looked at; None for all.
            advance: called with the number of rows done since the last call.
        """
        with at_rest(self.llm):
            for some in rows.to(self.device).split(_AT_ONCE):
                self._read(some, look, layers)
                advance(len(some))

    def _read(self, rows: torch.Tensor, look: Callable[[int, torch.Tensor], None], layers: int | None) -> None:
        at = self.columns(rows)
        look(0, self.embed(rows)[at].float() * input_scale(self.llm))
        with watching_layers(self.llm.layers[:layers], lambda number, states: look(number, states[at].float())):
            self.llm(input_ids=rows, use_cache=False)

    def digest(self) -> str:
        """Hash the LLM's sizes and the beginning of each weight with sha256.

        Adapters do not count, because they change nothing at the start.
        """
        config = self.llm.config.to_dict()
        said = {key: value for key, value in config.items() if key not in _ASIDE and not key.endswith("_token_id")}
        digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
        for name, weight in sorted(self.llm.named_parameters()):
            if ".lora_" not in name:
                digest.update(f"{name.replace('.base_layer', '')}:{weight.dtype};".encode())
                begin = weight.detach().reshape(-1)[:_LOOKED_AT].float().cpu()
                digest.update(begin.numpy().tobytes())
        return digest.hexdigest()


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode inside this block, which switches dropout off, and restore its mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
