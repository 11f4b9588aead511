"""The same terms and gradients however the model runs: checkpointing, bfloat16, compiled, in a loop of one's own."""

import copy
import pickle
from collections.abc import Callable, Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from sea_pipeline.core.errors import UserError
from tests.trainer.attach.families import MAKERS, Tiny, tiny
from tests.trainer.attach.trained import attached_to, own_trainer
from tests.trainer.attach.worlds import NAMES, Pictures, close, gradients
from trainer.attach import attach

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),  # peft's use of transformers
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),  # torch's own compiler
]
BOTH: dict[str, Any] = {"sea": {"window": 1}, "das": {}, "sds": {"weight": 0.5}}
SOME = ("llava_next", "qwen2_5_vl", "smolvlm", "gemma3")


class Ran(NamedTuple):
    """One step."""

    lm: float
    terms: dict[str, float]
    gradients: dict[str, torch.Tensor]


def run(
    name: str,
    pictures: Pictures,
    before: Callable[[Tiny], nn.Module] = lambda made: made.model,
    after: Callable[[nn.Module], nn.Module] = lambda model: model,
    settings: dict[str, Any] = BOTH,
) -> Ran:
    """A forward and a backward, of a model that is changed before or after it is attached to."""
    made = MAKERS[name]()
    model = before(made)
    one = attach(model, made.processor, labels=pictures.open(), **settings)
    runs = after(model)
    runs.train()
    out = runs(**made.batch(pictures.batch(NAMES)))
    (out.loss + one.loss(NAMES)).backward()
    terms = {name: float(value.detach()) for name, value in one.terms.items()}
    one.detach()
    plain = {name.replace("_orig_mod.", ""): value for name, value in gradients(model).items()}
    return Ran(float(out.loss.detach()), terms, plain)


@cache
def plain(name: str, pictures: Pictures) -> Ran:
    """The step that the others are to be like."""
    return run(name, pictures)


def alike(found: Ran, wanted: Ran, tolerance: float, of_gradients: float) -> None:
    assert found.lm == pytest.approx(wanted.lm, rel=tolerance)
    assert found.terms == pytest.approx(wanted.terms, rel=tolerance)
    close(found.gradients, {name: each.double() for name, each in wanted.gradients.items()}, of_gradients)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "reentrant"), [*zip(SOME, (False, True) * 2, strict=True)])
def test_checkpointing_changes_nothing(name: str, reentrant: bool, pictures: Pictures) -> None:
    def checkpointed(made: Tiny) -> nn.Module:
        made.model.activation_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            made.model.enable_input_require_grads()
        return made.model

    alike(run(name, pictures, checkpointed), plain(name, pictures), 1e-6, 1e-4)


def adapted(model: nn.Module) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    targets = r".*(language_model|text_model).*\.(q_proj|v_proj)"
    projector = ["multi_modal_projector"] if any("multi_modal" in name for name, _ in model.named_modules()) else None
    config = LoraConfig(r=4, target_modules=targets, init_lora_weights=True, modules_to_save=projector)
    return get_peft_model(model, config)  # type: ignore[arg-type]


def test_copies_and_pickles_of_the_terms_are_detached(pictures: Pictures, attached: Any) -> None:
    """Lightning copies the module that holds them, or pickles it for spawned processes."""
    made, settings = tiny("qwen2_vl"), {"labels": pictures.open(), "sea": {}}
    one = attached(made, **settings)
    batch = made.batch(pictures.batch(NAMES))
    made.model(**batch)
    total, state = float(one.loss(NAMES).detach()), one.state_dict()
    for model, other in (copy.deepcopy((made.model, one)), pickle.loads(pickle.dumps((made.model, one)))):
        assert other.model is model
        assert other.state_dict() == state
        with pytest.raises(UserError, match=r"was detached, or copied, .*; call attach\(\) again"):
            other.loss(NAMES)
        again = attached(made._replace(model=model), **settings)
        model(**batch)
        assert float(again.loss(NAMES).detach()) == total
    one.loss(NAMES)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:attached.loss.* no effect")
@pytest.mark.parametrize(("name", "order"), [*zip(SOME, ("before", "after") * 2, strict=True)])
def test_adapters_that_start_at_nothing_change_nothing(name: str, order: str, pictures: Pictures) -> None:
    pytest.importorskip("peft")
    wanted = plain(name, pictures)
    if order == "before":
        found = run(name, pictures, lambda made: adapted(made.model))
    else:
        found = run(name, pictures, after=adapted)
    assert found.lm == pytest.approx(wanted.lm, rel=1e-6)
    assert found.terms == pytest.approx(wanted.terms, rel=1e-6)
    assert any("lora_B" in each for each in found.gradients)
    beside = {each for each in found.gradients if "lora_" not in each and "modules_to_save" not in each}
    assert beside == set() or name in ("qwen2_5_vl", "smolvlm"), "peft has frozen them"


