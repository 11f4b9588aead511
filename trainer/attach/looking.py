"""Measure where an attached model's visual tokens lie, and how much the right photo lowers its loss.

Shapes: B samples of L tokens, T visual tokens of a forward, T_l trained tokens of a sample.
"""

import inspect
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import FSDPModule

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.crops import CropBox
from trainer.attach.names import check_measured, names_by_sample
from trainer.attach.tiles import ImageTokens
from trainer.attach.watch import ForwardResults
from trainer.measures import metrics
from trainer.measures.blind_control import Controls, content_tokens, others
from trainer.model.reader import at_rest

if TYPE_CHECKING:
    from trainer.attach.attached import Attached

COUNTED = "counted_rows"
"""The key of a batch that says how many of its first rows are measured; all if it is missing."""
_BLOCK = 4096
"""Number of words whose embeddings are computed at a time."""


class _MetricSums:
    """Sum the measurements over batches."""

    def __init__(self) -> None:
        self.hits = np.zeros((2, 2), np.int64)
        """Hits and labelled patches, for k = 1 and 10."""
        self.gap = np.zeros(2)
        """The sum over visual tokens, and the number of these."""
        self.labelled = 0
        """Number of images that have labels."""
        self.missing: dict[str, None] = {}
        """Names of images that have none."""
        self.controls = Controls()

    def metrics(self) -> dict[str, float]:
        found = {}
        for k, (hits, labelled) in zip((1, 10), self.hits.tolist(), strict=True):
            if labelled:
                found[f"label_hit@{k}"] = hits / labelled
        if self.gap[1]:
            found["gap"] = float(self.gap[0] / self.gap[1])
            found = metrics.known(found)
        return found | dict(self.controls.metrics())


class TileWords(NamedTuple):
    """The nearest words of the visual tokens of a tile, which is an image, a view of it, or a part."""

    grid: tuple[int, int]
    """(rows, columns)."""
    box: CropBox
    """The part of the image that the grid covers."""
    words: list[str]
    """The word of the list with the highest cosine for each cell, row by row."""
    hits: list[bool]
    """Whether a cell's word is one of its labels."""


@torch.no_grad()
def nearest_words(attached: "Attached", ids: Sequence[str]) -> list[list[TileWords]]:
    """Find the words of `Attached.nearest_words`.

    Raises:
        UserError: there are no labels, or the images do not match the ids; or a visual token is not finite.
    """
    if attached.words is None or attached.labels is None:
        raise UserError(
            "attached.nearest_words: expected labels, whose words it looks for; found none; give attach "
            "labels=open_labels(FOLDER)"
        )
    kept, words = attached.kept(ids), attached.labels.words
    found: list[list[TileWords]] = []
    table = _word_table(attached)
    images = kept.tiles(attached.laid(kept, ids)) if kept.visual is not None else ()
    for name, tiles in zip(ids, images, strict=True):
        found.append([])
        for tile, visual in tiles:
            nearest = metrics.nearest(visual, table, measure="cosine")
            metrics.check_finite(nearest.values, f"attached.nearest_words: {name}")
            near = nearest.indices.cpu().numpy()
            hits = [False] * len(near)
            if name in attached.cache:
                hits = (attached.labels_on(name, tile).word_ids == near[:, None]).any(1).tolist()
            found[-1].append(TileWords(tile.grid, tile.box, [words[at] for at in near], hits))
    return found


@torch.no_grad()
def looked_at(attached: "Attached", batches: Iterable[Mapping[str, Any]] | None) -> dict[str, float]:
    """Measure the metrics of `Attached.metrics`."""
    if batches is not None:
        measured = Measurement(attached)
        for batch in batches:
            measured.add(batch)
        return measured.metrics()
    looked, kept = _MetricSums(), attached.kept()
    if kept.ids is None:  # the names of an earlier forward would be of other images
        raise UserError(
            "attached.metrics: expected a loss since the model's last forward, whose images it measures; found "
            "none; call it right after loss, or give it batches"
        )
    if kept.visual is not None and attached.words is not None:
        _look(attached, kept, kept.ids, looked, _word_table(attached))
    check_measured(list(looked.missing), looked.labelled, attached.cache)
    return looked.metrics()


