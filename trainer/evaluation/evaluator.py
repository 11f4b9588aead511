"""Measure a model on held-out samples, both how well it speaks and where its visual tokens lie.

Shapes: I images of m visual tokens, d the LLM's width, q words of the list, V its vocabulary.
"""

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from accelerate.utils import send_to_device

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT, Advance, Reporter
from sea_pipeline.encoders import Encoder, EncoderOptions, load_encoder
from sea_pipeline.encoders.word_cache import word_embeddings
from sea_pipeline.inputs.wordlists import WordList
from sea_pipeline.labels.store import LabelStore
from trainer.attach.run_model import AttachedModel
from trainer.data.bad_rows import image_names
from trainer.data.dataset import TrainingData, TrainingLabels
from trainer.losses.embeddings import llm_embeddings
from trainer.measures import metrics
from trainer.measures.blind_control import Controls, by_sample, content_tokens, one_spelling, others, with_other_photos
from trainer.model.aligned_llava import AlignedLlava, Batch
from trainer.model.reader import at_rest
from trainer.words import Prefix, llm_word_table, whole_words

EvaluatedModel = AlignedLlava | AttachedModel
"""What is measured: a LLaVA of ours, or an existing model."""


class ShownImage(NamedTuple):
    """An image as part of a sample.

    An image may be part of several samples.
    """

    row: int
    """The sample's row in the data."""
    image_id: str


class _MetricSums(NamedTuple):
    """What the metrics need of the images read so far."""

    words: list[torch.Tensor]
    """For each image int32 (m, n): labels, -1 if a patch has fewer; one tensor for all rows of a photo."""
    tokens: list[torch.Tensor]
    """For each image (m,): nearest vocabulary tokens."""
    images: list[str]
    """The id of each image."""
    gaps: list[tuple[float, int]]
    """For each batch, the mean gap and the number of visual tokens."""
    hits: np.ndarray[Any, Any]
    """(2, 2): hits and labelled patches, for k = 1 and 10."""
    first: dict[str, torch.Tensor]  # each photo's first entry of `words`