def test_copies_and_pickles_of_an_attached_model_have_nothing_of_it(pictures: Pictures, attached: Any) -> None:
    """A copy may be attached to, and neither feeds the other."""
    made = MAKERS["qwen2_5_vl"]()
    batch, settings = made.batch(pictures.batch(NAMES)), BOTH | {"labels": pictures.open()}
    one = attached(made, **settings)
    lm = made.model(**batch).loss
    kept, copied = one.kept(), copy.deepcopy(made.model)
    assert b"sea_" not in (pickled := pickle.dumps(made.model))
    assert b"trainer" not in pickled
    assert type(copied)._from_config(made.model.config).config.text_config._attn_implementation == "sdpa"
    other = attached(made._replace(model=copied), **settings)
    assert copied(**batch).loss == lm
    assert one.kept() is kept
    assert other.loss(NAMES) == one.loss(NAMES)
    made.model(**made.batch(pictures.batch(NAMES[::-1])))
    other.step = 0
    assert other.loss(NAMES) == sum(other.weights[name] * value for name, value in other.terms.items())
    other.detach()
    one.detach()
    for model in (copied, made.model):
        assert not [name for name, each in model.named_modules() if "forward" in each.__dict__]


def test_attention_may_be_switched_later(pictures: Pictures, attached: Any) -> None:
    made = MAKERS["llava"]()
    one, batch, terms = attached(made, basic={}), made.batch(pictures.batch(NAMES)), []
    for name in ("sdpa", "eager"):
        made.model.set_attn_implementation(name)
        made.model(**batch)
        one.loss()
        terms.append({each: float(value.detach()) for each, value in one.terms.items()})
        assert made.model.model.language_model.config._attn_implementation == name
    assert terms[0] == pytest.approx(terms[1], rel=1e-5)


@pytest.mark.slow
def test_detach_reaches_the_copies_of_adapters(pictures: Pictures) -> None:
    pytest.importorskip("peft")
    made = MAKERS["llava"]()
    one = attach(made.model, made.processor, labels=pictures.open(), **BOTH)
    model = adapted(made.model)
    model.train()
    model(**made.batch(pictures.batch(NAMES)))
    one.detach()
    assert not [name for name, each in model.named_modules() if "forward" in each.__dict__]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_method_that_accelerate_has_wrapped_ends_too(pictures: Pictures, tmp_path: Path) -> None:
    """For bfloat16 it wraps the model's forward, which in Llama 4 is one that attach replaces."""
    made, one = attached_to("llama4", pictures, sea={})
    watch = one.watch
    own_trainer(made, pictures, tmp_path, one, max_steps=1, bf16=True).train()
    one.detach()
    made.model(**made.batch(pictures.batch(NAMES)))
    assert watch.kept is None
    again = attach(made.model, made.processor, labels=pictures.open(), sea={})
    made.model(**made.batch(pictures.batch(NAMES)))
    assert again.loss(NAMES) > 0
    again.detach()


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_basic_trains_the_projector_alone_beside_adapters_on_the_tower(name: str, pictures: Pictures) -> None:
    """A tower with adapters trains: BASIC's gradient must end in front of it, SEA's goes on."""
    pytest.importorskip("peft")
    from peft import LoraConfig, get_peft_model

    made = MAKERS[name]()
    torch.manual_seed(0)
    targets = r".*(vision_tower|visual\.blocks|vision_model).*\.(q_proj|qkv|fc1|out_proj)"
    model: Any = get_peft_model(made.model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    for each, parameter in model.named_parameters():
        if any(part in each for part in ("projector", "merger", "connector")):
            parameter.requires_grad_(True)
    for settings, reaches in (({"basic": {}}, False), ({"sea": {"window": 1}}, True)):
        one = attach(model, made.processor, labels=pictures.open(), **settings)
        model.train()
        model(**made.batch(pictures.batch(NAMES)))
        model.zero_grad()
        one.loss(NAMES).backward()
        found = gradients(model)
        assert any("lora_" in each for each in found) == reaches
        assert found
        one.detach()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:attached.loss.* no effect")
@pytest.mark.parametrize(("name", "projector"), [("llava", "linear_[12]"), ("qwen2_5_vl", r"mlp\.[02]")])
def test_dropout_draws_the_same_attached_or_not(name: str, projector: str, pictures: Pictures) -> None:
    """In the LLM, too. A tower that trains has the projector run twice, with the same dropout."""
    peft = pytest.importorskip("peft")
    made = MAKERS[name]()
    targets = rf".*({projector}|q_proj|qkv)"
    config = peft.LoraConfig(r=4, lora_dropout=0.5, target_modules=targets, init_lora_weights=False)
    model = peft.get_peft_model(made.model, config).train()
    batch = made.batch(pictures.batch(NAMES))
    torch.manual_seed(1)
    alone = model(**batch).loss.item()
    for settings in ({"sea": {}}, {"basic": {}}):
        one = attach(model, made.processor, labels=pictures.open(), **settings)
        torch.manual_seed(1)
        assert model(**batch).loss.item() == alone
        kept = one.kept()
        one.detach()
    assert kept.apart is not None
    assert kept.made is not None
    assert torch.equal(kept.apart, kept.made)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_bfloat16_is_near(name: str, pictures: Pictures) -> None:
    settings = BOTH | {"sds": {"weight": 0.5, "precision": "float32"}}
    ways = (lambda made: made.model.to(torch.bfloat16), lambda made: made.model.to(torch.bfloat16).float())
    found, wanted = (run(name, pictures, way, settings=settings) for way in ways)
    assert found.terms == pytest.approx(wanted.terms, rel=5e-2)
    assert all(each.dtype == torch.bfloat16 for each in found.gradients.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_autocast_is_near(name: str, pictures: Pictures) -> None:
    def cast(model: nn.Module) -> nn.Module:
        model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)  # type: ignore[method-assign]
        return model

    assert run(name, pictures, after=cast).terms == pytest.approx(plain(name, pictures).terms, rel=5e-2)


def compiled_whole(model: nn.Module) -> Any:
    return torch.compile(model, backend="aot_eager")


def compiled_layers(model: Any) -> nn.Module:
    for layer in model.model.language_model.layers:
        layer.compile(backend="aot_eager")
    return model  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [compiled_whole, compiled_layers])
