"""Makes a stock `LlavaForConditionalGeneration` folder from any vision tower and any causal LM."""

import math
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from sea_pipeline.core.errors import UserError
from sea_pipeline.storage.hashing import canonical_json
from sea_pipeline.storage.publish import publish_folder
from trainer.model.borders import border, saving
from trainer.model.digests import part_path
from trainer.model.folder_check import check_model_folder as check_model_folder
from trainer.model.folder_check import image_shape
from trainer.model.llava_folder import ALIGNMENT
from trainer.model.llm_weights import OTHER_LLM, body, check_head, check_places, unread
from trainer.model.message_forms import IMAGE_TOKEN
from trainer.model.parts import LlmPart, VisionPart, load_llm, load_vision, quiet
from trainer.model.pretrained import some
from trainer.model.prompts import front
from trainer.model.settings import Projector
from trainer.model.tokenizer import check_saved_tokenizer, prepare_tokenizer

_ROWS = 64
"""Embedding matrices grow to a multiple of this many rows."""


def init_model(
    vision: str,
    llm: str,
    out: Path,
    *,
    projector: Projector = "mlp2x_gelu",
    feature_layer: int | None = None,
    seed: int = 0,
    dtype: str = "float32",
) -> Path:
    """Make a model folder from a vision tower, a new projector and an LLM, whole or not at all.

    The folder holds what transformers writes for a LLaVA (config, safetensors, generation config, tokenizer, processor
    with chat template) and `alignment.json`. That has the version, `vocabulary` (the number of token ids that the LLM
    had before ours were added), the arguments `vision`, `llm`, `projector` and `seed`, and `paths`, the parts that were
    files of this machine.

    Args:
        vision: see `parts.load_vision`.
        llm: see `parts.load_llm`.
        out: the folder, absent or empty.
        projector: "mlp2x_gelu" is LLaVA-1.5's, with the biases and the initialisation of `torch.nn.Linear`. "linear"
            makes the second of LLaVA's two layers the identity, and training must keep it so.
        feature_layer: the hidden state of the tower to use; None: the tower's usual one.
        seed: of the projector's weights.
        dtype: of all weights: "float32", "bfloat16" or "float16".

    Returns:
        `out`.

    Raises:
        UserError: `out` is not empty, or a part is unknown, incomplete or does not fit.
    """
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"dtype = {dtype}: expected float32, bfloat16 or float16")
    with quiet(), publish_folder(out) as scratch:
        weights = getattr(torch, dtype)
        vision_part = load_vision(vision, weights, feature_layer)
        llm_part = load_llm(llm, weights, for_llava=True)
        with saving(out):
            vocabulary = _save(vision_part, llm_part, llm, scratch, projector, seed)
        alignment: dict[str, Any] = {"version": 1, "vocabulary": vocabulary, "vision": vision, "llm": llm}
        paths = [part for part, spec in (("vision", vision), ("llm", llm)) if part_path(spec) is not None]
        alignment |= {"projector": projector, "seed": seed} | ({"paths": paths} if paths else {})
        (scratch / ALIGNMENT).write_bytes(canonical_json(alignment))
        check_model_folder(scratch)
        for file in scratch.glob("*.safetensors"):  # they are written readable by their owner only
            shutil.copymode(scratch / "config.json", file)
    return out


def _save(vision: VisionPart, llm: LlmPart, source: str, folder: Path, projector: Projector, seed: int) -> int:
    """Write transformers' files.

    Returns:
        The number of token ids that the LLM had of its own.
    """
    model: Any = llm.model
    probe = torch.arange(8).unsqueeze(0)
    check_head(model, source)
    expected = _logits(model, probe, source)
    _check_finite(expected, model.dtype, source)
    vocabulary = _vocabulary(llm, source)
    tokenizer, ends = prepare_tokenizer(llm.tokenizer, source)
    ends |= _ends(model, source)
    _grow(model, vocabulary, len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.name_or_path = ""  # it is a path of this machine

    config = _config(vision, model, tokenizer, projector)
    llava = _assemble(config, vision, model, _projector(config, seed), source)
    step = torch.finfo(model.dtype).eps  # a longer head may round the same sums differently by this
    found = _logits(llava, probe, source, " inside transformers' LLaVA")
    if not torch.allclose(found[..., :vocabulary], expected[..., :vocabulary], rtol=max(1e-3, 2 * step), atol=1e-3):
        raise UserError(
            f"{source}: inside transformers' LLaVA this LLM gives other logits than alone, as one with capped or "
            f"scaled logits does; {OTHER_LLM}"
        )
    llava.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=sorted(ends), pad_token_id=tokenizer.pad_token_id
    )
    _check_generates(llava, probe, source)
    llava.save_pretrained(folder)
    if lost := unread(LlavaForConditionalGeneration, folder):
        raise UserError(
            f"{source}: expected an LLM whose weights transformers' LLaVA reads as it writes them; found others than "
            f"were written, {some(lost)}; {OTHER_LLM}"
        )
    _processor(vision, tokenizer).save_pretrained(folder)
    check_saved_tokenizer(folder, tokenizer, source)
    return vocabulary


def _vocabulary(llm: LlmPart, source: str) -> int:
    """Count the token ids that the LLM has of its own, and refuse a tokenizer of another LLM.

    A token that was added to the tokenizer may lack a row, as Gemma 3's for images does. Others may not.
    """
    model, tokenizer = cast("Any", llm.model), cast("Any", llm.tokenizer)
    rows: int = model.get_input_embeddings().num_embeddings
    words = set(tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False).values())
    used = words - tokenizer.added_tokens_decoder.keys()
    used |= {tokenizer.bos_token_id, tokenizer.eos_token_id, *front(tokenizer)} - {None}
    if max(used) >= rows:
        raise UserError(
            f"{source}: expected a row of the LLM's embeddings for each word of its tokenizer, and for BOS and EOS; "
            f"found {rows} rows and the id {max(used)}; give the LLM with the tokenizer that it was trained with"
        )
    ids: int = max(tokenizer.get_vocab().values()) + 1
    return min(ids, rows)


