"""Finds weights of an LLM that a folder's readers would not get, by classes that are built without weights."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlavaConfig, LlavaForConditionalGeneration, PreTrainedConfig
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from sea_pipeline.core.errors import UserError
from trainer.model.borders import border
from trainer.model.pretrained import named, some, without_place
from trainer.model.tensor_files import BUFFERS

OTHER_LLM = "choose another such as Llama, Mistral, Gemma, Phi-3 or Qwen"


def check_alone(config: PreTrainedConfig, source: str) -> None:
    """Refuse a model of which the LLM is only a part, unless transformers loads that part alone.

    transformers lists whole models among its causal LMs. For some, such as Qwen3.5, the listed class is the LLM's, and
    loads its part of the weights. For others, such as Gemma 3, it is the whole model's.

    Raises:
        UserError: see above.
    """
    try:
        text = config.get_text_config()
    except ValueError:  # it has several
        text = None
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if text is not config and kind.config_class is not type(text):
        raise UserError(
            f"{source}: expected an LLM alone; found the model type {config.model_type!r}, of which the LLM is only a "
            "part; give an LLM such as google/gemma-3-1b-it"
        )


def check_llm(config: PreTrainedConfig, source: str) -> None:
    """Refuse an LLM of which a LLaVA folder would not hold all, before its weights are read.

    Raises:
        UserError: transformers' LLaVA cannot be built around it, or has other weights than it.
    """
    with named(source):
        llm = _without_weights(config)
    built = border(f"{source}: transformers' LLaVA cannot be built around this LLM", OTHER_LLM, given=True)
    with built, torch.device("meta"):
        llava = LlavaForConditionalGeneration(LlavaConfig(text_config=deepcopy(llm.config)))
    check_places(llm, llava, source)


def check_places(llm: Any, llava: LlavaForConditionalGeneration, source: str) -> None:  # noqa: ANN401 - any causal LM
    """Compare an LLM's weights with those that a LLaVA has for it, by name and shape.

    Raises:
        UserError: they differ. A LLaVA's head has no bias, for example.
    """
    base, head = _parts(llm)
    own = {}
    for name, value in llm.state_dict().items():
        for part, place in ((base, "model.language_model"), (head, "lm_head")):
            if part and name.startswith(f"{part}."):
                own[place + name.removeprefix(part)] = tuple(value.shape)
                break
        else:
            own[name] = tuple(value.shape)
    places = ("model.language_model.", "lm_head.")
    theirs = {name: tuple(value.shape) for name, value in llava.state_dict().items() if name.startswith(places)}
    if differing := sorted(name for name in own.keys() | theirs.keys() if own.get(name) != theirs.get(name)):
        found, there = own.get(differing[0], "none"), theirs.get(differing[0], "none")
        raise UserError(
            f"{source}: expected an LLM all of whose weights have a place in transformers' LLaVA, whose head has no "
            f"bias; found {some(differing)} (shape {found} in the LLM, {there} in LLaVA); {OTHER_LLM}"
        )


def check_head(model: Any, source: str) -> None:  # noqa: ANN401 - any causal LM, or a LLaVA
    """Refuse a head of its own in a model whose config says that its LLM's head is the embeddings.

    transformers 5 then uses the head of the files, and other readers do not.

    Raises:
        UserError: see above.
    """
    head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    text = model.config.get_text_config()
    if text.tie_word_embeddings and head is not embeddings and not torch.equal(head, embeddings):
        raise other_head(source, "" if text is model.config else "text_config.")


def other_head(source: str, part: str) -> UserError:
    """Make the error of `check_head`, where the config's key is in `part`."""
    key = f"{part}tie_word_embeddings"
    return UserError(
        f"{source}: its config.json says {key}: true, but its weights hold a head that differs from its embeddings; "
        f"give a copy of its folder whose config.json says {key}: false"
    )


def body(llm: Any) -> Any:  # noqa: ANN401 - any causal LM
    """Return an LLM without its head.

    Llama 4's class names a part as its `base_model` that only whole models have.
    """
    if llm.base_model is not llm:
        return llm.base_model
    embed = llm.get_input_embeddings()
    return next((child for child in llm.children() if any(one is embed for one in child.modules())), llm)


def stored_names(config: PreTrainedConfig) -> tuple[str, str]:
    """Return the prefixes that an LLM's own folder has for its body and its head.

    For Llama they are `model` and `lm_head`, for GPT-NeoX `gpt_neox` and `embed_out`.
    """
    llm = _without_weights(config)
    base, head = _parts(llm)
    weight = f"{head}.weight"
    (stored,) = revert_weight_conversion(llm, {weight: llm.get_parameter(weight)})
    return base, stored.removesuffix(".weight")


def unread(kind: Any, folder: Path) -> list[str]:  # noqa: ANN401 - an Auto class or a model class
    """List in which weights the files of a folder and the class that reads them differ, by name and shape.

    Only the files' headers are read.
    """
    model, report = kind.from_pretrained(
        folder, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False
    )
    mismatched = {name for name, *_ in report["mismatched_keys"]}
    return sorted({*report["missing_keys"], *mismatched, *misplaced(model, report["unexpected_keys"])})


def misplaced(model: nn.Module, unexpected: set[str], *, cut: bool = False) -> list[str]:
    """Find the weights in a folder's files that its model should have, and has not.

    A tower's files may hold modules that the model does not use. Those of the LLM and the projector may not.

    Args:
        model: a causal LM or a LLaVA.
        unexpected: names in the files that the model does not have, as the model spells them.
        cut: whether layers and head of the LLM were left out on purpose.
    """
    tower = {name for name in unexpected if name.startswith("model.vision_tower.")}
    left_out = {name for name in unexpected if name == "lm_head.weight" or name.startswith("model.language_model.")}
    found = {*without_place(model, tower), *(unexpected - tower - (left_out if cut else set()))}
    return sorted(name for name in found if not BUFFERS.search(name))


def _without_weights(config: PreTrainedConfig) -> Any:  # noqa: ANN401 - any causal LM
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(deepcopy(config), trust_remote_code=False)


def _parts(llm: Any) -> tuple[str, str]:  # noqa: ANN401 - any causal LM
    """Return the names of an LLM's body and of its head within it, empty if it has none."""
    names = {id(module): name for name, module in llm.named_modules()}
    return names[id(body(llm))], names.get(id(llm.get_output_embeddings()), "")