class Measurement:
    """The metrics of `Attached.metrics`, of batches that come one by one."""

    def __init__(self, attached: "Attached") -> None:
        self._attached = attached
        self._looked = _MetricSums()
        self._samples = 0
        """The number of samples so far that have `labels`."""

    @cached_property
    def _table(self) -> torch.Tensor:
        return _word_table(self._attached)

    @torch.no_grad()
    def add(self, batch: Mapping[str, Any]) -> None:
        """Measure one more batch, with the model in evaluation mode."""
        attached, given = self._attached, _arguments(batch)
        ids, labels, count = given.pop("image_ids", ()), given.pop("labels", None), given.pop(COUNTED, None)
        names = names_by_sample(ids)
        flat = [name for some in names for name in some]
        if labels is not None:
            labels = _whole(labels, given)
        columns, keep = _predicting(attached.model, labels)
        given |= {"logits_to_keep": keep} if _takes_keep(attached.model) else {}
        with at_rest(attached.model):
            outputs = attached.model(**given)
            kept = attached.kept(flat)
            named = flat or "sea" in attached.weights  # BASIC alone needs no names
            laid = attached.located(kept, flat) if kept.visual is not None and named else []
            if laid is None:
                laid, flat = [], []
            if kept.visual is not None and attached.words is not None and named:
                _look(attached, kept, flat, self._looked, self._table, sum(map(len, names[:count])))
            if labels is not None:
                seen = _Forward(labels, columns, kept, laid, flat)
                own = seen.nats(outputs)[:count]
                del outputs  # before the logits of the other photos
                other = _with_others(attached, given, seen)
                _add(attached, self._looked.controls, self._samples, given["input_ids"], seen, own, other)
                self._samples += len(labels)

    def metrics(self) -> dict[str, float]:
        """Return the metrics of all processes' batches."""
        looked = _of_all(self._looked)
        check_measured(list(looked.missing), looked.labelled, self._attached.cache)
        return looked.metrics()


def _whole(labels: torch.Tensor, given: Mapping[str, Any]) -> torch.Tensor:
    """Fill up labels, int64 (B, L), that a trainer has cut to the last `logits_to_keep` columns.

    Raises:
        UserError: they are of another length than input_ids for another reason.
    """
    ids, keep = given.get("input_ids"), given.get("logits_to_keep")
    if ids is None or ids.shape == labels.shape:
        return labels
    if isinstance(keep, int) and labels.shape == (len(ids), keep):
        return F.pad(labels, (ids.shape[1] - keep, 0), value=-100)
    raise UserError(
        f"attached.metrics: expected labels of the shape of input_ids, {[*ids.shape]}; found {[*labels.shape]}"
    )


def _of_all(looked: _MetricSums) -> _MetricSums:
    """Sum the measurements of all processes, on each of them."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return looked
    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, looked)
    whole = _MetricSums()
    for rank, one in enumerate(everyones):
        whole.hits += one.hits
        whole.gap += one.gap
        whole.labelled += one.labelled
        whole.missing |= one.missing
        whole.controls.join(one.controls, rank)
    return whole


def _look(
    attached: "Attached",
    kept: ForwardResults,
    ids: Sequence[str],
    looked: _MetricSums,
    table: torch.Tensor,
    count: int | None = None,
) -> None:
    """Add label_hit and gap of those visual tokens of a forward that lie in one of its first `count` images."""
    for name, tiles in islice(zip(ids, kept.tiles(attached.laid(kept, ids)), strict=True), count):
        if name in attached.cache:
            looked.labelled += 1
        else:
            looked.missing[name] = None
        for tile, visual in tiles:
            looked.gap += metrics.gap(visual, table) * len(visual), len(visual)
            if name in attached.cache:
                near = metrics.nearest(visual, table, measure="cosine").indices.cpu()
                labels = torch.from_numpy(attached.labels_on(name, tile).word_ids)
                looked.hits += [metrics.label_hits(near, labels, k) for k in (1, 10)]


def _word_table(attached: "Attached") -> torch.Tensor:
    """Compute Eq. 8 for the whole word list, (q, d)."""
    assert attached.words is not None
    embed, device = attached.watch.embed, attached.watch.embed.weight.device
    attached.words.to(device)
    every = torch.arange(attached.words.tokens.shape[1], device=device)
    return torch.cat([attached.words.word_embeddings(some, embed) for some in every.split(_BLOCK)])


def _predicting(model: nn.Module, labels: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | int]:
    """Find the columns at which a trained token of any sample is predicted, and how a forward gives their logits."""
    if labels is None:
        return torch.zeros(0), 1
    columns = (labels[:, 1:] != -100).any(0).nonzero().squeeze(1)  # the logits at position t - 1 predict token t
    if not len(columns):
        columns = columns.new_zeros(1)
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:  # the states lie on another device than these
        columns = torch.arange(int(columns[0]), labels.shape[1], device=labels.device)
        return columns, len(columns)
    return columns, columns


def _takes_keep(model: nn.Module) -> bool:
    """Tell whether a model's forward takes `logits_to_keep`, which it may drop all the same."""
    parameters = inspect.signature(model.forward).parameters
    return "logits_to_keep" in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


