"""The tap against transformers' own `output_attentions` under eager attention, summed in plain loops."""

import math
from typing import Any

import pytest
import torch
from transformers import modeling_flash_attention_utils

from sea_pipeline.core.errors import UserError
from tests.support.attention_models import LAYERS, LENGTH, batch, close, expected, llm, run, tapped_run, twin
from tests.support.pretend_gpu import pretend_gpu
from tests.support.random_values import random
from trainer.losses import attention_tap
from trainer.losses.attention_tap import FAMILIES, AttentionRecording, AttentionTap, refuse_packed

pytestmark = pytest.mark.usefixtures("one_thread")


WAYS = [("sdpa", True), ("sdpa", False), ("eager", True), ("eager", False)]
"""The attention, and whether rows are padded."""


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heads", "keys", "layers", "padded"), [(4, 4, 1, True), (4, 1, LAYERS, True), (8, 2, LAYERS, False)]
)
def test_heads_that_share_keys_and_numbers_of_layers(heads: int, keys: int, layers: int, padded: bool) -> None:
    settings = {"num_attention_heads": heads, "num_key_value_heads": keys}
    close(tapped_run(llm(**settings), layers, padded=padded), expected(layers, padded=padded, **settings))


WINDOWS: list[tuple[str, dict[str, Any]]] = [
    ("mistral", {"sliding_window": 6}),
    ("phi3", {"sliding_window": 6}),
    ("qwen2", {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 1}),
    ("qwen3", {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 1}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("attention", "padded"), WAYS)
@pytest.mark.parametrize(("family", "settings"), WINDOWS)
def test_sliding_windows(family: str, settings: dict[str, Any], attention: str, padded: bool) -> None:
    wanted = expected(2, family, padded=padded, **settings)
    close(tapped_run(llm(family, attention, **settings), 2, padded=padded), wanted)
    assert (wanted - expected(2, family, padded=padded)).abs().max() > 0.1  # the window matters


NEWER: list[tuple[str, dict[str, Any]]] = [
    ("qwen3", {"head_dim": 16}),
    ("smollm3", {"no_rope_layers": [1, 0, 1]}),
    ("smollm3", {"no_rope_layers": [0, 1, 0]}),
]


@pytest.mark.parametrize(("family", "settings"), NEWER)
def test_norms_of_queries_and_layers_without_positions_in_double(family: str, settings: dict[str, Any]) -> None:
    wanted = expected(3, family, double=True, **settings)
    close(tapped_run(llm(family, **settings).double(), 3), wanted, 1e-6)
    close(tapped_run(llm(family, **settings), 3), wanted)
    if "no_rope_layers" in settings:  # positions matter in the others
        assert (wanted - expected(3, family, no_rope_layers=[1, 1, 1])).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("attention", "padded"), WAYS)
def test_windows_in_some_layers_of_gemma_3(attention: str, padded: bool) -> None:
    whole = {"head_dim": 16, "query_pre_attn_scalar": 8, "sliding_window": 6, "layer_types": ["full_attention"] * 3}
    some = whole | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    wanted, model = expected(3, "gemma3_text", padded=padded, **some), llm("gemma3_text", attention, **some)
    close(tapped_run(model, 3, padded=padded), wanted)
    assert (wanted - expected(3, "gemma3_text", padded=padded, **whole)).abs().max() > 0.1
    if not padded:
        exact = expected(3, "gemma3_text", padded=False, double=True, **some)
        close(tapped_run(model.double(), 3, padded=False), exact, 1e-6)


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


@pytest.mark.slow
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
    close(flash[valid], stock[valid].double(), 1e-4)
    assert set(wanted) == {"flash_attention_2"}  # the name by which kernels are fetched


