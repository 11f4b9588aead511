"""Embed words by the text tower of an open_clip model.

W words, n texts, N tokens of a text, D the width of the space shared with images.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from sea_pipeline.core.progress import Advance
from sea_pipeline.encoders.packed import pack
from sea_pipeline.encoders.spec import Template

_TEXTS_PER_CHUNK = 512
_TEXTS_PER_BATCH = 128


def templates(name: Template) -> Sequence[Callable[[str], str]]:
    """Return the functions that put a word into a text.

    `ensemble` is OpenAI's 80 for ImageNet, from open_clip.
    """
    if name == "ensemble":
        from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

        return OPENAI_IMAGENET_TEMPLATES  # type: ignore[no-any-return]
    return [{"bare": "{}", "photo": "a photo of a {}."}[name].format]


class TextTower:
    """Embeds words, as h of SEA Eq. 5.

    Args:
        model: an open_clip model; float32, on `device`.
        tokenizer: see `ModelSource.tokenizer`.
        device: where it runs.
    """

    def __init__(self, model: Any, tokenizer: Callable[..., Any], device: str) -> None:  # noqa: ANN401 - untyped package
        self._model = model
        self._tokenizer = tokenizer
        self._device = device
        self._tower = getattr(model, "text", model)  # open_clip's class CLIP holds the parts of its text tower itself
        pooling = "pool_type" if self._tower is not model else "text_pool_type"
        self._pooling = getattr(self._tower, pooling, None)
        causal = getattr(self._tower, "attn_mask", None) is not None and getattr(self._tower, "cls_emb", None) is None
        self._cuts = causal and self._pooling in ("argmax", "eos")

    @torch.inference_mode()
    def words(self, words: Sequence[str], template: Template, advance: Advance) -> torch.Tensor:
        """Embed words, T of SEA Eq. 5, float32 (W, D) on the CPU, unit length.

        A word's vector is the mean of the vectors of its texts, each of unit length, normalised again.
        """
        if self._device == "cpu":
            pack(self._model, torch.float32)  # only now, because words that are in the cache need no tower
        forms = templates(template)
        by_length = sorted(range(len(words)), key=lambda index: (len(words[index]), index))
        embeddings: list[torch.Tensor] = []
        step = max(1, _TEXTS_PER_CHUNK // len(forms))
        for start in range(0, len(words), step):
            chosen = [words[index] for index in by_length[start : start + step]]
            texts = self.texts([form(word) for word in chosen for form in forms])
            embeddings.append(F.normalize(texts.view(len(chosen), len(forms), -1).mean(1), dim=-1).cpu())
            advance(len(chosen))
        order = torch.tensor(by_length)
        return torch.cat(embeddings)[order.argsort()]

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Embed texts, float32 (n, D) on the tower's device, unit length."""
        tokens = self._tokenizer(list(texts)).to(self._device)
        if not self._cuts:
            return torch.cat(
                [self._unit(self._model.encode_text(part)) for part in torch.split(tokens, _TEXTS_PER_BATCH)]
            )
        ends = self._ends(tokens)
        order = ends.argsort(stable=True)
        parts = torch.split(order, _TEXTS_PER_BATCH)
        return torch.cat([self._unit(self._cut(tokens[part], ends[part])) for part in parts])[order.argsort()]

    def _ends(self, tokens: torch.Tensor) -> torch.Tensor:
        """Find the position of the token whose vector stands for its text, (n,)."""
        if self._pooling == "argmax":
            return tokens.argmax(-1)
        eos: int = self._tower.text_eos_id if self._tower is self._model else self._tower.eos_id
        return tokens.eq(eos).int().argmax(-1)

    def _cut(self, tokens: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """Compute `encode_text` without the tokens after the last end, (n, D).

        The attention is causal, so no end token can see them.
        """
        tower = self._tower
        length = int(ends.max()) + 1
        hidden = tower.token_embedding(tokens[:, :length]) + tower.positional_embedding[:length]
        hidden = tower.transformer(hidden, attn_mask=tower.attn_mask[:length, :length])
        pooled = tower.ln_final(hidden[torch.arange(len(ends), device=ends.device), ends])
        projection = tower.text_projection
        if projection is None:
            vectors: torch.Tensor = pooled
        elif isinstance(projection, torch.nn.Linear):
            vectors = projection(pooled)
        else:
            vectors = pooled @ projection
        return vectors

    @staticmethod
    def _unit(vectors: torch.Tensor) -> torch.Tensor:
        return F.normalize(vectors.float(), dim=-1)