class _Forward(NamedTuple):
    """A forward of samples that have labels."""

    labels: torch.Tensor
    """int64 (B, L); -100 at tokens that are not trained."""
    columns: torch.Tensor
    """The columns whose logits were asked for."""
    kept: ForwardResults
    laid: Sequence[ImageTokens]
    ids: Sequence[str]
    """The images' names."""

    def trained(self) -> torch.Tensor:
        """Mark the text tokens that are predicted, bool (B, L)."""
        trained = self.labels != -100
        trained[:, 0] = False
        return trained if self.kept.columns is None else trained & ~self.kept.columns

    def nats(self, outputs: Any) -> list[npt.NDArray[np.float64]]:  # noqa: ANN401 - of any family
        """Compute the loss of each trained text token in nats, as B arrays (T_l,), from logits at columns or all."""
        whole = outputs.logits.shape[1] != len(self.columns)  # a forward that drops logits_to_keep, such as Liger's
        found = []
        for logits, targets, chosen in zip(outputs.logits, self.labels, self.trained(), strict=True):
            places = chosen.nonzero().squeeze(1)
            at = places - 1 if whole else torch.searchsorted(self.columns, places - 1)
            cost = F.cross_entropy(logits[at].float(), targets[places], reduction="none")
            found.append(cost.double().cpu().numpy())
        return found

    def samples(self) -> list[int]:
        """Find the sample of each image."""
        if not self.laid:
            return []
        assert self.kept.columns is not None
        rows = self.kept.columns.nonzero()[:, 0].tolist()
        starts = np.cumsum([0, *(one.tokens for one in self.laid)])
        return [rows[start] for start in starts[:-1]]


def _with_others(
    attached: "Attached", given: Mapping[str, Any], seen: _Forward
) -> list[npt.NDArray[np.float64] | None]:
    """Compute the same losses with the visual tokens of other photos.

    The entry is None for a sample without a photo, or with a photo that has no partner.
    """
    lengths = [one.tokens for one in seen.laid]
    partner = _partners(lengths, seen.ids)
    has_others = any(other is not None for other in partner)
    if not _is_any(attached.model, has_others):
        return [None] * len(seen.labels)
    if not has_others:
        attached.model(**given)
        return [None] * len(seen.labels)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    # The partner's visual tokens in place of the image's own; an image without a partner keeps its own.
    parts = [
        np.arange(lengths[number]) + starts[number if other is None else other] for number, other in enumerate(partner)
    ]
    assert seen.kept.visual is not None
    with attached.watch.reordered(torch.from_numpy(np.concatenate(parts)).to(seen.kept.visual.device)):
        nats = seen.nats(attached.model(**given))
    samples = seen.samples()
    shown = [[partner[image] for image, sample in enumerate(samples) if sample == row] for row in range(len(nats))]
    return [one if some and None not in some else None for one, some in zip(nats, shown, strict=True)]


def _is_any(model: nn.Module, mine: bool) -> bool:
    """Tell whether something is so in any process, if FSDP has all of them run each forward together."""
    if not (dist.is_initialized() and any(isinstance(module, FSDPModule) for module in model.modules())):
        return mine
    found = torch.tensor(int(mine), device=next(model.parameters()).device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found)


def _partners(lengths: Sequence[int], ids: Sequence[str]) -> list[int | None]:
    """Choose for each image another one with equally many tokens.

    The partner is the next image in the order of the ids' hashes; None if there is no other.
    """
    alike: dict[int, dict[str, int]] = defaultdict(dict)
    for number, (length, name) in enumerate(zip(lengths, ids, strict=True)):
        alike[length].setdefault(name, number)
    swaps = {length: others(names) for length, names in alike.items()}
    pairs = zip(lengths, ids, strict=True)
    return [alike[length][swaps[length][name]] if swaps[length] else None for length, name in pairs]


def _add(
    attached: "Attached",
    controls: Controls,
    number: int,
    input_ids: torch.Tensor,
    seen: _Forward,
    own: Sequence[npt.NDArray[np.float64]],
    other: Sequence[npt.NDArray[np.float64] | None],
) -> None:
    trained, samples = seen.trained(), seen.samples()
    for row in range(len(own)):
        names = [name for name, sample in zip(seen.ids, samples, strict=False) if sample == row]
        flags = trained[row].tolist()
        content = content_tokens(attached.processor.tokenizer, input_ids[row].tolist(), flags)
        controls.add(number + row, names, content, own[row], other[row] if names else None)


def check_batches(batches: object) -> None:
    """Refuse what is not a collection of batches.

    Raises:
        UserError: it is a batch itself, or cannot be iterated.
    """
    if isinstance(batches, Mapping) or (batches is not None and not isinstance(batches, Iterable)):
        raise UserError(
            f"attached.metrics: expected batches, such as a DataLoader or a list of dictionaries; found {type(batches)}"
        )


def _arguments(batch: object) -> dict[str, Any]:
    if not isinstance(batch, Mapping):
        raise UserError(
            "attached.metrics: expected batches that are dictionaries of the model's arguments, with image_ids added; "
            f"found {type(batch)}"
        )
    return dict(batch)
