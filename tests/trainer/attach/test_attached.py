"""The terms of an attached model beside float64 twins; what it leaves behind."""

import itertools
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import GraniteConfig

from sea_pipeline.core.errors import UserError
from tests.trainer.attach.families import MAKERS, SCAN, gemma3, llava, text_settings, tiny
from tests.trainer.attach.twins import basic_twin, sea_twin, twin_of
from tests.trainer.attach.worlds import NAMES, Pictures, close, gradients
from trainer.attach import Attached, attach
from trainer.attach.families import FAMILIES
from trainer.attach.step_means import samples_with_images
from trainer.losses import attention_tap
from trainer.losses.embeddings import llm_embeddings

SEVERAL = [["wide.png", "odd.png"], [], ["tall.png"]]
"""With two images of one sample, and a text."""
NO_TEXTS = {"smolvlm", "idefics3", "gemma3", "llava_onevision", "paligemma"}
"""Families whose processors want an image of every row of a batch."""
UNTAPPED = {"llama4": "equal"}


def names_for(name: str) -> list[list[str]]:
    return [some for some in SEVERAL if some] if name in NO_TEXTS else SEVERAL


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_sea_is_its_twin(name: str, pictures: Pictures, attached: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, names = tiny(name), names_for(name)
    batch = made.batch(pictures.batch(names))
    twin = twin_of(made, batch)
    one = attached(made, labels=pictures.open(), sea={"weight": 2.0, "window": 1, "logit_scale_init": 1.0})
    entered: list[torch.Tensor] = []
    forward = one.words.forward

    def noted(visual: torch.Tensor, patches: torch.Tensor, words: torch.Tensor, *others: Any) -> Any:
        entered.extend((patches, words))
        return forward(visual, patches, words, *others)

    monkeypatch.setattr(one.words, "forward", noted)
    made.model(**batch)
    loss = one.loss(names)
    loss.backward()
    patches, words = entered
    _are_the_pictures_words(one, names, patches, words, pictures)
    wanted = sea_twin(one, twin.visual, patches, words)
    assert len(words) >= 5
    assert float(loss.detach()) == pytest.approx(2 * float(wanted.detach()), rel=2e-5)
    close(gradients(made.model), {key: 2 * each for key, each in twin.gradient(wanted).items()})
    assert _of_projector(name, gradients(made.model))
    (scale,) = one.parameters()
    assert scale.grad is not None
    shuffled = sea_twin(one, twin.visual, patches, words.roll(1))
    assert float(shuffled.detach()) != pytest.approx(float(wanted.detach()), rel=1e-3)


def _are_the_pictures_words(
    one: Attached, names: Any, patches: torch.Tensor, words: torch.Tensor, pictures: Pictures
) -> None:
    """A drawn word is one of those that the labels have where the middle of the token's cell lies."""
    flat = [name for some in names for name in some]
    start, checked, store = 0, 0, pictures.open()
    for name, laid in zip(flat, one.laid(one.kept(), flat), strict=True):
        for patch, word in zip(patches.tolist(), words.tolist(), strict=True):
            for tile in laid.tiles:
                (at,) = (tile.cells == patch - start).nonzero()
                if len(at):
                    row, column = divmod(int(at[0]), tile.grid[1])
                    x = tile.box[0] + (column + 0.5) / tile.grid[1] * (tile.box[2] - tile.box[0])
                    y = tile.box[1] + (row + 0.5) / tile.grid[0] * (tile.box[3] - tile.box[1])
                    assert word in store[name].word_ids[int(y * 24) * 24 + int(x * 24)]
                    checked += 1
        start += laid.tokens
    assert checked == len(patches)


def _of_projector(name: str, found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: each for key, each in found.items() if f".{FAMILIES[name].projector}." in f".{key}"}


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_basic_is_its_twin_and_trains_the_projector_alone(
    name: str, pictures: Pictures, attached: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_tap, "ROWS", {"cpu": 4})  # PaliGemma's prompts attend to later rows than these
    made, names = tiny(name), names_for(name)
    batch = made.batch(pictures.batch(names), padding_side="right")
    twin = twin_of(made, batch)
    degree = UNTAPPED.get(name, "auto")
    one = attached(made, labels=pictures.open(), das={"weight": 1.0}, sds={"weight": 0.5}, basic={"degree": degree})
    made.model(**batch)
    loss = one.loss(names)
    loss.backward()
    counts, places, start = [len(some) for some in names if some], [], 0
    for laid in one.laid(one.kept(), [each for some in names for each in some]):
        cells = np.sort(np.concatenate([tile.cells for tile in laid.tiles]))
        places.append(torch.from_numpy(cells) + start)
        start += laid.tokens
    images = [places[a:b] for a, b in itertools.pairwise([0, *itertools.accumulate(counts)])]
    if degree == "equal":
        twin = twin._replace(attentions=tuple(torch.ones_like(each) for each in twin.attentions))
    embeddings = llm_embeddings(one.watch.embed, one.vocabulary).double().detach()
    wanted = basic_twin(twin, images, embeddings)
    for term in ("das", "sds"):
        assert float(one.terms[term].detach()) == pytest.approx(float(wanted[term].detach()), rel=1e-4)
    found = gradients(made.model)
    assert found.keys() == _of_projector(name, found).keys(), "nothing but the projector"
    close(found, _of_projector(name, twin.gradient(wanted["das"] + 0.5 * wanted["sds"])))


def test_basic_takes_inputs_as_the_llm_multiplies_them(pictures: Pictures, attached: Any) -> None:
    """As Granite does: with the factor in the weights the same network has the same terms."""
    made, names = llava(GraniteConfig(**text_settings(), embedding_multiplier=12.0)), names_for("llava")
    batch, settings = made.batch(pictures.batch(names)), {"das": {"weight": 1.0}, "sds": {"weight": 0.5}}
    found = []
    for _ in range(2):
        one = attached(made, labels=pictures.open(), **settings, basic={"normalise": "unit"})
        made.model.double()(**{k: v.double() if v.is_floating_point() else v for k, v in batch.items()})
        one.loss(names)
        found.append({term: float(one.terms[term].detach()) for term in ("das", "sds")})
        one.detach()
        llm, last = made.model.model.language_model, made.model.model.multi_modal_projector.linear_2
        for weight in (llm.embed_tokens.weight, last.weight, last.bias):
            weight.data *= llm.embedding_multiplier
        llm.embedding_multiplier = 1.0
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3)])
def test_a_frozen_tower_gives_the_same_gradient(
    dtype: torch.dtype, tolerance: float, pictures: Pictures, attached: Any
) -> None:
    """Without a tower that trains there is no second pass through the projector.

    Each loss of one forward has that gradient, and without gradients the same value. In float16 a loss scale keeps
    gradients from becoming 0, which they would w.r.t. tokens as long as these.
    """
    found = []
    for trains in (True, False):
        made = MAKERS["qwen2_5_vl"]()
        made.model.model.visual.merger.mlp[2].weight.data *= 1000
        made.model.model.visual.requires_grad_(trains)
        made.model.model.visual.merger.requires_grad_(True)
        one = attached(made, basic={})
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            made.model(**made.batch(pictures.batch(NAMES)))
            assert (one.kept().apart is not None) == trains
            with torch.no_grad():
                value = float(one.loss())
            loss = one.loss()
        assert float(loss.detach()) == pytest.approx(value, rel=1e-6)
        (65536 * loss).backward()
        found.append(gradients(made.model))
    close(found[1], found[0], tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MAKERS if FAMILIES[name].images or name == "gemma3"])
