"""Terms that train nothing, because the projector is frozen: what is said, and that the advice helps."""

import ast
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from sea_pipeline.core.errors import UserError
from tests.trainer.attach.families import MAKERS, Tiny
from tests.trainer.attach.trained import attached_to, sft_trainer
from tests.trainer.attach.worlds import NAMES, Pictures
from trainer.attach import Attached, attach

BOTH: dict[str, Any] = {"sea": {}, "basic": {}}


def first_loss(made: Tiny, one: Attached, pictures: Pictures) -> list[str]:
    """What the first loss warns of."""
    made.model(**made.batch(pictures.batch(NAMES)))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        one.loss(NAMES)
    return [str(each.message) for each in heard]


@pytest.mark.parametrize(
    ("trains", "said"),
    [
        ([], "sea, das, sds: no effect on the model, because neither its projector nor its tower trains"),
        (["deepstack"], "sea, das, sds: no effect on the model, because neither its projector nor its tower trains"),
        (["visual.blocks"], "das, sds: no effect on the model, because its projector does not train"),
        (["visual.merger"], None),
    ],
)
def test_terms_that_train_nothing_are_said_once(
    trains: list[str], said: str | None, pictures: Pictures, attached: Any
) -> None:
    made = MAKERS["qwen3_vl"]()
    for name, each in made.model.named_parameters():
        each.requires_grad_(any(part in name for part in ["language_model", *trains]))
    one = attached(made, labels=pictures.open(), **BOTH)
    heard = first_loss(made, one, pictures)
    assert len(heard) == (said is not None)
    if said is not None:
        assert heard[0].startswith(f"attached.loss: {said}; give peft's configuration")
        for term in (one.terms[name] for name in said.partition(":")[0].split(", ")):
            if term.requires_grad:  # L_a's reaches the temperature
                term.backward()
        assert not any(each.grad is not None and each.grad.any() for each in made.model.parameters())
    assert first_loss(made, one, pictures) == []


def test_without_peft_the_advice_helps(pictures: Pictures, attached: Any) -> None:
    made = MAKERS["llava"]()
    made.model.requires_grad_(False)
    (heard,) = first_loss(made, attached(made, labels=pictures.open(), **BOTH), pictures)
    (path,) = re.findall(r"call model\.(\S+)\.requires_grad_\(True\)", heard)
    made = MAKERS["llava"]()
    made.model.requires_grad_(False)
    made.model.get_submodule(path).requires_grad_(True)
    assert first_loss(made, attached(made, labels=pictures.open(), **BOTH), pictures) == []


@pytest.mark.parametrize("storage", ["uint8", "bfloat16"])
def test_a_quantised_projector_is_said(storage: str, pictures: Pictures, attached: Any) -> None:
    """As bitsandbytes' load_in_4bit quantises it, which keeps four bits in either type."""
    made = MAKERS["llava"]()
    made.model.requires_grad_(False)
    one = attached(made, labels=pictures.open(), **BOTH)
    made.model(**made.batch(pictures.batch(NAMES)))
    layer = made.model.model.multi_modal_projector.linear_1
    layer.weight = torch.nn.Parameter(layer.weight.to(getattr(torch, storage)), requires_grad=False)
    layer.weight.quant_state = None
    path = re.escape("['model.multi_modal_projector'")
    with pytest.warns(
        UserWarning, match=rf"is quantised.*llm_int8_skip_modules={path}, 'lm_head'\]\), and .*={path}\]; or"
    ):
        one.loss(NAMES)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft's use of transformers
@pytest.mark.parametrize(("layers", "terms"), [(["linear_1", "linear_2"], BOTH), (["fc1"], {"sea": {}})])
def test_a_forward_without_its_adapters_is_refused(
    layers: list[str], terms: dict[str, Any], pictures: Pictures
) -> None:
    """Those of the projector, or of the tower alone."""
    peft = pytest.importorskip("peft")
    made = MAKERS["llava"]()
    model = peft.get_peft_model(made.model, peft.LoraConfig(target_modules=layers)).train()
    one = attach(model, made.processor, labels=pictures.open(), **terms)
    batch = made.batch(pictures.batch(NAMES))
    with model.disable_adapter():
        model(**batch)
    with pytest.raises(
        UserError,
        match=r"with adapters off, or through nothing that trains; call loss right after the forward that trains",
    ):
        one.loss(NAMES)
    model.merge_adapter()
    model(**batch)
    with pytest.raises(UserError, match=r"found merged adapters; call unmerge_adapter\(\) before the forward"):
        one.loss(NAMES)
    model.unmerge_adapter()
    model(**batch)
    one.loss(NAMES).backward()
    assert any("lora" in name and each.grad is not None for name, each in model.named_parameters())
    one.detach()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_with_adapters_on_the_llm_the_advice_helps(pictures: Pictures, tmp_path: Path) -> None:
    """The usual ones, which freeze all else."""
    pytest.importorskip("trl")
    from peft import LoraConfig

    saved: list[str] | None = None
    for _ in range(2):
        made, one = attached_to("qwen2_5_vl", pictures, **BOTH)
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=saved)
        start = [each.clone() for each in made.model.model.visual.merger.parameters()]
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            sft_trainer(made, pictures, tmp_path, one, peft_config=config, max_steps=2).train()
        said = [str(each.message) for each in heard if str(each.message).startswith("attached.loss")]
        if saved is None:
            (message,) = said
            (shown,) = re.findall(r"modules_to_save=(\[.*?\])", message)
            saved = ast.literal_eval(shown)
    assert said == []
    copied = [each for name, each in one._parts.projector.named_parameters() if "modules_to_save" in name]
    assert len(copied) == len(start)
    assert not any(torch.equal(new, old) for new, old in zip(copied, start, strict=True))
