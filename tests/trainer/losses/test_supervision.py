"""BASIC's supervision against Eq. 4 and 5 written symbol by symbol in float64."""

import warnings
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from sea_pipeline.core.errors import UserError
from tests.support.basic_models import IMAGES, LAYERS, PATCHES, WIDTH, batch, eq4, eq5, llm, plain, states, watch
from tests.support.random_values import random
from trainer.losses.attention_tap import FAMILIES
from trainer.losses.supervision import EPS, LayerRecorder, Supervision, degrees, image_weights
from trainer.recipes.recipe import Basic

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["inc", "const", "dec"])
@pytest.mark.parametrize(("k", "degree"), [(1, "auto"), (2, "equal"), (3, "equal"), (LAYERS, "auto")])
def test_refined_is_equation_4(kind: Any, k: int, degree: Any) -> None:
    model = llm().double()
    wanted = eq4(states(model), k, kind)
    recorder = watch(model, Basic(layers=k, layer_weights=kind, degree=degree))
    assert recorder.refined.dtype == torch.float64
    assert not recorder.refined.requires_grad
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(recorder.refined, wanted, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_in_float32(family: str) -> None:
    model = llm(family)
    recorder = watch(model, Basic(layers=LAYERS))
    assert recorder.refined.dtype == torch.float32
    wanted = eq4(states(model), LAYERS)
    torch.testing.assert_close(recorder.refined.double(), wanted, atol=1e-5 * float(wanted.abs().max()), rtol=1e-5)


@pytest.mark.parametrize(("layers", "half"), [(1, 1), (2, 1), (4, 2), (5, 2)])
def test_k_is_half_of_the_layers(layers: int, half: int) -> None:
    model = llm(layers=layers).double()
    assert Supervision(model, Basic()).k == half
    torch.testing.assert_close(watch(model, Basic()).refined, eq4(states(model), half), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("length", [2.5, torch.tensor(2.5)])
def test_unit_layers_times_a_length(length: Any) -> None:
    model = llm().double()
    basic = Basic(layers=3, normalise="unit")
    assert Supervision(model, basic).needs_length
    wanted = eq4(states(model), 3, unit=2.5)
    torch.testing.assert_close(watch(model, basic, length=length).refined, wanted, atol=1e-12, rtol=1e-12)
    with pytest.raises(AssertionError, match="needs a length"):
        watch(model, basic)
    assert not Supervision(model, Basic()).needs_length
    assert torch.equal(watch(model, Basic(), length=7.0).refined, watch(model, Basic()).refined)
    lengths = torch.stack([layer.norm(dim=-1).mean() for layer in states(model)[:3]])
    assert lengths.max() > 1.2 * lengths.min()  # which `unit` takes away


@pytest.mark.parametrize("normalise", ["none", "unit"])
@pytest.mark.parametrize("count", [1, 4, WIDTH - 1])
def test_outliers_are_zeroed(normalise: Any, count: int) -> None:
    model = llm().double()
    wanted = eq4(states(model), 3, unit=2.5 if normalise == "unit" else None)
    squares = [sum(float(row[dimension]) ** 2 for row in wanted) / len(wanted) for dimension in range(WIDTH)]
    for dimension in sorted(range(WIDTH), key=lambda one: -squares[one])[:count]:
        wanted[:, dimension] = 0
    recorder = watch(model, Basic(layers=3, normalise=normalise, outliers=count), length=2.5)
    torch.testing.assert_close(recorder.refined, wanted, atol=1e-12, rtol=1e-12)
    assert (recorder.refined == 0).all(0).sum() == count


@pytest.mark.parametrize("k", [1, 3, LAYERS])
def test_degrees_of_the_attention_are_equation_5(k: int) -> None:
    wanted = eq5(plain(llm(attention="eager"), output_attentions=True).attentions, k)
    recorder = watch(llm(), Basic(layers=k))
    assert recorder.attention.shape == (len(IMAGES) * PATCHES,)
    assert (recorder.attention[-PATCHES:] == 0).all()  # no text behind that image
    found = degrees(recorder.attention.view(len(IMAGES), PATCHES))
    torch.testing.assert_close(found.double(), wanted, atol=2e-6, rtol=0)
    assert wanted.max() > 0.5


def test_equal_degrees_leave_the_attention_alone() -> None:
    model = llm()
    recorder = watch(model, Basic(degree="equal"))
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(degrees(recorder.attention.view(-1, PATCHES)), torch.full((4, PATCHES), 1 / PATCHES))


def test_degrees_at_known_points() -> None:
    attention = torch.tensor([[1.0, 3.0], [0.0, 0.0], [EPS / 4, 0.0], [-1.0, 0.5], [0.0, 2.0]]).double()
    wanted = torch.tensor([[0.25, 0.75], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.0, 1.0]]).double()
    assert torch.equal(degrees(attention), wanted)
    small = degrees(torch.full((1, 4), 1e-9).bfloat16().requires_grad_())
    assert small.dtype == torch.float32
    assert not small.requires_grad
    torch.testing.assert_close(small, torch.full((1, 4), 0.25))
    assert degrees(torch.zeros(0, 4)).shape == (0, 4)


def test_no_images() -> None:
    assert image_weights([]).shape == (0,)
    _, rows, valid, embeds = batch()
    for basic in (Basic(outliers=2), Basic(normalise="unit", degree="equal")):
        model = llm()
        with Supervision(model, basic).watching(torch.zeros_like(valid), rows, valid, length=1.0) as recorder:
            model(inputs_embeds=embeds.float(), attention_mask=valid.long())
        assert recorder.refined.shape == (0, WIDTH)
        assert recorder.attention.shape == (0,)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_gradient_checkpointing_watches_each_layer_once(reentrant: bool, inside: bool) -> None:
    columns, rows, valid, embeds = batch()
    seen, gradients, calls = [], [], []
    for checkpointed in (False, True):
        model, start = llm().train(), embeds.float().requires_grad_()
        model.layers[0].mlp.register_forward_pre_hook(lambda *_, again=checkpointed: calls.append(again))
        if checkpointed:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # the name that the oldest supported Trainer has
                model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        with Supervision(model, Basic(layers=3)).watching(columns, rows, valid) as recorder:
            hidden = model(inputs_embeds=start, attention_mask=valid.long()).last_hidden_state[valid]
            loss = (hidden * random(*hidden.shape, seed=3).float()).sum()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        seen.append((recorder.refined, recorder.attention))
        gradients.append([start.grad, *(parameter.grad for parameter in model.layers.parameters())])
    assert calls == [False, True, True]  # checkpointing computed the layer again
    assert all(torch.equal(*pair) for pair in zip(*seen, strict=True))
    assert gradients[0][0].abs().max() > 0.1
    for plainly, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plainly, atol=1e-4, rtol=1e-5)