def test_basic_knows_images_without_names(name: str, pictures: Pictures, attached: Any) -> None:
    """Of a sample with several, of which each counts as much."""
    made, names = tiny(name), [["wide.png", "tall.png"], ["odd.png"]]
    batch, found = made.batch(pictures.batch(names)), []
    one = attached(made, labels=pictures.open(), basic={})
    for given in ((), names):
        made.model(**batch)
        one.loss(given)
        found.append([float(one.terms[term].detach()) for term in ("das", "sds")])
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_pan_and_scan_leaves_images_unknown(pictures: Pictures, attached: Any) -> None:
    """Its views are as many entries, so an image counts as one by its sample."""
    made = gemma3()
    made.processor.images_kwargs = SCAN
    batch, found = made.batch(pictures.batch([["wide.png"], ["tall.png"]])), []
    one = attached(made, labels=pictures.open(), basic={})
    for given in ((), NAMES):
        made.model(**batch)
        found.append(float(one.loss(given).detach()))
    assert len(batch["pixel_values"]) == 6
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_text_alone_gives_nothing(pictures: Pictures, attached: Any) -> None:
    made = tiny("qwen2_vl")
    one = attached(made, labels=pictures.open(), sea={}, basic={})
    batch = made.batch([([], "red"), ([], "What?")])
    out = made.model(**batch)
    loss = out.loss + one.loss()
    loss.backward()
    assert float(loss.detach()) == float(out.loss.detach())
    (scale,) = one.parameters()
    assert scale.grad is not None
    assert not scale.grad.any()
    with pytest.raises(UserError, match="expected as many ids as the last forward has images, 0; found 1"):
        one.loss(["wide.png"])