class Evaluator:
    """Evaluate a model on the same held-out samples again and again.

    Args:
        data: held-out samples without crops, a `TrainingData`.
        labels: the labels of their images; None leaves out the metrics that need them.
        store: the labels' store, for its word list and encoder; required with `labels`.
        vocabulary: number of the LLM's token ids that are real ones; later rows only pad its matrix.
        prefix: how words are spelled, see `Sea.word_prefix`.
        batch_size: number of samples in one forward pass.
        device: device of the text encoder.

    Its helpers are public for the analyses of the same samples, `nearest_by_layer` and `token_replacement`.
    """

    reporter: Reporter = SILENT
    """Told in a line how long the words take if they are embedded for the first time."""
    describes: bool = True
    """Whether `meaningful` is measured, which needs the labels' encoder."""

    def __init__(
        self,
        data: Any,  # noqa: ANN401 - or the data of a subclass
        labels: TrainingLabels | None,
        store: LabelStore | None,
        *,
        vocabulary: int,
        prefix: Prefix = "space",
        batch_size: int = 8,
        device: str = "cpu",
    ) -> None:
        self.data = copy(data)
        self.data.rows = one_spelling(data.rows)
        self.batch_size = batch_size
        self._labels = labels
        self._store = store
        self._vocabulary = vocabulary
        self._prefix = prefix
        self._device = device
        self._collate = self.data.collator(pad=0, seed=0)
        self._content_tokens: dict[int, np.ndarray[Any, Any]] = {}

    def __call__(self, model: EvaluatedModel, advance: Advance = lambda _: None) -> dict[str, float]:
        """Compute all metrics by name, and leave the model in the mode it was in.

        With the LLM's layers: `trained_tokens`, the number of scored tokens; `lm_loss`, nats per trained token;
        `lm_loss_other`, the same with another photo's visual tokens, over samples with photos; `right_photo_gain`, how
        much higher that is than the loss of these samples with their own photos, which is 0 for a model that does not
        look. `lm_loss_content` and `right_photo_gain_content` are over tokens of content words alone. Each has its
        standard error over photos as `NAME_se`, see `blind_control.mean_over_photos`. A value that needs two photos is
        absent with fewer.

        For images: `tacs`, over content words; with labels also `label_hit@1`, `label_hit@10`, `gap`, `meaningful`,
        `meaningful_chance` and `distinct_tokens`. See `metrics`. `label_hit` and `meaningful` are over labelled images.
        A metric is NaN if the model gives numbers for it that are not finite, and the reporter is warned.
        """
        with evaluating(model):
            found = dict(self._metrics(model, advance))
        metrics.warn_of_unknown(found, self.reporter)
        return found

    def _metrics(self, model: EvaluatedModel, advance: Advance) -> Iterator[tuple[str, float]]:
        controls, tacs = Controls(), list[float]()
        sums = _MetricSums([], [], [], [], np.zeros((2, 2), np.int64), {})
        for number, batch in enumerate(self.batches(model.device)):
            given = model(**batch)
            if not number:  # FSDP needs a call of the whole model before one of a part
                embeddings = self.embeddings(model)
                table = self.word_table(embeddings)
            if model.with_lm:
                self._control(model, batch, given["lm_tokens"], controls)
            if "visual" in given:
                visual = [one.float() for one in given["visual"]]
                images = list(self.images(batch["rows"].tolist()))
                for (row, _), one in zip(images, visual, strict=True):
                    if len(caption := self.content_words(row)):
                        tacs.append(metrics.tacs(one, embeddings[caption.to(one.device)]))
                if table is not None:
                    sums.images.extend(image_id for _, image_id in images)
                    self._look(visual, self._labels_of(given, batch), embeddings, table, sums)
            advance(len(batch["rows"]))
        spoken = dict(controls.metrics())
        if "lm_loss" in spoken:
            yield "lm_loss", spoken.pop("lm_loss")
        if tacs:
            yield "tacs", float(np.mean(tacs))
        if sums.tokens:
            yield from metrics.known(dict(self._word_metrics(sums))).items()
        yield from spoken.items()

    def _control(self, model: EvaluatedModel, batch: Batch, nats: torch.Tensor, controls: Controls) -> None:
        """Add a batch's samples with the losses of their trained tokens, and measure the losses with other photos."""
        images = {row: self.data.rows[row]["images"] for row in batch["rows"].tolist()}
        shown = [row for row in images if self._other and images[row]]
        other: dict[int, Any] = {}
        if shown:
            again = self._batch(with_other_photos(self.data, self._other), shown, model.device)
            other = dict(zip(shown, by_sample(again, model(**again)["lm_tokens"]), strict=True))
        for row, one in zip(images, by_sample(batch, nats), strict=True):
            content = self._content(row)
            controls.add(row, images[row], content[len(content) - len(one) :], one, other.get(row))

    def _content(self, row: int) -> np.ndarray[Any, Any]:
        """Mark a sample's trained tokens that belong to content words, bool (T,).

        The result is cached for the next evaluation.
        """
        if row not in self._content_tokens:
            sample, tokenizer = self.data.rows[row], self.data.processor.tokenizer
            ids, trained, cut = (sample[name] for name in ("input_ids", "trained", "truncated"))
            self._content_tokens[row] = content_tokens(tokenizer, ids, trained, cut=cut)
        return self._content_tokens[row]

    @cached_property
    def _other(self) -> dict[str, str]:
        """Assign another photo to each photo of the data."""
        return others(image_names(self.data.rows))

    def _labels_of(self, given: Any, batch: Batch) -> list[torch.Tensor]:  # noqa: ANN401 - see subclasses
        """Look up the labels of a batch's images on their visual tokens, (m, n) for each image."""
        return list(self.words(self.images(batch["rows"].tolist())))

    def _look(
        self,
        visual: Sequence[torch.Tensor],
        words: Sequence[torch.Tensor],
        embeddings: torch.Tensor,
        table: torch.Tensor,
        sums: _MetricSums,
    ) -> None:
        """Add a batch's images, each with V (m, d) and its labels (m, n), to the sums."""
        flat = torch.cat(list(visual))
        nearest = metrics.nearest(flat, table, measure="cosine").indices.cpu()
        for position, k in enumerate((1, 10)):
            sums.hits[position] += metrics.label_hits(nearest, torch.cat(list(words)), k)
        sums.gaps.append((metrics.gap(flat, table), len(flat)))
        for image, one in zip(sums.images[-len(words) :], (each.int() for each in words), strict=True):
            first = sums.first.setdefault(image, one)
            sums.words.append(first if torch.equal(first, one) else one)
        tokens = metrics.nearest(flat, embeddings, measure="cosine").indices.cpu()
        sums.tokens.extend(tokens.split([len(one) for one in visual]))

    def _word_metrics(self, sums: _MetricSums) -> Iterator[tuple[str, float]]:
        for k, (hits, labelled) in zip((1, 10), sums.hits.tolist(), strict=True):
            if labelled:
                yield f"label_hit@{k}", hits / labelled
        gaps, counts = zip(*sums.gaps, strict=True)
        yield "gap", float(np.average(gaps, weights=counts))
        if (found := self.meaningful(sums.tokens, sums.words, sums.images)) is not None:
            yield "meaningful", found.share
            if found.chance is not None:
                yield "meaningful_chance", found.chance
        yield "distinct_tokens", float(len(torch.cat(sums.tokens).unique()))

    def nearest_words(self, model: EvaluatedModel, row: int, table: torch.Tensor | None = None) -> list[str]:
        """Find the nearest list word for each visual token of a sample's first image, row-major.

        A caller with many rows passes the model's `word_table` as `table`.

        Raises:
            UserError: a visual token is not finite.
        """
        table = self.word_table(self.embeddings(model)) if table is None else table
        assert table is not None
        assert self._store is not None
        with torch.no_grad():
            given = model(**next(self.batches(table.device, [row])))
        found = metrics.nearest(given["visual"][0].float(), table, measure="cosine")
        metrics.check_finite(found.values, f"sample {self.data.rows[row]['id']!r}")
        return [self._store.words[index] for index in found.indices.tolist()]

    def word(self, word_id: int) -> str:
        """Return a word of the labels' list."""
        assert self._store is not None
        return self._store.words[word_id]

    @property
    def labelled(self) -> bool:
        """Tell whether there are labels."""
        return self._labels is not None

    def batches(self, device: torch.device, rows: Sequence[int] | None = None) -> Iterator[Batch]:
        """Yield the samples of these rows, by default all, as batches on a device."""
        chosen = range(len(self.data)) if rows is None else rows
        for start in range(0, len(chosen), self.batch_size):
            yield self._batch(self.data, chosen[start : start + self.batch_size], device)

    def _batch(self, data: TrainingData, rows: Sequence[int], device: torch.device) -> Batch:
        return cast("Batch", send_to_device(self._collate([data[row] for row in rows]), device))

    def images(self, rows: Iterable[int]) -> Iterator[ShownImage]:
        """Yield the images of these rows, in the order in which their visual tokens enter the model."""
        for row in rows:
            for image_id in self.data.rows[row]["images"]:
                yield ShownImage(row, image_id)

    def first_images(self, limit: int | None = None) -> list[ShownImage]:
        """List the first photos of the data, at most `limit`, each at its first appearance.

        Samples without an image are skipped.

        Raises:
            UserError: no sample has an image.
        """
        first: dict[str, ShownImage] = {}
        for shown in self.images(range(len(self.data))):
            first.setdefault(shown.image_id, shown)
            if len(first) == limit:
                break
        if not first:
            raise UserError(
                f"--layers and --replace look at images; found none in {len(self.data):,} samples; give other --data"
            )
        return list(first.values())

    def places(self, batch: Batch, wanted: Container[ShownImage]) -> list[int]:
        """Find the wanted images among those of a batch, each once, because a sample may show one twice."""
        found: dict[ShownImage, int] = {}
        for place, shown in enumerate(self.images(batch["rows"].tolist())):
            if shown in wanted:
                found.setdefault(shown, place)
        return list(found.values())

    def words(self, images: Iterable[ShownImage]) -> torch.Tensor:
        """Look up the labels of images on the model's grid, int64 (images, m, n).

        They are sorted best first; -1 fills up a patch with fewer labels.
        """
        return torch.stack([self._words_of(image_id, self.data.rows[row]["id"]) for row, image_id in images])

    def meaningful(
        self, tokens: Sequence[torch.Tensor], words: Sequence[torch.Tensor], images: Sequence[str]
    ) -> metrics.MeaningfulShares | None:
        """Apply `metrics.meaningful` to the images that have labels.

        Args:
            tokens: for each image its nearest tokens, int64 (m,).
            words: for each image its `words`.
            images: the id of each image.

        Returns:
            The shares, or None if they are not wanted, if no image has labels, or if their numbers of visual tokens
            differ, because then no other photo's labels lie on the same places.
        """
        assert self._store is not None
        held = [number for number, image in enumerate(images) if image in self._store]
        if not self.describes or len({len(tokens[number]) for number in held}) != 1:
            return None
        nearest, labels = (torch.stack([each[number] for number in held]) for each in (tokens, words))
        return metrics.meaningful(nearest, *self._texts, labels, photos=[images[number] for number in held])

    def describing(self, tokens: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Mark the tokens that count for `meaningful`, bool (images, m)."""
        return metrics.describing(tokens, *self._texts, words)

    def _words_of(self, image_id: str, sample: str) -> torch.Tensor:
        assert self._labels is not None
        grid, (_, box) = self.data.grid, self.data.image(image_id, sample)
        labels = self._labels.of(image_id, grid, box)
        if labels is None:
            return torch.full((grid[0] * grid[1], self._labels.cache.top_n), -1)
        return torch.from_numpy(np.asarray(labels.word_ids, np.int64))

    def content_words(self, row: int) -> torch.Tensor:
        """List the trained token ids of a sample that are content words or parts of them, int64 (c,)."""
        sample = self.data.rows[row]
        trained = np.asarray(sample["input_ids"], np.int64)[np.asarray(sample["trained"], bool)]
        return torch.from_numpy(trained[self._content(row)])

    def embeddings(self, model: EvaluatedModel) -> torch.Tensor:
        """Return E, float32 (V, d), as the LLM uses it, without rows that only pad it."""
        return llm_embeddings(model.get_input_embeddings(), self._vocabulary).float()

    def word_table(self, embeddings: torch.Tensor) -> torch.Tensor | None:
        """Compute Eq. 8 for the labels' word list, float32 (q, d), from `embeddings`, or None without labels."""
        if self._store is None:
            return None
        return llm_word_table(embeddings, self.data.processor.tokenizer, self._store.words, self._prefix)

    @cached_property
    def _texts(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute `whole_word`, `token_text` and `word_text` of `metrics.meaningful`.

        The list's words are the first rows of `token_text`.
        """
        assert self._store is not None
        listed = self._store.words
        by_token = whole_words(self.data.processor.tokenizer, self._vocabulary)
        others = tuple(sorted(set(by_token.values()).difference(listed)))
        position = {word: index for index, word in enumerate((*listed, *others))}
        rows = torch.full((self._vocabulary,), -1, dtype=torch.long)
        for token, word in by_token.items():
            rows[token] = position[word]
        word_text = self._embedded(WordList("labels", listed))
        more = [self._embedded(WordList("tokens", others))] if others else []
        del self.encoder  # the model needs the memory
        return rows, torch.cat([word_text, *more]) if more else word_text, word_text

    def load_words(self) -> None:
        """Embed now what `meaningful` needs after the last batch.

        Raises:
            UserError: the labels' encoder cannot be loaded.
        """
        _ = self._texts

    @cached_property
    def encoder(self) -> Encoder:
        """Load the encoder that made the labels, which `meaningful` embeds words with.

        Raises:
            UserError: it cannot be loaded.
        """
        assert self._store is not None
        fields = self._store.manifest["fields"]["encoder"]
        return load_encoder(self._store.encoder, self._device, EncoderOptions(template=fields.get("template", "bare")))

    def _embedded(self, words: WordList) -> torch.Tensor:
        line = Reporter()  # no bar, because this may happen within another one
        line.long_work = self.reporter.long_work  # type: ignore[method-assign]
        return word_embeddings(self.encoder, words, line)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:  # noqa: ANN401 - an AlignedLlava, or an AttachedModel
    """Put a model in evaluation mode without gradients within this block, and restore its mode afterwards.

    BASIC's term is switched off.
    """
    basic = model.basic_term
    model.basic_term = None  # no metric needs it, and a teacher has targets of training data only
    try:
        with at_rest(model), torch.no_grad():
            yield
    finally:
        model.basic_term = basic
