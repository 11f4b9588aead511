"""Give a training run's loop and evaluator an existing model with the terms, as they know `AlignedLlava`.

Shapes: B samples of L tokens, T trained tokens, I images, d the LLM's width.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from trainer.attach.attached import Attached
from trainer.attach.families import parts_of
from trainer.attach.tiles import Tile
from trainer.model.aligned_llava import Losses

_OURS = ("predict", "targets", "rows", "seed", "draws", "images")


class AttachedModel(nn.Module):
    """An existing model and its terms, whose forward gives the losses.

    Args:
        model: of a family in `FAMILIES`.
        attached: the terms on it. Without any the loss is L_lm alone.

    Attributes:
        with_lm: True, because the model always runs whole.
        measures_gradients: False, because gradients are not told apart by term.
        sea_term: the words and the temperature, so that it trains and is in checkpoints; None without L_a.
        basic_term: None, because the watch switches BASIC off in evaluation mode by itself.
    """

    with_lm = True
    measures_gradients = False

    def __init__(self, model: nn.Module, attached: Attached) -> None:
        super().__init__()
        self.vlm = model
        self.attached = attached
        self.sea_term = attached.words if "sea" in attached.weights else None
        self.basic_term: Any = None
        self._parts = parts_of(model)

    @property
    def config(self) -> Any:  # noqa: ANN401 - of any family
        """Return the model's configuration."""
        return self.vlm.config

    @property
    def device(self) -> torch.device:
        """Return the device of the model."""
        return next(self.vlm.parameters()).device

    @property
    def projector(self) -> nn.Module:
        """Return the projector."""
        return self._parts.projector

    @property
    def llm(self) -> Any:  # noqa: ANN401 - of any family
        """Return the decoder without its head."""
        return self._parts.llm

    def get_input_embeddings(self) -> nn.Module:
        """Return the LLM's input embeddings."""
        return cast("nn.Module", self._parts.inner.get_input_embeddings())

    def part(self, name: str) -> str:
        """Return the part that a parameter belongs to, see `aligned_llava.part`."""
        return "alignment" if name.startswith("sea_term.") else self._parts.part(name.removeprefix("vlm."))

    def activation_checkpointing_enable(self, *given: Any, **named: Any) -> None:  # noqa: ANN401 - transformers'
        """Switch activation checkpointing on."""
        cast("Any", self.vlm).activation_checkpointing_enable(*given, **named)

    def forward(self, **batch: Any) -> Losses:  # noqa: ANN401 - see ChatCollator
        """Compute `Losses` from a batch of `ChatCollator`.

        In evaluation mode `lm_tokens` has the loss of each trained token, (T,). `visual` is a list of (cells, d) for
        each image: its visual tokens that have a place in it, tile by tile. `labels` is a list of int64 (cells, n) of
        the words there, best first, filled up with -1.
        """
        given = {name: value for name, value in batch.items() if name not in _OURS}
        length = batch["input_ids"].shape[1]
        rows, columns = batch["predict"] // length, batch["predict"] % length
        kept, at = columns.unique(return_inverse=True)
        if not len(kept):  # a batch of blanks
            kept = torch.zeros(1, dtype=torch.int64, device=columns.device)
        logits = self.vlm(**given, use_cache=False, logits_to_keep=kept).logits
        nats = F.cross_entropy(logits[rows, at].float(), batch["targets"], reduction="none")
        found = Losses(lm=nats.sum())
        if not len(nats):
            found["lm"] = 0.0 * logits.sum()
        if not self.training:
            found["lm_tokens"] = nats
        self._add_terms(found, batch)
        return found

    def _add_terms(self, found: Losses, batch: dict[str, Any]) -> None:
        attached, names = self.attached, [name for name, *_ in batch["images"]]
        attached.sizes = {name: (width, height) for name, width, height in batch["images"]}
        kept = attached.kept()
        if kept.visual is None:
            found["nothing"] = 0.0 * sum(
                (parameter.sum() for parameter in self._touched()), torch.zeros((), device=self.device)
            )
        if not self.training:
            if kept.visual is not None:
                tiles = self.tiles(names)
                found["visual"] = cast("Any", [torch.cat([visual for _, visual in each]) for each in tiles])
                if attached.words is not None:
                    labels = [
                        [self.labels_on(name, tile) for tile, _ in each]
                        for name, each in zip(names, tiles, strict=True)
                    ]
                    found["labels"] = [torch.cat(each) for each in labels]
            return
        if not attached.weights:
            return
        attached.step = batch["seed"]
        attached.loss(names, draws=batch["draws"])
        found |= cast("Any", attached.terms)
        if "sea" in attached.terms:
            found["sea_pairs"] = torch.tensor(attached.pairs, device=self.device)
        if kept.recorder is not None and kept.visual is not None:
            found["visual_norm"] = kept.visual.detach().float().norm(dim=-1).mean() * attached.watch.scale
            found["refined_norm"] = kept.recorder.refined.float().norm(dim=-1).mean()

    def _touched(self) -> list[nn.Parameter]:
        """List what a batch without images leaves without a gradient."""
        every = [*self.projector.parameters(), *(self.sea_term.parameters() if self.sea_term is not None else ())]
        return [parameter for parameter in every if parameter.requires_grad]

    def tiles(self, names: list[str]) -> list[list[tuple[Tile, torch.Tensor]]]:
        """Return for each image of the last forward its tiles with their visual tokens, float32 (cells, d)."""
        kept = self.attached.kept()
        return list(kept.tiles(self.attached.laid(kept, names)))

    def labels_on(self, name: str, tile: Tile) -> torch.Tensor:
        """Return the words on a tile of an image, int64 (cells, n), best first, filled up with -1."""
        attached = self.attached
        if name not in attached.cache:
            return torch.full((len(tile.cells), getattr(attached.cache, "top_n", 1)), -1)
        return torch.from_numpy(attached.labels_on(name, tile).word_ids).long()