def hidden(made: Any, batch: dict[str, Any], samples: Any) -> dict[str, Any]:
    """As LLaMA-Factory's collator has a white image in a batch of text alone."""
    at = torch.isin(torch.arange(len(batch["input_ids"])), torch.tensor(samples))
    of_images = batch["input_ids"] == made.model.config.image_token_id
    return batch | {"attention_mask": batch["attention_mask"] * ~(at.unsqueeze(1) & of_images)}


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "internvl"])
def test_an_image_that_the_mask_hides_is_none(name: str, pictures: Pictures, attached: Any) -> None:
    made = tiny(name)
    whole = pictures.batch([["wide.png"], ["tall.png", "odd.png"] if name == "internvl" else ["tall.png"]])
    both, one = made.batch(whole), attached(made, labels=pictures.open(), sea={}, basic={})
    token = made.model.config.image_token_id
    assert samples_with_images(both, token) == 2
    made.model(**hidden(made, both, [0, 1]))
    loss = one.loss([[], []])
    loss.backward()
    assert (loss.detach(), list(one.terms), one.pairs) == (0, ["sea"], 0)
    assert samples_with_images(hidden(made, both, [0, 1]), token) == 0
    assert samples_with_images(hidden(made, both, [1]), token) == 1
    one.detach()
    one = attached(made, basic={})
    found = []
    for batch in (made.batch(whole[:1]), hidden(made, both, [1])):
        made.model(**batch)
        one.loss()
        found.append([float(term.detach()) for term in one.terms.values()])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_an_image_without_labels_takes_no_part(pictures: Pictures, attached: Any) -> None:
    made = tiny("llava")
    one = attached(made, labels=pictures.open(), sea={"window": 1})
    made.model(**made.batch(pictures.batch([["wide.png"], ["tall.png"]])))
    one.loss([["wide.png"], ["elsewhere.png"]])
    drawn, _ = one._drawn(one.kept(), ["wide.png", "elsewhere.png"], [0, 0])
    assert len(drawn)
    assert (drawn < 16).all()
    made = tiny("internvl")
    one = attached(made, labels=pictures.open(), sea={})
    made.model(**made.batch(pictures.batch([["wide.png"]])))
    with pytest.raises(UserError, match=r"internvl: cuts images into tiles by their size, .* in attached\.sizes by"):
        one.loss(["elsewhere.png"])
    one.sizes = {"elsewhere.png": pictures.image("wide.png").size}
    assert one.loss(["elsewhere.png"]) == 0


@pytest.mark.parametrize("name", ["smolvlm", "idefics3", "internvl", "llama4"])
def test_basic_alone_needs_no_sizes(name: str, pictures: Pictures, attached: Any) -> None:
    """Names are of no use without them; with some of them all are wanted."""
    made = tiny(name)
    one = attached(made, basic={"degree": UNTAPPED.get(name, "auto")})
    batch, found = made.batch(pictures.batch(NAMES)), []
    for given, sizes in (((), {}), (NAMES, {}), (NAMES, {some: pictures.image(some).size for (some,) in NAMES})):
        one.sizes = sizes
        made.model(**batch)
        found.append(float(one.loss(given).detach()))
        assert "lm_loss" in one.metrics([batch | {"image_ids": given}])
    assert found == pytest.approx([found[0]] * 3, rel=1e-6)
    one.sizes.popitem()
    made.model(**batch)
    with pytest.raises(UserError, match=r"put their \(width, height\) in attached\.sizes"):
        one.loss(NAMES)


def test_what_is_drawn_depends_on_seed_step_and_image(pictures: Pictures, attached: Any) -> None:
    made, drawn = tiny("llava"), []
    for seed, step, names in ((0, 0, NAMES), (0, 0, NAMES[:1]), (0, 1, NAMES), (1, 0, NAMES)):
        one = attached(made, labels=pictures.open(), sea={}, seed=seed)
        made.model(**made.batch(pictures.batch(names)))
        ids = [name for some in names for name in some]
        patches, words = one._drawn(one.kept(), ids, [step] * len(ids))
        drawn.append([pair for pair in zip(patches.tolist(), words.tolist(), strict=True) if pair[0] < 16])
        one.detach()
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert drawn[0] != drawn[3]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llama4", "llava"])
def test_detach_leaves_no_trace(name: str, pictures: Pictures, attached: Any, tmp_path: Path) -> None:
    made = tiny(name)
    made.model.save_pretrained(tmp_path / "before")
    made.model(**made.batch(pictures.batch(NAMES)), output_hidden_states=True)  # transformers adds hooks of its own
    before = _traces(made.model)
    one = attached(made, labels=pictures.open(), sea={}, basic={"degree": UNTAPPED.get(name, "auto")})
    assert _traces(made.model) != before
    made.model(**made.batch(pictures.batch(NAMES)))
    one.loss(NAMES).backward()
    made.model.save_pretrained(tmp_path / "with")
    one.detach()
    one.detach()
    assert _traces(made.model) == before
    made.model.save_pretrained(tmp_path / "after")
    for folder in ("with", "after"):
        for file in (tmp_path / "before").iterdir():
            assert (tmp_path / folder / file.name).read_bytes() == file.read_bytes()
        assert len(list((tmp_path / folder).iterdir())) == len(list((tmp_path / "before").iterdir()))
    with pytest.raises(UserError, match="it was detached"):
        one.loss(NAMES)