def test_no_2d_mask_hides_keys_that_are_padding_in_front() -> None:
    """Left padding, as flash attention gets it: the softmax is over what the 2D mask leaves."""
    query, key = random(1, 2, 5, 4, seed=1), random(1, 2, 5, 4, seed=2)
    columns, rows, valid = (torch.tensor([[bit == "1" for bit in bits]]) for bits in ("00110", "00001", "01111"))
    layer = torch.nn.Identity()
    found = AttentionRecording(columns, rows, valid, [layer])
    found.add(layer, query, key, valid, 0.7, None)
    logits = [[0.7 * float(query[0, head, 4] @ key[0, head, i]) for i in range(1, 5)] for head in range(2)]
    for i in (2, 3):
        shares = [math.exp(of[i - 1]) / sum(map(math.exp, of)) for of in logits]
        assert found.attention[0, i].item() == pytest.approx(sum(shares) / 2, abs=1e-12)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_prompt_that_attends_to_later_text(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As PaliGemma's does; text before all images then looks at them, too."""
    columns, rows, valid, embeds = batch()
    at = torch.arange(LENGTH)
    ahead = (at <= at[:, None]) | ((at < 18) & (at[:, None] < 18))
    mask = torch.zeros(4, 1, LENGTH, LENGTH).masked_fill(~(ahead & valid[:, None, None, :]), torch.finfo().min)
    with torch.no_grad():
        given = run(llm(attention="eager"), embeds, mask, output_attentions=True)
    wanted = twin(given.attentions, columns, rows, 2)
    seen = _counting(monkeypatch, {"cpu": 3})
    model = llm(attention=attention)
    with AttentionTap(model, 2).open(columns, rows, valid) as found, torch.no_grad():
        run(model, embeds, mask)
    close(found.attention, wanted)
    assert sum(int(there.sum()) for there in seen) == 2 * int(rows.sum())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_gpu_leaves_padding_in_front_out(attention: str) -> None:
    """A sample with fewer rows is filled up with its first place, which then attends to nothing."""
    wanted = tapped_run(llm(attention=attention), 2, flipped=True)
    with pretend_gpu():
        found = tapped_run(llm(attention=attention).to("cuda"), 2, flipped=True).cpu()
    close(found, wanted.double())


@pytest.mark.parametrize("rows_at_once", [1, 3, 7])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_chunks_of_rows_change_nothing(rows_at_once: int, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tapped_run(llm(attention=attention), 2)
    seen = _counting(monkeypatch, {"cpu": rows_at_once})
    close(tapped_run(llm(attention=attention), 2), whole.double())
    assert max(there.numel() for there in seen) == rows_at_once
    assert sum(int(there.sum()) for there in seen) == 2 * (5 + 7 + 16)  # the text behind an image, in each layer


@pytest.mark.slow
@pytest.mark.parametrize("rows_at_once", [4, 12, 2048])
@pytest.mark.parametrize(("attention", "padded"), WAYS)
def test_a_gpu_takes_the_samples_together(
    attention: str, padded: bool, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = expected(2, padded=padded)
    seen = _counting(monkeypatch, {"gpu": rows_at_once})
    with pretend_gpu():
        found = tapped_run(llm(attention=attention).to("cuda"), 2, padded=padded).cpu()
    close(found, wanted)
    assert {len(there) for there in seen} == {len(wanted)}
    assert max(there.numel() for there in seen) <= rows_at_once


def test_so_does_a_gpu_that_is_not_cuda_s() -> None:
    chosen = torch.zeros(3, 8, dtype=torch.bool)
    chosen[1, 4:] = True
    (chunk,) = attention_tap._chunks(chosen, torch.device("meta"))
    assert (chunk.samples, tuple(chunk.rows.shape), chunk.end) == (slice(0, 3), (3, 4), 8)


def _counting(monkeypatch: pytest.MonkeyPatch, rows_at_once: dict[str, int]) -> list[torch.Tensor]:
    """Which rows of each chunk are some."""
    seen: list[torch.Tensor] = []
    received = attention_tap._received

    def counted(*given: Any) -> torch.Tensor:
        seen.append(given[3].there.cpu())
        return received(*given)

    monkeypatch.setattr(attention_tap, "ROWS", rows_at_once)
    monkeypatch.setattr(attention_tap, "_received", counted)
    return seen


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
        seen = AttentionRecording(columns, rows, valid, [layer])
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            given = (query.bfloat16().to(dtype), key.bfloat16().to(dtype))
            seen.add(layer, *given, None, 0.5, None)
        values.append(seen.attention)
    assert torch.equal(values[0], values[1])
    close(values[2], values[0].double())  # copied to float32 they lie otherwise in memory


def test_bfloat16_autocast_and_weights() -> None:
    columns, rows, valid, embeds = batch()
    model = llm(initializer_range=0.2)
    wanted = expected(2, initializer_range=0.2)
    reading = AttentionTap(model, 2)
    with torch.autocast("cpu", torch.bfloat16), reading.open(columns, rows, valid) as found:
        run(model, embeds, valid)
    assert found.attention.dtype == torch.float32
    close(found.attention, wanted, 0.01)
    model = model.bfloat16()
    with reading.open(columns, rows, valid) as found:
        run(model, embeds.bfloat16(), valid)
    assert found.attention.dtype == torch.float32
    close(found.attention, wanted, 0.01)


PACKED = {"position_ids": torch.tensor([[0, 1, 2, 0, 1]])}


@pytest.mark.parametrize("options", [PACKED, {"cu_seq_lens_q": torch.tensor([0, 3, 5])}])
def test_packed_rows_are_refused_with_flash_attention(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"found several, packed for flash_attention_2"):
        refuse_packed(1, None, options)


def test_other_rows_are_not_taken_for_packed_ones() -> None:
    refuse_packed(1, None, {})
    refuse_packed(1, None, {"position_ids": torch.arange(3, 9)[None]})
    refuse_packed(2, None, {"position_ids": torch.tensor([[0, 1, 2], [0, 1, 0]])})
    refuse_packed(1, torch.ones(1, 5, dtype=torch.bool), PACKED)
