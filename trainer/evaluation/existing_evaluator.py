"""Measure an existing model, `model: {attach: FOLDER}`, on held-out samples, with the metrics of `Evaluator`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import Reporter
from sea_pipeline.labels.store import LabelStore
from trainer.attach.batches import ChatData
from trainer.evaluation.evaluator import Evaluator
from trainer.measures.blind_control import content_tokens
from trainer.model.aligned_llava import Batch


class ExistingEvaluator(Evaluator):
    """Evaluate an `AttachedModel` on the same held-out samples again and again.

    The metrics are those of `Evaluator`. Another photo's visual tokens are as many as the family's processor makes of
    it. `meaningful` is left out unless all labelled images have equally many visual tokens.

    Args:
        data: held-out samples; their `max_length` is not heeded, or another photo's tokens would cut them elsewhere.
        store: the labels; None leaves out the metrics that need them. The model must have been attached to with them.
        options: see `Evaluator`.
    """

    def __init__(self, data: ChatData, store: LabelStore | None, **options: Any) -> None:  # noqa: ANN401
        super().__init__(data.uncut(), None, store, **options)
        self._trained: dict[int, list[int]] = {}

    def load_encoder(self, reporter: Reporter) -> None:
        """Load the labels' encoder, or say why `meaningful` is not measured.

        That is no error, because `meaningful` may not be measured in any case.
        """
        try:
            _ = self.encoder
        except UserError as problem:
            self.describes = False
            reporter.warning(f"meaningful is not measured, because the labels' encoder cannot be loaded: {problem}")

    @property
    def labelled(self) -> bool:
        """Tell whether there are labels."""
        return self._store is not None

    def _batch(self, data: Any, rows: Sequence[int], device: torch.device) -> Batch:  # noqa: ANN401 - as its data
        batch = super()._batch(data, rows, device)
        for number, row in enumerate(rows):  # the trained tokens are known once the processor has made them
            if row not in self._content_tokens:
                ids = batch["input_ids"][number].tolist()
                length = len(ids)
                places = batch["predict"][batch["predict"] // length == number] % length + 1
                flags = np.zeros(length, bool)
                flags[places.cpu().numpy()] = True
                self._content_tokens[row] = content_tokens(data.processor.tokenizer, ids, flags.tolist())
                self._trained[row] = [token for token, trained in zip(ids, flags, strict=True) if trained]
        return batch

    def content_words(self, row: int) -> torch.Tensor:
        """List the trained token ids of a sample that are content words or parts of them, int64 (c,)."""
        return torch.tensor(self._trained[row], dtype=torch.int64)[torch.from_numpy(self._content(row))]

    def _labels_of(self, given: Any, batch: Batch) -> list[torch.Tensor]:  # noqa: ANN401 - as `Losses`
        """Return the labels that the forward has looked up, because it knows the family's tiles."""
        return list(given["labels"])