def _traces(model: nn.Module) -> dict[str, Any]:
    """Everything that is on the instances of a model: attributes, hooks, and the attention's name."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        found[name] = sorted(key for key in module.__dict__ if not key.startswith("_non_persistent"))
        found[f"{name} hooks"] = len(module._forward_hooks) + len(module._forward_pre_hooks)
        if getattr(module, "config", None) is not None:
            found[f"{name} attention"] = module.config._attn_implementation
    return found


def test_a_copy_of_the_model_is_not_watched(pictures: Pictures, attached: Any) -> None:
    made = tiny("llava")
    one = attached(made, labels=pictures.open(), sea={}, basic={})
    copied = deepcopy(made.model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    batch = made.batch(pictures.batch(NAMES))
    made.model(**batch)
    kept = one.kept()
    assert not copied(**batch).logits.any()
    assert one.kept() is kept


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "no term is on; give sea, das, sds or basic"),
    ({"sea": {}}, "sea: expected labels; found none; give labels=open_labels"),
    ({"sea": {"wieght": 1}, "labels": True}, "loss.sea.wieght: there is no such key; expected weight"),
    ({"sea": {"weight": -1}, "labels": True}, "loss.sea.weight: .*greater than or equal to 0.*found -1"),
    ({"sea": {"weight": "auto"}, "labels": True}, "loss.sea.weight: auto follows L_lm's gradient"),
    ({"sea": {"match_norm": True}, "labels": True}, "loss.sea.match_norm: scales the projector"),
    ({"basic": {"lens": "ridge"}}, "loss.basic.lens: .*set it to none"),
    ({"basic": {"text": "prompt"}}, "loss.basic.text: .*set it to all"),
    ({"basic": {"layers": 9}}, "loss.basic.layers: 9, but the LLM has 4 layers"),
    ({"das": 1.0}, "das: expected keys and values, .*found 1.0"),
    ({"sea": {}, "labels": "runs/labels"}, "labels: expected what open_labels gives; found str"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_settings_are_refused_by_name(settings: dict[str, Any], message: str, pictures: Pictures) -> None:
    made = tiny("llava")
    before = _traces(made.model)
    given = settings | ({"labels": pictures.open()} if settings.get("labels") is True else {})
    with pytest.raises(UserError, match=message):
        attach(made.model, made.processor, **given)
    assert _traces(made.model) == before


@pytest.mark.parametrize("size", [(300, 10), (600, 12), (320, 13), (12, 600), (10, 300), (90, 31), (640, 480)])
def test_thin_images_are_right(size: tuple[int, int], attached: Any) -> None:
    """Their short side is made as long as a visual token. An image on its side is wrong."""
    made = tiny("qwen2_5_vl")
    one = attached(made, basic={})
    made.model(**made.batch([([Image.new("RGB", size, "red")], "a red patch")]))
    one.sizes = {"x": size}
    assert one.loss(["x"]) > 0
    made.model(**made.batch([([Image.new("RGB", size, "red")], "a red patch")]))
    one.sizes = {"x": (size[1], size[0])}
    with pytest.raises(UserError, match=f"a grid of the shape of {size[1]} x {size[0]} pixels"):
        one.loss(["x"])


@pytest.mark.parametrize("size", [(300, 20), (20, 300), (900, 16)])
@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_images_too_thin_for_tiles_have_a_whole_view(name: str, size: tuple[int, int], attached: Any) -> None:
    made = tiny(name)
    one = attached(made, basic={})
    one.sizes = {"x": size}
    made.model(**made.batch([([Image.new("RGB", size, "red")], "a red patch")]))
    (laid,) = one.laid(one.kept(), ["x"])
    assert [tile.grid for tile in laid.tiles] == [(4, 4)]
    assert one.loss(["x"]) > 0


def test_generation_goes_on_as_before(pictures: Pictures, attached: Any) -> None:
    made = tiny("qwen2_5_vl")
    batch = made.batch(pictures.batch(NAMES[:1]))
    del batch["labels"]
    made.model.eval()
    before = made.model.generate(**batch, max_new_tokens=4, do_sample=False)
    attached(made, labels=pictures.open(), sea={}, basic={})
    made.model.eval()
    assert torch.equal(made.model.generate(**batch, max_new_tokens=4, do_sample=False), before)