def _check_finite(logits: torch.Tensor, dtype: torch.dtype, source: str) -> None:
    if not logits.isfinite().all():
        name = str(dtype).removeprefix("torch.")  # bfloat16 has the range of float32
        advice = "give --dtype bfloat16" if dtype == torch.float16 else "its weights are damaged; copy it again"
        raise UserError(f"{source}: its logits are not finite in {name}; {advice}")


def _config(vision: VisionPart, llm: Any, tokenizer: PreTrainedTokenizerBase, projector: Projector) -> LlavaConfig:  # noqa: ANN401
    height, width = image_shape(vision.image_processor, "the tower")[-2:]
    patch = int(vision.tower.config.patch_size)
    return LlavaConfig(
        vision_config=vision.tower.config,
        text_config=llm.config,
        image_token_index=int(tokenizer.encode(IMAGE_TOKEN, add_special_tokens=False)[0]),
        image_seq_length=(height // patch) * (width // patch),
        projector_hidden_act="gelu" if projector == "mlp2x_gelu" else "linear",
        vision_feature_select_strategy=vision.select_strategy,
        vision_feature_layer=vision.feature_layer,
    )


def _processor(vision: VisionPart, tokenizer: PreTrainedTokenizerBase) -> LlavaProcessor:
    return LlavaProcessor(
        image_processor=vision.image_processor,
        tokenizer=tokenizer,
        patch_size=int(vision.tower.config.patch_size),
        vision_feature_select_strategy=vision.select_strategy,
        chat_template=tokenizer.chat_template,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=vision.cls_tokens,
    )


def _grow(model: Any, vocabulary: int, tokens: int) -> None:  # noqa: ANN401 - any causal LM
    """Make room for `tokens` ids.

    The rows of added ids become the mean of the `vocabulary` rows before them.
    """
    before = model.get_input_embeddings().num_embeddings
    if tokens > before:
        model.resize_token_embeddings(tokens, pad_to_multiple_of=_ROWS, mean_resizing=False)
    ours = [
        row for row in range(vocabulary, model.get_input_embeddings().num_embeddings) if row < tokens or row >= before
    ]
    with torch.no_grad():
        for matrix in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            matrix[ours] = matrix[:vocabulary].float().mean(0).to(matrix.dtype)


def _projector(config: LlavaConfig, seed: int) -> nn.Module:
    """Make LLaVA's projector as LLaVA initialises it, not with transformers' normal(0.02)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projector = LlavaMultiModalProjector(config)
    if config.projector_hidden_act == "linear":
        nn.init.eye_(projector.linear_2.weight)
        nn.init.zeros_(projector.linear_2.bias)
    return projector


def _assemble(config: LlavaConfig, vision: VisionPart, llm: Any, projector: nn.Module, source: str) -> Any:  # noqa: ANN401
    """Put the parts into a LLaVA without copying them."""
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(config)
    check_places(llm, llava, source)
    llava.model.vision_tower = vision.tower
    llava.model.multi_modal_projector = projector.to(llm.dtype)
    llava.model.language_model = body(llm)
    llava.lm_head = llm.get_output_embeddings()
    return llava.eval()


@torch.inference_mode()
def _logits(model: Any, ids: torch.Tensor, source: str, where: str = "") -> torch.Tensor:  # noqa: ANN401 - any LLM
    """Compute logits for token ids, and then for inputs that are no token's embeddings, as visual tokens are not.

    For the latter the head's inputs are enlarged and its logits made small again, which changes nothing if the head is
    linear. A soft cap would not show in small logits.
    """
    model.eval()
    with border(f"{source}: cannot run{where}", OTHER_LLM, given=True):
        logits: torch.Tensor = model(input_ids=ids).logits
    embeddings = model.get_input_embeddings()(ids).roll(1, -1)
    # Logits of a few hundred, but in float16 not more than it holds.
    scale = 2.0 ** min(max(8 - math.frexp(float(logits.abs().max()))[1], 0), 10)
    enlarged = model.get_output_embeddings().register_forward_pre_hook(lambda _, given: (given[0] * scale,))
    where += " on inputs that are no tokens, as visual ones are"
    with enlarged, border(f"{source}: cannot run{where}", OTHER_LLM, given=True):
        others: torch.Tensor = model(inputs_embeds=embeddings).logits
    return torch.cat([logits.float(), others.float() / scale])


def _check_generates(llava: Any, ids: torch.Tensor, source: str) -> None:  # noqa: ANN401 - a LLaVA
    """Refuse an LLM with a cache of its own kind, such as MiniMax's, which a LLaVA does not make."""
    with border(f"{source}: cannot generate text inside transformers' LLaVA", OTHER_LLM, given=True):
        llava.generate(input_ids=ids, max_new_tokens=2, min_new_tokens=2, do_sample=False)


def _ends(model: Any, source: str) -> set[int]:  # noqa: ANN401 - any causal LM
    """Return the ids that end an answer by the LLM's own files; one below 0 means none."""
    said, rows = model.generation_config.eos_token_id, model.get_input_embeddings().num_embeddings
    ids = said if isinstance(said, list) else [] if said is None else [said]
    if any(type(one) is not int or one >= rows for one in ids):
        raise UserError(
            f"{source}: expected eos_token_id of its generation_config.json, or of its config.json if that is absent, "
            f"to be ids below {rows}, the rows of the LLM's embeddings; found {said!r}; correct it"
        )
    return {one for one in ids if one >= 0}
