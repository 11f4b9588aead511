"""The tap against transformers' own `output_attentions` under eager attention, summed in plain loops."""

import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    modeling_flash_attention_utils,
)
from transformers.utils import logging

from sea_pipeline.errors import UserError
from trainer import tap
from trainer.tap import FAMILIES, AttentionTap, Tapped

LENGTH, LAYERS, VOCABULARY = 23, 3, 50


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors so small only wait for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config(family: str = "llama", **settings: Any) -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.4,  # attention that is far from uniform
        "pad_token_id": 0,
        "sliding_window": None,
    }
    sizes |= {"head_dim": 8} if family == "gemma" else {}
    return AutoConfig.for_model(family, **(sizes | settings))


def llm(family: str = "llama", attention: str = "sdpa", seed: int = 0, **settings: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModel.from_config(config(family, **settings), attn_implementation=attention).eval()


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two images; none; one; one with no text behind it. Columns, rows, valid and input embeddings."""
    columns, valid = (torch.zeros(4, LENGTH, dtype=torch.bool) for _ in range(2))
    for sample, patches in ((0, (2, 3, 4, 10, 11, 12)), (2, range(1, 7)), (3, (5, 6, 7))):
        columns[sample, list(patches)] = True
    for sample, length in enumerate((20, 9, LENGTH, 8)):
        valid[sample, :length] = True
    return columns, valid & ~columns, valid, 0.5 * random(4, LENGTH, 32).float()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(model: Any, embeds: torch.Tensor, valid: torch.Tensor | None, **settings: Any) -> Any:
    mask = None if valid is None else valid.long()
    return model(inputs_embeds=embeds, attention_mask=mask, use_cache=False, **settings)


def tapped_run(model: Any, layers: int, *, padded: bool = True) -> torch.Tensor:
    columns, rows, valid, embeds = batch()
    with AttentionTap(model, layers).open(columns, rows, valid) as found, torch.no_grad():
        run(model, embeds, valid if padded else None)
    return found.attention


def twin(attentions: Any, columns: torch.Tensor, rows: torch.Tensor, layers: int) -> torch.Tensor:
    """The inner sums of Eq. 5, from each layer's (B, H, L, L)."""
    found = torch.zeros(columns.shape, dtype=torch.float64)
    for h in range(layers):
        for sample, i in columns.nonzero().tolist():
            for j in rows[sample].nonzero().flatten().tolist():
                of_heads = [attentions[h][sample, head, j, i].item() for head in range(attentions[h].shape[1])]
                found[sample, i] += sum(of_heads) / len(of_heads)
    return found


def expected(layers: int, family: str = "llama", *, padded: bool = True, **settings: Any) -> torch.Tensor:
    columns, rows, valid, embeds = batch()
    with torch.no_grad():
        given = run(llm(family, "eager", **settings), embeds, valid if padded else None, output_attentions=True)
    return twin(given.attentions, columns, rows, layers)


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 2e-6) -> None:
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(found.double(), wanted, atol=tolerance, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_tap_is_what_output_attentions_gives(family: str, attention: str) -> None:
    found = tapped_run(llm(family, attention), 2)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    close(found, expected(2, family))
    assert not found[1].any()  # no image
    assert not found[3].any()  # no text behind the image: padding does not count
    assert (found[0] > 0).sum() == 6


@pytest.mark.parametrize(
    "settings",
    [{"num_key_value_heads": 4}, {"num_key_value_heads": 1}, {"num_attention_heads": 8, "num_key_value_heads": 2}],
)
@pytest.mark.parametrize("layers", [1, LAYERS])
@pytest.mark.parametrize("padded", [True, False])
def test_heads_that_share_keys_and_numbers_of_layers(settings: dict[str, int], layers: int, padded: bool) -> None:
    found = tapped_run(llm(**settings), layers, padded=padded)
    close(found, expected(layers, padded=padded, **settings), 4e-6)


WINDOWS: list[tuple[str, dict[str, Any]]] = [
    ("mistral", {"sliding_window": 6}),
    ("phi3", {"sliding_window": 6}),
    ("qwen2", {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 1}),
    ("qwen3", {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 1}),
]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("family", "settings"), WINDOWS)
@pytest.mark.parametrize("padded", [True, False])
def test_sliding_windows(family: str, settings: dict[str, Any], attention: str, padded: bool) -> None:
    wanted = expected(2, family, padded=padded, **settings)
    close(tapped_run(llm(family, attention, **settings), 2, padded=padded), wanted)
    assert (wanted - expected(2, family, padded=padded)).abs().max() > 0.1  # the window matters


