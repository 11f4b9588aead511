"""Defines the model that trains, a stock LLaVA whose forward also gives the losses.

Shapes: B samples of L tokens, I images of m visual tokens, d the LLM's width, T trained tokens.
"""

import json
from pathlib import Path
from typing import Any, Self, TypedDict, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.modeling_outputs import BaseModelOutputWithPooling

from trainer.losses.basic_term import BasicTerm
from trainer.losses.compilation import uncompiled, uncompiled_itself
from trainer.losses.equations import at_least_float32
from trainer.losses.sea_term import SeaTerm
from trainer.towers import sides


class Batch(TypedDict, total=False):
    """A batch from the collator for the forward, right-padded, with image tokens expanded."""

    input_ids: torch.Tensor
    """int64 (B, L)."""
    attention_mask: torch.Tensor
    """int64 (B, L)."""
    predict: torch.Tensor
    """int64 (T,): positions in the flattened (B * L) whose next token is trained."""
    targets: torch.Tensor
    """int64 (T,): those next tokens."""
    pixel_values: torch.Tensor
    """float32 (I, 3, height, width); absent if no sample has an image."""
    features: torch.Tensor
    """float32 (I, m, tower width), the projector's input, in place of `pixel_values`."""
    sea_patches: torch.Tensor
    """int64 (N,): drawn patches as rows of the flattened (I * m)."""
    sea_words: torch.Tensor
    """int64 (N,): their words."""
    refined: torch.Tensor
    """float32 (I, m, d): V^ of Eq. 4 from a teacher's cache; absent if it is computed."""
    attention: torch.Tensor
    """float32 (I, m): a of Eq. 5, with `refined`."""
    rows: torch.Tensor
    """int64 (B,): the samples' rows in the data."""
    seed: int
    """The seed of the draws for the batch as a whole."""


class Losses(TypedDict, total=False):
    """The result of a training forward; a term that is switched off is absent."""

    lm: torch.Tensor
    """L_lm summed over the trained tokens, a scalar."""
    lm_tokens: torch.Tensor
    """The summands of `lm` in evaluation mode: the loss in nats of each of `Batch.targets`, (T,)."""
    sea: torch.Tensor
    """L_a, a scalar."""
    sea_pairs: torch.Tensor
    """N of Eq. 9, the pairs that are left after all dropping."""
    das: torch.Tensor
    """L_das, a scalar."""
    sds: torch.Tensor
    """L_sds, a scalar."""
    visual_norm: torch.Tensor
    """The mean length of V as the LLM's first layer gets it, with BASIC's terms."""
    refined_norm: torch.Tensor
    """The mean length of V^, with BASIC's terms."""
    nothing: torch.Tensor
    """0 with a graph to the projector and the temperature, so that a batch without images gives both a gradient."""
    visual: torch.Tensor
    """V, (I, m, d); (1, N, d) of the drawn patches alone if L_a is the only term."""
    labels: list[torch.Tensor]
    """For an existing model in evaluation mode: the words of each image's visual tokens, int64 (cells, n)."""
    visual_lm: torch.Tensor
    """V on its way into the LLM, with the same numbers and a gradient of its own."""
    visual_sea: torch.Tensor
    """V on its way into L_a, (I * m, d)."""
    visual_das: torch.Tensor
    """V on its way into L_das, (I * m, d); its gradient stops before the tower."""
    visual_sds: torch.Tensor
    """V on its way into L_sds, as for L_das."""


