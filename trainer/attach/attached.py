"""Put SEA's and BASIC's terms on a model that exists already, next to the loss it is trained with.

Shapes: B samples, I images, T visual tokens of a forward, N drawn patches, q words, d the LLM's width.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from sea_pipeline.core.errors import UserError
from sea_pipeline.label_cache import label_cache
from sea_pipeline.labels.store import LabelStore
from trainer import losses
from trainer.attach.families import check_words, parts_of
from trainer.attach.idle import refuse_without_graph, warn_of_idle
from trainer.attach.names import NameCheck, flat_names
from trainer.attach.settings import Group, check_given, check_one_device, read_settings, read_state, whole_number
from trainer.attach.terms import basic_terms
from trainer.attach.tiles import ImageTokens, Size, Tile, UnknownSizeError
from trainer.attach.watch import ForwardResults, Watch
from trainer.data.geometry import placed
from trainer.losses.supervision import Supervision
from trainer.model.load import vocabulary_of
from trainer.model.terms import sea_term
from trainer.recipes.recipe import Loss
from trainer.sampling import draw, generator, one_patch_per_word

if TYPE_CHECKING:
    from trainer.attach.looking import TileWords

ImageIds = Iterable[str | Iterable[str]]
"""The images' names in the labels, in the order of the images in a batch, as a flat list or a list per sample."""


def attach(
    model: nn.Module,
    processor: Any,  # noqa: ANN401 - any of transformers
    *,
    labels: LabelStore | None = None,
    sea: Group | None = None,
    das: Group | None = None,
    sds: Group | None = None,
    basic: Group | None = None,
    seed: int = 0,
) -> "Attached":
    """Put SEA, BASIC or both on a model.

    The model's weights and code do not change, and `detach` leaves no trace.

    Args:
        model: a model of a family in `FAMILIES`, with or without peft's adapters. Attach before DDP, FSDP or
            torch.compile wrap it.
        processor: the model's own; its image processor must make the model's images.
        labels: the result of `open_labels`, needed by SEA, `label_hit` and `gap`. They are transferred to the
            family's grids and crops.
        sea: settings of SEA's L_a, with the keys of a recipe's `loss.sea`; None means off. `weight` defaults to 1.
        das: settings of BASIC's L_das, as `loss.das`; `weight` defaults to 1.
        sds: settings of BASIC's L_sds, as `loss.sds`; `weight` defaults to 0.01.
        basic: how BASIC's targets are made, as `loss.basic`. Given without `das` and `sds` it switches both on.
        seed: seed of the patches and words that SEA draws.

    Raises:
        UserError: the family, a setting, the tokenizer or the LLM is not supported; the model is attached to already.
    """
    return Attached(model, processor, labels, read_settings(sea, das, sds, basic), seed)