def fake_flash(wanted: list[str]) -> Any:
    """Stands in for transformers' loader of kernels: the interface of flash attention 2, in plain PyTorch."""

    def attend(q: Any, k: Any, v: Any, *, softmax_scale: float, window: int | None) -> torch.Tensor:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))  # (heads, length, width)
        distance = torch.arange(q.shape[1])[:, None] - torch.arange(k.shape[1])
        allowed = (distance >= 0) & (distance < (window or LENGTH))
        k, v = (x.repeat_interleave(len(q) // len(k), 0) for x in (k, v))
        given = torch.nn.functional.scaled_dot_product_attention(q, k, v, allowed, scale=softmax_scale)
        return given.transpose(0, 1)

    def plain(q: Any, k: Any, v: Any, **options: Any) -> torch.Tensor:
        return torch.stack([attend(*each, **options) for each in zip(q, k, v, strict=True)])

    def ragged(q: Any, k: Any, v: Any, *, cu_seqlens_q: Any, cu_seqlens_k: Any, **options: Any) -> torch.Tensor:
        assert torch.equal(cu_seqlens_q, cu_seqlens_k)
        lengths = cu_seqlens_q.diff().tolist()
        each = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
        return torch.cat([attend(*one, **options) for one in each])

    def options(*, softmax_scale: float, sliding_window: int | None, **_others: Any) -> dict[str, Any]:
        return {"softmax_scale": softmax_scale, "window": sliding_window}

    def load(implementation: str, *_given: Any, **_settings: Any) -> Any:
        wanted.append(implementation)
        utils = modeling_flash_attention_utils
        return (plain, ragged, None, utils._pad_input, utils._unpad_input), (options, options)

    return load


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(("family", "settings"), [("llama", {}), *WINDOWS])
def test_flash_attention_gives_no_mask_of_rows(
    family: str, settings: dict[str, Any], padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[str] = []
    monkeypatch.setattr(modeling_flash_attention_utils, "lazy_import_flash_attention", fake_flash(wanted))
    model = llm(family, **settings)
    _, _, valid, embeds = batch()
    stock = run(model, embeds, valid if padded else None).last_hidden_state
    model.config._attn_implementation = "flash_attention_2"
    close(tapped_run(model, 2, padded=padded), expected(2, family, padded=padded, **settings))
    flash = run(model, embeds, valid if padded else None).last_hidden_state
    torch.testing.assert_close(flash[valid], stock[valid], atol=2e-5, rtol=1e-5)
    assert set(wanted) == {"flash_attention_2"}  # the name by which kernels are fetched


def test_no_2d_mask_hides_keys_that_are_padding_in_front() -> None:
    """Left padding, as flash attention gets it: the softmax is over what the 2D mask leaves."""
    query, key = random(1, 2, 5, 4, seed=1), random(1, 2, 5, 4, seed=2)
    columns, rows, valid = (torch.tensor([[bit == "1" for bit in bits]]) for bits in ("00110", "00001", "01111"))
    layer = torch.nn.Identity()
    found = Tapped(columns, rows, valid, [layer])
    found.add(layer, query, key, valid, 0.7, None)
    logits = [[0.7 * float(query[0, head, 4] @ key[0, head, i]) for i in range(1, 5)] for head in range(2)]
    for i in (2, 3):
        shares = [math.exp(of[i - 1]) / sum(map(math.exp, of)) for of in logits]
        assert found.attention[0, i].item() == pytest.approx(sum(shares) / 2, abs=1e-12)


@pytest.mark.parametrize("rows_at_once", [1, 3, 7])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_chunks_of_rows_change_nothing(rows_at_once: int, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tapped_run(llm(attention=attention), 2)
    sizes: list[int] = []
    received = tap._received

    def counted(query: torch.Tensor, *given: Any) -> torch.Tensor:
        sizes.append(query.shape[1])
        return received(query, *given)

    monkeypatch.setattr(tap, "ROWS", rows_at_once)
    monkeypatch.setattr(tap, "_received", counted)
    torch.testing.assert_close(tapped_run(llm(attention=attention), 2), whole, atol=1e-6, rtol=0)
    assert max(sizes) == rows_at_once
    assert sum(sizes) == 2 * (5 + 7 + 16)  # the text behind an image, in each layer


def checkpoint(model: Any, reentrant: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the name that the Trainer's oldest supported version has
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_gradient_checkpointing_counts_each_layer_once(reentrant: bool, inside: bool) -> None:
    columns, rows, valid, embeds = batch()
    found, gradients, calls = [], [], []
    for tapped in (False, True):
        model, start = llm().train(), embeds.clone().requires_grad_()
        model.layers[0].mlp.register_forward_pre_hook(lambda *_given, tapped=tapped: calls.append(tapped))

        def value(model: Any = model, start: torch.Tensor = start) -> torch.Tensor:
            hidden = run(model, start, valid).last_hidden_state[valid]
            return (hidden * random(*hidden.shape, seed=3).float()).sum()

        if tapped:
            checkpoint(model, reentrant)
            with AttentionTap(model, 2).open(columns, rows, valid) as seen:
                loss = value()
                if inside:
                    loss.backward()
            found.append(seen.attention.clone())
            if not inside:
                loss.backward()
            found.append(seen.attention)
        else:
            value().backward()
        gradients.append([start.grad, *(parameter.grad for parameter in model.layers.parameters())])
    close(found[0], expected(2))
    assert torch.equal(found[0], found[1])
    assert calls == [False, True, True]  # checkpointing computed the layer again
    for without, with_tap in zip(*gradients, strict=True):
        torch.testing.assert_close(with_tap, without, atol=1e-4, rtol=1e-5)
    assert gradients[0][0].abs().max() > 0.1


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


def test_precision() -> None:
    columns, rows, valid, embeds = batch()
    model = llm().double()
    with AttentionTap(model, 2).open(columns, rows, valid) as found:
        run(model, embeds.double(), valid)
    assert found.attention.dtype == torch.float64
    close(found.attention, expected(2))

    query, key = (random(4, heads, LENGTH, 8, seed=heads).float() for heads in (4, 2))
    values = []
    for dtype, lowered in ((torch.float32, False), (torch.float32, True), (torch.bfloat16, False)):
        layer = torch.nn.Identity()
        seen = Tapped(columns, rows, valid, [layer])
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            given = (query.bfloat16().to(dtype), key.bfloat16().to(dtype))
            seen.add(layer, *given, None, 0.5, None)
        values.append(seen.attention)
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])


def test_bfloat16_autocast_and_weights() -> None:
    columns, rows, valid, embeds = batch()
    model = llm(initializer_range=0.2)
    wanted = expected(2, initializer_range=0.2)
    reading = AttentionTap(model, 2)
    with torch.autocast("cpu", torch.bfloat16), reading.open(columns, rows, valid) as found:
        run(model, embeds, valid)
    assert found.attention.dtype == torch.float32
    close(found.attention, wanted, 0.05)
    model = model.bfloat16()
    with reading.open(columns, rows, valid) as found:
        run(model, embeds.bfloat16(), valid)
    assert found.attention.dtype == torch.float32
    close(found.attention, wanted, 0.05)


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
    assert not any(tap._OPEN in module.__dict__ for module in model.modules())
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
    with pytest.raises(AssertionError, match="switched"), reading.open(columns, rows, valid):
        pass
    with AttentionTap(model, 2).open(columns, rows, valid) as found, pytest.raises(AssertionError, match="length"):
        run(model, embeds[:, 1:], valid[:, 1:])


def test_rows_of_padding_never_count() -> None:
    columns, rows, valid, embeds = batch()
    model = llm()
    with AttentionTap(model, 2).open(columns, ~columns, valid) as found:
        run(model, embeds, valid)
    assert torch.equal(found.attention, tapped_run(model, 2))
    assert (~columns & ~rows).any()


def test_a_batch_without_images() -> None:
    _, rows, valid, embeds = batch()
    model = llm()
    with AttentionTap(model, 2).open(torch.zeros_like(rows), rows, valid) as found:
        run(model, embeds, valid)
    assert not found.attention.any()
    assert found.attention.shape == rows.shape


def test_a_tapped_model_is_saved_as_a_stock_one(tmp_path: Path) -> None:
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    logging.disable_progress_bar()
    made = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=config(), image_token_index=49))
    language_model = made.model.language_model
    AttentionTap(language_model, 2)
    assert language_model.config._attn_implementation == "sea_tap_sdpa"
    assert made.model.vision_tower.config._attn_implementation == "sdpa"
    made.save_pretrained(tmp_path)
    assert "sea_tap" not in (tmp_path / "config.json").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["text_config"]["model_type"] == "llama"
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert again.model.language_model.config._attn_implementation == "sdpa"
    AttentionTap(language_model, 3)  # another tap on a tapped model
    assert language_model.config._attn_implementation == "sea_tap_sdpa"


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