def test_bfloat16_autocast_and_weights() -> None:
    wanted = watch(llm(), Basic(layers=2)).refined
    with torch.autocast("cpu", torch.bfloat16):
        lowered = watch(llm(), Basic(layers=2)).refined
    half = watch(llm().bfloat16(), Basic(layers=2, normalise="unit"), length=torch.tensor(2.0)).refined
    assert (lowered.dtype, half.dtype) == (torch.float32, torch.float32)
    assert (lowered - wanted).norm() < 0.05 * wanted.norm()
    model = llm().bfloat16()  # its layers' bfloat16 outputs, summed in higher precision
    exact = eq4([state.double() for state in states(model)], LAYERS)
    found = watch(model, Basic(layers=LAYERS)).refined.double()
    torch.testing.assert_close(found, exact, atol=1e-5 * float(exact.abs().max()), rtol=1e-5)


def test_layers_that_return_tuples() -> None:
    """As those of older decoders."""
    columns, *_, embeds = batch()
    seen = LayerRecorder(columns, [1.0], Basic(), None)
    seen.layer(1, embeds)
    assert torch.equal(seen.refined, embeds[columns])


def test_watching_ends() -> None:
    columns, rows, valid, embeds = batch()
    model = llm()
    supervision = Supervision(model, Basic(layers=2))
    recorder = watch(model, Basic(layers=2))
    first = recorder.refined.clone()
    plain(model)
    assert torch.equal(recorder.refined, first)
    with pytest.raises(ZeroDivisionError), supervision.watching(columns, rows, valid) as recorder:
        raise ZeroDivisionError
    assert not any(layer._forward_hooks for layer in model.layers)
    with pytest.raises(AssertionError, match="has not run"):
        _ = recorder.refined
    with supervision.watching(columns, rows, valid) as recorder:
        start = embeds.float()
        model.layers[0](start, position_embeddings=model.rotary_emb(start, torch.arange(start.shape[1])[None]))
    with pytest.raises(AssertionError, match=r"layers \[2\] did not run"):
        _ = recorder.refined
    with pytest.raises(AssertionError, match="1 layers ran without"):
        _ = recorder.attention


def test_only_the_first_run_is_watched() -> None:
    columns, rows, valid, embeds = batch()
    model = llm()
    wanted = watch(model, Basic(layers=2))
    with Supervision(model, Basic(layers=2)).watching(columns, rows, valid) as recorder:
        plain(model)
        model(inputs_embeds=3 * embeds.float().flip(1), attention_mask=valid.long())
    assert torch.equal(recorder.refined, wanted.refined)
    assert torch.equal(recorder.attention, wanted.attention)


def test_the_gradient_is_the_models_own() -> None:
    columns, rows, valid, embeds = batch()
    gradients = []
    for watched in (False, True):
        model, start = llm(), embeds.float().requires_grad_()
        supervision = Supervision(model, Basic(layers=LAYERS))
        with supervision.watching(columns, rows, valid) if watched else nullcontext():
            hidden = model(inputs_embeds=start, attention_mask=valid.long()).last_hidden_state
        (hidden[valid] * random(int(valid.sum()), WIDTH, seed=1).float()).sum().backward()
        gradients.append([start.grad, *(parameter.grad for parameter in model.layers.parameters())])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_what_the_user_can_mend() -> None:
    with pytest.raises(UserError, match=r"loss\.basic\.layers: 6, but the LLM has 5 layers"):
        Supervision(llm(), Basic(layers=6))
    with pytest.raises(UserError, match=r"loss\.basic\.outliers: 32"):
        Supervision(llm(), Basic(outliers=WIDTH))
    other = llm()
    other.blocks = other.__dict__["_modules"].pop("layers")
    with pytest.raises(UserError, match=r"loss\.das and loss\.sds: expected an LLM with a list of .*; leave loss"):
        Supervision(other, Basic())
    with pytest.raises(UserError, match="gemma2"):
        Supervision(llm("gemma2", "eager"), Basic())
    Supervision(llm("gemma2", "eager"), Basic(degree="equal"))
