"""A model with the tap: what it computes, keeps, saves and refuses."""

import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.utils import logging

from sea_pipeline.core.errors import UserError
from tests.support.attention_models import LAYERS, batch, config, llm, run, tapped_run
from trainer.losses import attention_tap
from trainer.losses.attention_tap import AttentionTap

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_llm_computes_what_it_computed(attention: str) -> None:
    columns, rows, valid, embeds = batch()
    model = llm(attention=attention)
    before = run(model, embeds, valid).last_hidden_state
    reading = AttentionTap(model, 2)
    closed = run(model, embeds, valid).last_hidden_state
    with reading.open(columns, rows, valid):
        opened = run(model, embeds, valid).last_hidden_state
    assert torch.equal(before, closed)
    assert torch.equal(before, opened)
    assert opened.requires_grad


def test_two_models_do_not_mix() -> None:
    columns, rows, valid, embeds = batch()
    one, other = llm(), llm(seed=1)
    other.config = one.config
    for layer in other.layers:
        layer.self_attn.config = one.config
    alone = [tapped_run(model, 2) for model in (one, other)]
    first, second = AttentionTap(one, 2), AttentionTap(other, 2)
    with first.open(columns, rows, valid) as found:
        run(other, embeds, valid)
        run(one, embeds, valid)
    assert torch.equal(found.attention, alone[0])
    with first.open(columns, rows, valid) as found, second.open(columns, rows, valid) as others:
        run(one, embeds, valid)
        run(other, embeds, valid)
    assert torch.equal(found.attention, alone[0])
    assert torch.equal(others.attention, alone[1])
    assert not torch.equal(*alone)


def test_the_tap_closes() -> None:
    columns, rows, valid, embeds = batch()
    model = llm()
    reading = AttentionTap(model, 2)
    with reading.open(columns, rows, valid) as found:
        run(model, embeds, valid)
    before = found.attention.clone()
    run(model, embeds.flip(0), valid)
    assert torch.equal(found.attention, before)
    with pytest.raises(ZeroDivisionError), reading.open(columns, rows, valid):
        raise ZeroDivisionError
    assert not any(attention_tap._OPEN in module.__dict__ for module in model.modules())
    assert model.config._attn_implementation == "sdpa"
    with reading.open(columns, rows, valid) as again:
        with pytest.raises(AssertionError, match="open already"), reading.open(columns, rows, valid):
            pass
        run(model, embeds, valid)
    assert torch.equal(again.attention, before)


def test_a_run_without_the_tap_is_noticed() -> None:
    columns, rows, valid, embeds = batch()
    model = llm()
    reading = AttentionTap(model, 2)
    with reading.open(columns, rows, valid) as found:
        with pytest.raises(AssertionError, match="has not run"):
            _ = found.attention
        model.set_attn_implementation("sdpa")
        run(model, embeds, valid)
    with pytest.raises(AssertionError, match="has not run"):
        _ = found.attention
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(UserError, match="'flex_attention'; expected one of sdpa"), reading.open(columns, rows, valid):
        pass
    model.config._attn_implementation = "sdpa"
    with AttentionTap(model, 2).open(columns, rows, valid) as found, pytest.raises(AssertionError, match="length"):
        run(model, embeds[:, 1:], valid[:, 1:])


def test_rows_of_padding_never_count() -> None:
    columns, rows, valid, embeds = batch()
    model = llm()
    with AttentionTap(model, 2).open(columns, ~columns, valid) as found:
        run(model, embeds, valid)
    assert torch.equal(found.attention, tapped_run(model, 2))
    assert (~columns & ~rows).any()


def test_a_tapped_model_is_saved_as_a_stock_one(tmp_path: Path) -> None:
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    logging.disable_progress_bar()
    made = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=config(), image_token_index=49))
    language_model = made.model.language_model
    columns, rows, valid, _ = batch()
    with AttentionTap(language_model, 2).open(columns, rows, valid):
        assert language_model.config._attn_implementation == "sea_tap_sdpa"
        made.save_pretrained(tmp_path)
    assert language_model.config._attn_implementation == "sdpa"
    assert made.model.vision_tower.config._attn_implementation == "sdpa"
    assert "sea_tap" not in (tmp_path / "config.json").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["text_config"]["model_type"] == "llama"
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert again.model.language_model.config._attn_implementation == "sdpa"


def test_other_families_and_implementations_are_refused_by_name() -> None:
    other = llm("gemma2", "eager")
    with pytest.raises(UserError, match=r"'gemma2'.*llama, mistral, gemma, .*set loss\.basic\.degree: equal"):
        AttentionTap(other, 2)
    model = llm()
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(UserError, match=r"'flex_attention'.*sdpa, eager, flash_attention_2.*degree: equal"):
        AttentionTap(model, 2)
    assert model.config._attn_implementation == "flex_attention"
    for layers in (0, LAYERS + 1):
        with pytest.raises(AssertionError):
            AttentionTap(llm(), layers)