def test_compiled_models_do_the_same(compiled: Callable[[nn.Module], nn.Module], pictures: Pictures) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    alike(run("llava", pictures, after=compiled), plain("llava", pictures), 1e-5, 1e-4)
    warned = any("item()" in reason for reason in torch._dynamo.utils.counters["graph_break"])
    assert not warned or compiled is compiled_whole  # transformers' own code has some, too


@pytest.mark.slow
def test_compiled_code_sees_every_step(pictures: Pictures) -> None:
    """What is kept is each forward's own, and SEA alone makes nothing be compiled anew."""
    torch._dynamo.reset()
    made = MAKERS["llava"]()
    one = attach(made.model, made.processor, labels=pictures.open(), sea={"window": 1})
    runs: Any = torch.compile(made.model, backend="eager")
    runs.train()
    losses = []
    for number, names in enumerate([NAMES, NAMES[::-1], [["odd.png"], ["square.png"]], NAMES]):
        batch = made.batch([(images, "red") for images, _ in pictures.batch(names)])
        one.step = 0
        runs(**batch)
        losses.append(float(one.loss(names).detach()))
        if number == 1:
            compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert losses[0] == pytest.approx(losses[3], rel=1e-6)
    assert losses[0] != pytest.approx(losses[2], rel=1e-3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled
    one.detach()


ORDER = ("wide.png", "tall.png", "odd.png", "other.png", "wide.png")
SEA: dict[str, Any] = {"sea": {"window": 1}}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [SEA, {"basic": {}}])
def test_a_loop_goes_on_as_if_it_had_not_stopped(
    settings: dict[str, Any], pictures: Pictures, attached: Any, tmp_path: Path
) -> None:
    saved = tmp_path / "saved.pt"

    def trained(parts: list[range]) -> tuple[list[float], dict[str, Any], int]:
        """Trains, with a stop between the parts."""
        losses: list[float] = []
        for part in parts:
            made = MAKERS["qwen2_5_vl"]()
            one = attached(made, labels=pictures.open(), **settings)
            projector = made.model.model.visual.merger
            optimizer = torch.optim.AdamW([*projector.parameters(), *one.parameters()], lr=1e-2)
            keeps = {"model": made.model, "optimizer": optimizer, "attached": one}
            if part.start:
                states = torch.load(saved, weights_only=True)
                for name, each in keeps.items():
                    each.load_state_dict(states[name])
            losses += stepped(made, one, optimizer, pictures, part)
            torch.save({name: each.state_dict() for name, each in keeps.items()}, saved)
            one.detach()
        return losses, one.state_dict(), one.step

    whole = trained([range(4)])
    assert trained([range(2), range(2, 4)]) == whole
    _, state, step = whole
    assert step == 4
    assert state.get("log_scale") != 0


def stepped(
    made: Any, one: Any, optimizer: torch.optim.Optimizer, pictures: Pictures, steps: Iterable[int]
) -> list[float]:
    """The losses of some steps."""
    losses: list[float] = []
    for step in steps:
        names = [[each] for each in [*pairwise(ORDER)][step]]
        loss = made.model(**made.batch(pictures.batch(names))).loss + one.loss(names)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_forwards_before_one_backward_sum_their_gradients(pictures: Pictures, attached: Any) -> None:
    made, found = tiny("llava"), []
    one = attached(made, labels=pictures.open(), **SEA)
    for at_once in (True, False):
        one.step, one.words.log_scale.grad, losses = 0, None, []
        for names in NAMES:
            made.model(**made.batch(pictures.batch([names])))
            losses.append(one.loss(names))
            if not at_once:
                losses[-1].backward()
        if at_once:
            torch.stack(losses).sum().backward()
        found.append(float(one.words.log_scale.grad))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
