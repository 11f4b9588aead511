"""What a caller of `attach` and `loss` does wrong is refused in one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from transformers import DynamicCache

from sea_pipeline.core.errors import UserError
from tests.support.refused import refused
from tests.trainer.attach.families import MAKERS, tiny
from tests.trainer.attach.worlds import NAMES, Pictures
from trainer.attach import attach

WHOLE = "expected the model's whole processor, with a tokenizer and an image processor; found"
WRONG: list[tuple[Any, str]] = [
    (lambda made, one: attach(made.model, made.processor.tokenizer, basic={}), f"{WHOLE} TokenizersBackend"),
    (lambda made, one: attach(made.model, made.processor.image_processor, basic={}), f"{WHOLE} CLIPImageProcessor"),
    (lambda made, one: attach(made.model, None, basic={}), f"{WHOLE} NoneType"),
    (lambda made, one: attach(made.model, tiny("qwen2_vl").processor, basic={}), "a llava; found Qwen2VLProcessor, wh"),
    (
        lambda made, one: attach(nn.DataParallel(made.model), made.processor, basic={}),
        r"inside of DataParallel.*\.module,",
    ),
    (
        lambda made, one: attach(nn.ModuleDict({"vlm": made.model}), made.processor, basic={}),
        r"attach to its \.vlm, and",
    ),
    (lambda made, one: attach(nn.Linear(1, 1), made.processor, basic={}), "type 'Linear'; .* needs a line in trainer"),
    (lambda made, one: attach(made.model.model, made.processor, basic={}), "with its LM head; found LlavaModel, which"),
    (lambda made, one: attach(made.model, made.processor, basic={}, seed=-1), "attach: seed: .*found -1"),
    (lambda made, one: attach(made.model, made.processor, basic={}, seed="a"), "attach: seed: .*found 'a'"),  # type: ignore
    (lambda made, one: one.loss([[1], [2]]), "image_ids: .* found 1, of the type int; give the names as"),
    (lambda made, one: one.loss(torch.tensor([1, 2])), "image_ids: .* found 1, of the type int"),
    (lambda made, one: one.loss([[Path("wide.png")], []]), "image_ids: .* of the type PosixPath"),
    (lambda made, one: one.loss([b"wide.png", b"tall.png"]), "image_ids: .* found b'wide.png', of the type bytes"),
    (lambda made, one: one.nearest_words([1, 2]), "image_ids: .* found 1"),
    (lambda made, one: one.metrics([{"image_ids": [1]}]), "image_ids: .* found 1"),
    (lambda made, one: one.metrics(["wide.png"]), "batches that are dictionaries .*found <class 'str'>"),
    (lambda made, one: one.metrics(), "expected a loss since the model's last forward.*; found none; call it right"),
    (lambda made, one: one.loss(NAMES, draws=[1]), "draws: expected a number for each of 2 images; found 1"),
    (lambda made, one: one.loss(NAMES, draws=[1, -1]), "attached.loss: draws: .*found -1"),
    (lambda made, one: one.load_state_dict(made.model.lm_head.state_dict()), r"log_scale, step; found \['weight'\]"),
    (lambda made, one: one.load_state_dict({"step": 1}), r"found \['step'\]; give what state_dict\(\) of"),
    (lambda made, one: one.load_state_dict(1), "expected a state of log_scale, step; found int"),  # type: ignore
    (lambda made, one: one.load_state_dict({"step": -1, "log_scale": 0}), "load_state_dict: step: .*found -1"),
    (lambda made, one: one.load_state_dict({"step": 1, "log_scale": float("nan")}), "log_scale: .*finite .*found nan"),
    (lambda made, one: one.load_state_dict({"step": 1, "log_scale": "a"}), "log_scale: .*found 'a'"),
    (lambda made, one: (setattr(one, "step", 0.5), one.loss(NAMES)), r"attached.step: .*found 0\.5"),
]


def test_wrong_arguments_are_one_line(pictures: Pictures, attached: Any) -> None:
    made = tiny("llava")
    batch = made.batch(pictures.batch(NAMES))
    one = attached(made, labels=pictures.open(), sea={})
    made.model(**batch)
    for call, message in WRONG:
        with pytest.raises(UserError, match=message):
            call(made, one)


def test_misuse_is_refused_by_name(pictures: Pictures, attached: Any) -> None:
    made = tiny("llava")
    one = attached(made, labels=pictures.open(), sea={}, basic={})
    with pytest.raises(UserError, match=r"expected a forward of the model before it"):
        one.loss()
    with pytest.raises(UserError, match=r"attached to already; call detach\(\)"):
        attach(made.model, made.processor, labels=pictures.open(), sea={})
    batch = made.batch(pictures.batch(NAMES))
    made.model(**batch)
    with pytest.raises(UserError, match=r"expected ids of all 2 images of the batch, in their order; found 1"):
        one.loss(["wide.png"])
    with torch.no_grad():
        made.model(**batch)
    with refused(match=r"found a forward under torch\.no_grad\(\).*; call loss right after the forward"):
        one.loss(NAMES)
    made.model.eval()
    made.model(**batch)
    with pytest.raises(UserError, match=r"call model\.train\(\) before the forward"):
        one.loss(NAMES)
    made = tiny("qwen2_vl")
    attached(made, labels=pictures.open(), sea={})
    with pytest.raises(UserError, match=r"qwen2_vl: expected images; found a video \(pixel_values_videos\)"):
        made.model(**batch, pixel_values_videos=batch["pixel_values"])


@pytest.mark.parametrize("settings", [{"sea": {}}, {"basic": {}}])
def test_images_that_enter_past_the_projector_are_refused(
    settings: dict[str, Any], pictures: Pictures, attached: Any
) -> None:
    """Generation itself makes such forwards, and goes on."""
    made, names = MAKERS["qwen2_5_vl"](), NAMES if "sea" in settings else []
    batch = made.batch(pictures.batch(NAMES))
    one = attached(made, labels=pictures.open(), **settings)
    encoded = made.model.model.get_image_features(batch.pop("pixel_values"), batch["image_grid_thw"])
    made.model(**batch, mm_encoder_outputs={"image": encoded})
    for call in (one.loss, one.nearest_words):
        with pytest.raises(UserError, match=r"found image tokens in input_ids without pixel_values, as mm_enc.*; give"):
            call(names)
    batch["inputs_embeds"] = made.model.get_input_embeddings()(batch.pop("input_ids"))
    made.model(**batch)
    with pytest.raises(UserError, match="expected input_ids, and pixel_values of images; found inputs_embeds; give"):
        one.loss(names)


@pytest.mark.parametrize("settings", [{"sea": {}}, {"basic": {}}])
@pytest.mark.parametrize("later", ["generate", "text"])
def test_a_later_forward_without_gradients_is_refused(
    settings: dict[str, Any], later: str, pictures: Pictures, attached: Any
) -> None:
    made, names = tiny("llava"), NAMES if "sea" in settings else []
    batch = made.batch(pictures.batch(NAMES))
    one = attached(made, labels=pictures.open(), **settings)
    made.model(**batch)
    asked = {name: value for name, value in batch.items() if name != "labels"}
    text = {"input_ids": batch["input_ids"][:, -2:]}
    with torch.no_grad():
        made.model.generate(**asked, max_new_tokens=2, do_sample=False) if later == "generate" else made.model(**text)
    with refused(match=r"found a forward under torch\.no_grad\(\), as generate\(\) .*; call loss right"):
        one.loss(names)
    with torch.no_grad():  # as an evaluation measures it
        assert one.loss() == 0
    made.model(**batch)
    assert one.loss(names).requires_grad


def test_tokens_in_a_cache_are_refused(pictures: Pictures, attached: Any) -> None:
    """Another cache is that of any forward."""
    made = tiny("llava")
    one = attached(made, basic={})
    batch, cache = made.batch(pictures.batch(NAMES)), DynamicCache()
    made.model(**batch, past_key_values=cache)
    assert one.loss() > 0
    with refused(match=rf"found {batch['input_ids'].shape[1]} tokens before them in past_key_values"):
        made.model(**batch, past_key_values=cache)


def test_a_mask_of_other_tokens_is_refused(pictures: Pictures, attached: Any) -> None:
    made = tiny("llava")
    attached(made, basic={})
    batch = made.batch(pictures.batch(NAMES))
    mask = torch.nn.functional.pad(batch["attention_mask"], (4, 0), value=1)
    with refused(match=f"as long as the {mask.shape[1] - 4} input_ids; found {mask.shape[1]}; give one"):
        made.model(**batch | {"attention_mask": mask})


@pytest.mark.parametrize("form", ["bool", "float", "dictionary"])
def test_a_mask_that_may_not_tell_padding_is_refused_if_padding_counts(
    form: str, pictures: Pictures, attached: Any
) -> None:
    """Padding that attends to itself may have the mask of text."""
    family = "gemma3" if form == "dictionary" else "llava"
    made, names = tiny(family), NAMES[:2]
    batch = made.batch(pictures.batch(names))
    valid = batch["attention_mask"].bool()
    square = torch.ones(valid.shape[1], valid.shape[1], dtype=torch.bool).tril() & valid[:, None, None, :]
    forms = {
        "bool": square,
        "float": torch.zeros(square.shape).masked_fill(~square, torch.finfo(torch.float32).min),
        "dictionary": dict.fromkeys(("full_attention", "sliding_attention"), square),
    }
    other = batch | {"attention_mask": forms[form]}
    one = attached(made, basic={})
    with pytest.raises(UserError, match=r"of two dimensions; found another form, .*basic=\{'degree': 'equal'\}"):
        made.model(**other)
    one.detach()
    one, found = attached(made, labels=pictures.open(), sea={}, basic={"degree": "equal"}), []
    for given in (batch, other):
        one.step = 0
        made.model(**given)
        found.append(float(one.loss(names).detach()))
    if family == "llava":  # Gemma 3's images see ahead, which this mask does not let them
        assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_embeddings_and_layers_that_are_elsewhere_are_refused(pictures: Pictures, attached: Any) -> None:
    """As FSDP 1, tensor parallelism and DeepSpeed's ZeRO-3 have them after a forward; and as device_map places them."""
    made = MAKERS["llava"]()
    one = attached(made, labels=pictures.open(), sea={})
    made.model(**made.batch(pictures.batch(NAMES)))
    embed = made.model.get_input_embeddings()
    for rest in (embed.weight.data[0], embed.weight.data.new_empty(0)):
        embed.weight.data = rest
        with pytest.raises(UserError, match=r"cut by FSDP 1; use FSDP 2, torch's fully_shard"):
            one.loss(NAMES)
    embed.weight.ds_id = 0
    with pytest.raises(UserError, match=r"cut by DeepSpeed's ZeRO-3; train with ZeRO-2"):
        one.loss(NAMES)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        cut = distribute_tensor(torch.ones(4, 2), init_device_mesh("cpu", (1,)), [Shard(0)])
    finally:
        dist.destroy_process_group()
    embed.weight = nn.Parameter(cut)
    with pytest.raises(UserError, match="cut by tensor parallelism; train with DDP"):
        one.loss(NAMES)
    made = MAKERS["llava"]()
    made.model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    with pytest.raises(UserError, match=r"expected the model on one device; found device_map over 0, 1"):
        attached(made, basic={})


def test_heads_that_are_in_other_processes_are_refused(pictures: Pictures, attached: Any) -> None:
    """As torch's parallelize_module leaves a layer: half of its heads, and a sum over processes behind them."""
    made = MAKERS["llava"]()
    attention = made.model.model.language_model.layers[0].self_attn
    for name in ("q_proj", "k_proj", "v_proj"):
        weight = getattr(attention, name).weight
        weight.data = weight.data.chunk(2)[0]
    attention.o_proj.weight.data = attention.o_proj.weight.data.chunk(2, dim=1)[0]
    attached(made, basic={})
    with pytest.raises(UserError, match=r"expected all 4 heads of a layer; found 2, .* or set loss.basic.degree: eq"):
        made.model(**made.batch(pictures.batch(NAMES)))