class AlignedLlava(LlavaForConditionalGeneration):
    """LLaVA with the papers' terms inside its forward, where DDP and FSDP see every use of the projector.

    Without `targets` the forward is the stock one. `save_pretrained` writes a stock folder. `torch.compile` compiles
    the tower and the LLM, but no V on its way into a term, because hooks on what compiled code returns never fire.
    """

    measures_gradients = True
    """Whether the forward gives V by term, so that gradients on the projector are told apart."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config)
        self.sea_term: SeaTerm | None = None
        self.basic_term: BasicTerm | None = None
        self.with_lm = True
        """Whether L_lm is computed; without it the LLM's layers are not touched."""

    @property
    def projector(self) -> nn.Module:
        """Return the projector."""
        projector: nn.Module = self.model.multi_modal_projector
        return projector

    @property
    def llm(self) -> Any:  # noqa: ANN401 - any decoder
        """Return the decoder without its head."""
        return self.model.language_model

    def part(self, name: str) -> str:
        """Return the part that a parameter belongs to, see the function `part`."""
        return part(name)

    def train(self, mode: bool = True) -> Self:
        """Set the training flag, but keep a frozen tower in eval mode.

        In training mode towers are random: DINOv3 rescales its positions, and others may have dropout.
        """
        super().train(mode)
        self.model.vision_tower.train(mode and self._tower_trains())
        return self

    def _tower_trains(self) -> bool:
        return any(parameter.requires_grad for parameter in self.model.vision_tower.parameters())

    @uncompiled_itself
    def forward(self, input_ids: torch.Tensor | None = None, **batch: Any) -> Any:  # noqa: ANN401
        """Compute `Losses` from a `Batch`.

        Without `targets` it gives what the stock model gives.
        """
        if "targets" not in batch:
            return super().forward(input_ids=input_ids, **batch)
        given = Losses()
        features, has_images = batch.get("features"), "features" in batch or "pixel_values" in batch
        if features is None:
            features = self.tower_output(batch["pixel_values"] if has_images else self._blank())
        patches = batch.get("sea_patches")
        if not self.with_lm and self.basic_term is None and patches is not None:
            features = features.flatten(0, 1)[patches].unsqueeze(0)  # no term uses the other visual tokens
            patches = torch.arange(len(patches), device=patches.device)
        visual = self.projected(features)
        encoded, term = None, self.sea_term
        # With `gather` all processes meet in L_a, even one whose batch has no images.
        in_term = term is not None and patches is not None and (has_images or term.gather)
        if has_images or in_term:
            given["visual"], given["visual_lm"] = visual, visual.view_as(visual)
        if has_images:
            encoded = BaseModelOutputWithPooling(pooler_output=cast("Any", list(given["visual_lm"])))
        else:
            given["nothing"] = 0.0 * (visual.sum() + (term.log_scale.sum() if term is not None else 0.0))
        if has_images and self.basic_term is not None:
            self._basic(given, visual, features, input_ids, batch, encoded)
        elif self.with_lm:
            given |= _spoken(self._language_loss(input_ids, batch, encoded, given.get("nothing")))
        if in_term and term is not None:
            embed, words = self.get_input_embeddings(), batch["sea_words"]
            given["visual_sea"] = visual.flatten(0, 1)
            given["sea"], given["sea_pairs"] = term(given["visual_sea"], patches, words, embed, batch["seed"])
        return given

    @uncompiled_itself
    def _basic(
        self,
        given: Losses,
        visual: torch.Tensor,
        features: torch.Tensor,
        input_ids: Any,  # noqa: ANN401
        batch: dict[str, Any],
        encoded: Any,  # noqa: ANN401
    ) -> None:
        """Add BASIC's terms, and L_lm if it is on.

        The targets come from the same pass through the LLM.
        """
        term, embed = self.basic_term, self.get_input_embeddings()
        assert term is not None
        columns = input_ids == self.config.image_token_id
        with term.watching(batch, columns, embed) as recorder:
            if self.with_lm:
                # Compiled code would not see the recorder's hooks, which come and go with each forward.
                language_loss = self._language_loss if recorder is None else uncompiled(self._language_loss)
                given |= _spoken(language_loss(input_ids, batch, encoded))
        refined, attention = (
            (batch["refined"], batch["attention"]) if recorder is None else (recorder.refined, recorder.attention)
        )
        if features.requires_grad:  # a tower that trains must not get BASIC's gradient
            visual = self.projected(features.detach())
        given |= term(visual, refined, attention, columns.sum(1) // visual.shape[1], embed)  # type: ignore[typeddict-item]
        given["visual_norm"] = visual.detach().norm(dim=-1).mean() * term.scale
        given["refined_norm"] = refined.float().norm(dim=-1).mean()

    def tower_output(self, pixels: torch.Tensor) -> torch.Tensor:
        """Compute the projector's input, (I, m, tower width), from pixels, (I, 3, height, width).

        The folder's config says which layer and which tokens it is.
        """
        layer, strategy = self.config.vision_feature_layer, self.config.vision_feature_select_strategy
        # With activation checkpointing transformers makes even a frozen tower's embeddings require a gradient.
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._tower_trains()):
            hidden = self.model.vision_tower(pixels, output_hidden_states=layer, return_dict=True).hidden_states
        chosen = [hidden[one] for one in ([layer] if isinstance(layer, int) else layer)]
        return torch.cat([one[:, 1:] if strategy == "default" else one for one in chosen], -1)

    @uncompiled
    def projected(self, features: torch.Tensor) -> torch.Tensor:
        """Compute V from the tower's output, in float32 at least.

        accelerate gives out copies of lower precisions, which are outside the losses' graph.
        """
        projector = self.model.multi_modal_projector
        return at_least_float32(projector(features.to(projector.linear_1.weight.dtype)))

    def _blank(self) -> torch.Tensor:
        size = sides(cast("Any", self.config.vision_config).image_size)
        blank: torch.Tensor = self.model.multi_modal_projector.linear_1.weight.new_zeros(1, 3, *size)
        return blank

    def _language_loss(
        self,
        input_ids: Any,  # noqa: ANN401
        batch: dict[str, Any],
        encoded: Any,  # noqa: ANN401
        nothing: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute L_lm, with logits at the trained tokens only.

        It is the sum over them, a scalar. In evaluation mode it is the loss of each, (T,).
        """
        given = {"input_ids": input_ids, "mm_encoder_outputs": {"image": encoded}}
        # Under FSDP either all processes go back through all layers, or none does.
        if nothing is not None and isinstance(self, FSDPModule):
            given = {"inputs_embeds": self.get_input_embeddings()(input_ids) + nothing}
        # No mask: padding is on the right, so causality hides it from all that counts. CUDA's flash takes no mask.
        hidden = self.model(use_cache=False, **given).last_hidden_state
        logits = self.lm_head(hidden.flatten(0, 1)[batch["predict"]])
        return F.cross_entropy(logits.float(), batch["targets"], reduction="sum" if self.training else "none")

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: Any,  # noqa: ANN401
        **options: Any,  # noqa: ANN401
    ) -> None:
        """Write a stock `LlavaForConditionalGeneration` folder.

        Its class name and its tensors are the stock ones.
        """
        state = options.pop("state_dict", None) or self.state_dict()
        state = {name: tensor for name, tensor in state.items() if not name.startswith("sea_term.")}
        super().save_pretrained(save_directory, state_dict=state, **options)
        config = Path(save_directory) / "config.json"
        written = json.loads(config.read_text("utf-8"))
        written["architectures"] = [LlavaForConditionalGeneration.__name__]
        config.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", "utf-8")


def _spoken(loss: torch.Tensor) -> Losses:
    """Name L_lm of the batch, and of its tokens if the loss has them."""
    return Losses(lm=loss.sum(), lm_tokens=loss) if loss.ndim else Losses(lm=loss)


# Files and the model spell weights differently. Without this mapping transformers would leave our lm_head random.
register_checkpoint_conversion_mapping(
    AlignedLlava.__name__, get_checkpoint_conversion_mapping("llava"), overwrite=True
)


def part(name: str) -> str:
    """Return the part that a parameter of `AlignedLlava` belongs to.

    It is projector, vision, llm, lora or alignment.
    """
    if "sea_term." in name:
        return "alignment"
    for within, found in (("multi_modal_projector", "projector"), ("vision_tower", "vision"), (".lora_", "lora")):
        if within in name:
            return found
    return "llm"