class Attached:
    """The terms on one model, made by `attach`.

    Call `loss` after each forward of the model.

    Attributes:
        model: the model that was given.
        labels: the labels that were given, or None.
        terms: unweighted L_a, L_das and L_sds of the last `loss`, keyed "sea", "das", "sds"; scalars with their
            graphs, so take `.item()` for a log.
        pairs: N of the last L_a, the number of drawn patches.
        weights: weight of each term that is on, by name.
        last_ids: ids of the images of the last `loss`.
        sizes: (width, height) of images without labels, which you may set; families that cut tiles need them.
        vocabulary: number of the LLM's token ids that are real ones.
        step: decides what is drawn, together with the seed and the images' names. Each `loss` adds 1; you may set it.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,  # noqa: ANN401
        labels: LabelStore | None,
        settings: Loss,
        seed: int,
    ) -> None:
        self._parts = parts_of(model)
        check_given(self._parts.name, processor, labels, settings, seed)
        self.model, self.processor, self.settings = model, processor, settings
        self.terms: dict[str, torch.Tensor] = {}
        self.pairs = self.step = 0
        self.last_ids: list[str] = []
        self.sizes: dict[str, Size] = {}
        self.vocabulary = vocabulary_of(processor.tokenizer, self._parts.inner.config)
        self.labels, self._seed, self._trained = labels, seed, False
        self.weights = {name: float(term.weight) for name, term in settings.terms().items()}
        self._basic = settings.basic_terms()
        assert self.weights.keys() <= {"sea", *self._basic}, "a term that is not computed here would be left out"
        supervision = None
        if self._basic:
            check_one_device(model)
            supervision = Supervision(self._parts.llm, settings.basic)
        self.words = sea_term(processor.tokenizer, labels.words, self.settings.sea) if labels is not None else None
        """The words as LLM tokens, and the temperature; None without labels."""
        if self.words is not None:
            check_words(self.words.tokens, processor.tokenizer, self._parts.inner.config)
        self._watch: Watch | None = Watch(self._parts, processor, supervision, self.vocabulary)
        if self.words is not None and (device := self.watch.embed.weight.device).type != "meta":
            self.words.to(device)  # an optimizer's state is put where its parameter is when it is loaded

    def loss(self, image_ids: ImageIds = (), *, draws: Sequence[int] | None = None) -> torch.Tensor:
        """Compute the weighted sum of the terms over the visual tokens of the model's last forward.

        Add it to the model's own loss. Under gradient accumulation divide it as you divide that one. It is 0 for text
        without images. SEA is a mean over the drawn patches, BASIC a mean over samples with images.

        Args:
            image_ids: the batch's images in order, by their names in the labels. SEA skips an image without labels.
                BASIC alone needs ids only where families that cut tiles have several images in a sample.
            draws: for each image a number that decides what SEA draws for it, in place of `step`.

        Returns:
            A scalar in float32 at least, with a graph to the projector, to the tower (SEA) if that trains, and to the
            temperature.

        Raises:
            UserError: there was no forward, its images do not match the ids, none of the first names is in the labels,
                or an argument is wrong.
        """
        ids = self.last_ids = flat_names(image_ids)
        if self._parts.inner.training and torch.is_grad_enabled():
            if not self._trained:
                self._trained = True
                warn_of_idle(self._parts, self.weights)
            refuse_without_graph(self._parts, self.watch.kept, self.weights)
        kept = self.kept(ids)
        kept.ids = ids
        step = whole_number("attached.step", self.step)
        self.step += 1
        self.watch.refuse_cut_embeddings(self.model)
        looks = "sea" in self.weights and draws is None  # a recipe's run has looked at all of its data before
        if looks:
            self._names.look(ids)
        self.terms = {}
        if "sea" in self.weights:
            self.terms["sea"] = self._sea(kept, ids, step, [step] * len(ids) if draws is None else draws)
        if looks:
            self._names.look_at_pairs(ids, self.pairs)
        if self._basic and kept.visual is not None:
            self.terms |= self._of_basic(kept, ids)
        return torch.as_tensor(sum((self.weights[name] * value for name, value in self.terms.items()), torch.zeros(())))

    def parameters(self) -> list[nn.Parameter]:
        """List what trains besides the model, which is SEA's temperature, log(1 / tau), if it is learnable.

        Give it to the optimizer, without weight decay.
        """
        if "sea" not in self.weights or self.words is None or not self.words.log_scale.requires_grad:
            return []
        return [self.words.log_scale]

    def state_dict(self) -> dict[str, Any]:
        """Return what a loop of one's own saves with the model: `step` and, with SEA, `log_scale`, log(1 / tau)."""
        term = self.words if "sea" in self.weights else None
        scale = {} if term is None else {"log_scale": float(term.log_scale.detach())}
        return {"step": whole_number("attached.step", self.step), **scale}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` of the same terms returned.

        Raises:
            UserError: it is the state of other terms, or of something else.
        """
        read = read_state(state, self.state_dict())
        self.step = read["step"]
        if self.words is not None and "log_scale" in read:
            self.words.log_scale.fill_(read["log_scale"])

    @torch.no_grad()
    def average_gradients(self) -> None:
        """Average the temperature's gradient over processes, as DDP does for the model's gradients.

        All processes must call it.
        """
        if not (torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1):
            return
        for parameter in self.parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.distributed.all_reduce(gradient)
            parameter.grad = gradient / torch.distributed.get_world_size()

    def metrics(self, batches: Iterable[Mapping[str, Any]] | None = None) -> dict[str, float]:
        """Measure `label_hit@1`, `label_hit@10`, `gap`, and how much the right photo lowers L_lm.

        Args:
            batches: arguments of the model, with `image_ids` added and, for captions, `labels`. None measures the
                images of the last `loss`, without L_lm. For samples with `labels`, `right_photo_gain` and the other
                metrics of `Evaluator` compare with another photo of the batch that has equally many visual tokens.

        Raises:
            UserError: the images do not match the ids, there was no forward, or no name is in the labels though each is
                like one there.
        """
        from trainer.attach.looking import check_batches, looked_at  # imported here because training does not need it

        check_batches(batches)
        return looked_at(self, batches)

    def nearest_words(self, image_ids: ImageIds) -> "list[list[TileWords]]":
        """Find the word of the list that each visual token of the model's last forward is nearest to, by cosine.

        Args:
            image_ids: the batch's images in order, as for `loss`.

        Returns:
            For each image its tiles, in the order of their tokens. A tile has `grid`, its `box` in the image, and for
            each cell one of `words` and of `hits`, which tells whether the word is one of the cell's labels.

        Raises:
            UserError: there are no labels, there was no forward, or its images do not match the ids; or a visual token
                is not finite.
        """
        from trainer.attach.looking import nearest_words  # imported here because training does not need it

        return nearest_words(self, flat_names(image_ids))

    def detach(self) -> None:
        """Remove everything from the model, which is then as it was."""
        if self._watch is not None:
            self._watch.end()
            self._watch = None
        self.terms = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this model, so that a copy, as a spawned process gets it, is detached."""
        kept = {name: value for name, value in vars(self).items() if name not in ("cache", "_names", "_sizes")}
        return kept | {"_watch": None, "terms": {}}

    @property
    def scale(self) -> float:
        """Return 1 / tau, as L_a uses it."""
        assert self.words is not None
        return min(float(self.words.log_scale.detach().exp()), losses.MAX_SCALE)

    @property
    def logged(self) -> list[str]:
        """List the names of the values in a step's log line."""
        return [f"loss_{name}" for name in self.weights] + (["sea_pairs"] if "sea" in self.weights else [])

    # Lookups

    @property
    def is_detached(self) -> bool:
        """Tell whether `detach` was called, or this is a copy."""
        return self._watch is None

    @property
    def watch(self) -> Watch:
        """Return what replaces the model's methods.

        Raises:
            UserError: `detach` was called, or this is a copy.
        """
        if self._watch is None:
            raise UserError("attached: it was detached, or copied, as a spawned process gets it; call attach() again")
        return self._watch

    def kept(self, ids: Sequence[str] = ()) -> ForwardResults:
        """Return what the last forward made.

        Args:
            ids: the names of its images, if there are any.

        Raises:
            UserError: there was no forward, or none with images though there are ids or image tokens.
        """
        if (kept := self.watch.kept) is None:
            raise UserError("attached: expected a forward of the model before it; found none; call the model first")
        if not kept.has_images():
            kept.check_text(len(ids), needs_columns=bool(ids or self._basic))
        return kept

    @cached_property
    def cache(self) -> Any:  # noqa: ANN401 - LabelCache, or nothing
        """Unpack the labels, or return an empty collection of image ids if there are none."""
        return {} if self.labels is None else label_cache(self.labels)

    @cached_property
    def _names(self) -> NameCheck:
        return NameCheck(self.cache)

    @cached_property
    def _sizes(self) -> dict[str, Size]:
        """Map each labelled image to its (width, height)."""
        assert self.labels is not None
        return self.labels.sizes()

    def laid(self, kept: ForwardResults, ids: Sequence[str]) -> list[ImageTokens]:
        """Locate a forward's visual tokens, image by image.

        Raises:
            UserError: the visual tokens do not fit the named images.
        """
        call, family = kept.call, self._parts.family
        assert call is not None
        if family.images is not None and (count := len(call.given[family.images])) != len(ids):
            raise UserError(
                f"attached.loss: expected ids of all {count} images of the batch, in their order; found {len(ids)}"
            )
        labelled = self._sizes if self.labels is not None else {}
        sizes = [labelled.get(name, self.sizes.get(name)) for name in ids]
        laid = family.lay(call, sizes)
        call.check_total(laid, ids)
        return laid

    def located(self, kept: ForwardResults, ids: Sequence[str]) -> list[ImageTokens] | None:
        """Locate visual tokens as `laid` does; None if that needs sizes, and neither labels nor `sizes` are given."""
        try:
            return self.laid(kept, ids)
        except UnknownSizeError:
            if self.labels is not None or self.sizes:
                raise
            return None

    def labels_on(self, name: str, tile: Tile) -> Any:  # noqa: ANN401 - sea_pipeline's Labels
        """Return an image's labels on one of its grids."""
        labels = self.cache[name]
        return placed(labels, tile.grid, tile.box, transfer=True, image_id=name, middles=tile.middles)

    # The terms

    def _sea(self, kept: ForwardResults, ids: Sequence[str], step: int, draws: Sequence[int]) -> torch.Tensor:
        """Compute L_a (Eq. 9) of drawn patches, or 0 with a graph for a batch without any."""
        term, sea = self.words, self.settings.sea
        assert term is not None
        embed = self.watch.embed
        device = embed.weight.device if kept.visual is None else kept.visual.device
        term.to(device)
        term.clamp_scale()
        patches, words = self._drawn(kept, ids, draws)
        if not sea.gather:  # with `gather` the term keeps one patch per word over all processes
            keys = term.keys.cpu().numpy()[words]
            kept_ones = one_patch_per_word(keys, np.random.default_rng((self._seed, step, *_numbers(ids))))
            patches, words = patches[kept_ones], words[kept_ones]
        width = self._parts.llm.config.hidden_size
        visual = kept.visual if kept.visual is not None else embed.weight.new_zeros(0, width)
        seed = int(np.random.default_rng((self._seed, step)).integers(2**31))
        places = (torch.from_numpy(each).to(device) for each in (patches, words))
        loss, pairs = term(visual, *places, embed, seed)
        self.pairs = int(pairs)
        return torch.as_tensor(loss)

    def _drawn(self, kept: ForwardResults, ids: Sequence[str], draws: Sequence[int]) -> tuple[Any, Any]:
        """Draw patches as rows of V, and their words, as two int64 arrays (N,)."""
        patches, words = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        sea, start = self.settings.sea, 0
        laid = self.laid(kept, ids) if kept.visual is not None else ()
        if len(draws) != len(ids):
            raise UserError(
                f"attached.loss: draws: expected a number for each of {len(ids)} images; found {len(draws)}"
            )
        for name, number, one in zip(ids, draws, laid, strict=True):
            random = generator(self._seed, whole_number("attached.loss: draws", number), *_numbers([name]))
            for tile in one.tiles if name in self.cache else ():
                labels = self.labels_on(name, tile)
                drawn = draw(labels.word_ids, labels.scores, tile.grid, random, window=sea.window, ragged=sea.ragged)
                patches.append(tile.cells[drawn.patches] + start)
                words.append(drawn.words)
            start += one.tokens
        return np.concatenate(patches), np.concatenate(words)

    def _of_basic(self, kept: ForwardResults, ids: Sequence[str]) -> dict[str, torch.Tensor]:
        """Compute L_das and L_sds.

        Visual tokens are assigned to images by what the family knows of them, else by sample.
        """
        assert kept.call is not None
        count, laid = self._parts.family.count_images(kept.call), None
        if ids or count is not None:
            laid = self.located(kept, ids or [""] * (count or 0))
        embed, scale = self.watch.embed, self.watch.scale
        return basic_terms(self._basic, kept, laid, self.settings, embed, self.vocabulary, scale)


def _numbers(names: Iterable[str]) -> list[int]:
    """Convert names to numbers for seeds."""
    return [zlib.crc32(name.encode(errors="surrogatepass")) for name in names]
