"""Where each family's visual tokens lie: planted colours, through the family's own processor and code."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    Gemma3ImageProcessor,
    Gemma3ImageProcessorPil,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaImageProcessor,
)
from transformers.video_utils import VideoMetadata

from sea_pipeline.core.errors import UserError
from tests.trainer.attach.families import (
    MAKERS,
    SCAN,
    Tiny,
    gemma3,
    idefics3,
    internvl,
    llama4,
    llava,
    llava_next,
    llava_onevision,
    paligemma,
    square,
    text_settings,
    tiny,
    vision_settings,
)
from tests.trainer.attach.planted import SHAPES, forward, missed_cells, missed_corners, painted
from tests.trainer.attach.worlds import Pictures
from trainer.attach import FAMILIES, attach
from trainer.attach.tiles import Size


def all_hit(made: Tiny, shapes: Sequence[Size], root: Path, every: int = 1) -> None:
    """A cell that is painted changes that token more than all others of its tile, and is what its label says."""
    missed, cells = missed_cells(made, shapes, root, every)
    assert missed == []
    assert cells > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_a_colour_in_a_cell_is_that_tokens_label(name: str, tmp_path: Path) -> None:
    all_hit(tiny(name), SHAPES, tmp_path, every=3)


@pytest.mark.slow
def test_onevision_thins_out_large_grids(tmp_path: Path) -> None:
    all_hit(llava_onevision(most=1), SHAPES[:2], tmp_path)


def cut_llava() -> Tiny:
    tower = CLIPVisionConfig(**vision_settings(image_size=39, num_hidden_layers=3))
    return llava(tower=tower, size={"shortest_edge": 39}, crop_size=square(39))


CUT: dict[str, Callable[[], Tiny]] = {
    "llava": cut_llava,
    "thinned": partial(llava_onevision, 1, side=38),
    **{
        make.__name__: partial(make, side=39)
        for make in (llava_next, llava_onevision, idefics3, gemma3, paligemma, internvl, llama4)
    },
}
"""Towers of 39 or 38 pixels, which hold 4 patches of 8: none sees the last pixels of an image, a view or a tile."""


@pytest.mark.slow
@pytest.mark.parametrize("name", CUT)
def test_pixels_that_make_no_patch_move_no_place(name: str, tmp_path: Path) -> None:
    made = CUT[name]()
    for size in SHAPES[::2]:
        missed, cells = missed_corners(made, size, 0.65 if name == "thinned" else 0.7)
        assert missed == []
        assert cells >= 4
    if name in ("llava", "llava_next", "thinned"):
        all_hit(made, SHAPES[:1], tmp_path, every=3)


@pytest.mark.slow
def test_pan_and_scan_crops_are_laid_out(tmp_path: Path) -> None:
    made = gemma3()
    made.processor.images_kwargs = SCAN
    all_hit(made, (*SHAPES[:2], (200, 200)), tmp_path)
    with torch.no_grad():
        assert len(made.batch([([painted((96, 48))], "red")])["pixel_values"]) == 3


@pytest.mark.parametrize("kind", [Gemma3ImageProcessor, Gemma3ImageProcessorPil])
def test_pan_and_scan_of_either_image_processor(kind: Any, pictures: Pictures, attached: Any) -> None:
    """Its settings are the processor's; those of a call are not known. That it is on may be said there."""
    made = gemma3()
    made.processor.image_processor = kind(size={"height": 32, "width": 32})
    one = attached(made, labels=pictures.open(), sea={})
    samples = pictures.batch([["wide.png"], ["square.png"]])
    batch = made.batch(samples, **SCAN)
    made.model(**batch)
    with pytest.raises(UserError, match=r"gemma3: expected 8 visual .* found 16; .*images_kwargs and not per call"):
        one.loss(["wide.png", "square.png"])
    made.processor.images_kwargs = SCAN | {"do_pan_and_scan": False}
    made.model(**made.batch(samples, do_pan_and_scan=True))
    assert one.loss(["wide.png", "square.png"]) > 0
    laid = one.laid(one.kept(), ["wide.png", "square.png"])
    assert [tile.box for tile in laid[0].tiles] == [(0, 0, 1, 1), (0, 0, 0.5, 1), (0.5, 0, 1, 1)]
    assert len(laid[1].tiles) == 1


def test_bars_of_a_padded_tower_have_no_labels(tmp_path: Path) -> None:
    made = llava()
    crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    made.processor.image_processor = LlavaImageProcessor(do_pad=True, **crop)
    all_hit(made, SHAPES[:2], tmp_path)


@pytest.mark.parametrize("kind", [Dinov2WithRegistersConfig, DINOv3ViTConfig])
def test_a_towers_registers_have_no_place(kind: Any, tmp_path: Path) -> None:
    all_hit(llava(tower=kind(**vision_settings(num_hidden_layers=3, num_register_tokens=4))), SHAPES[:1], tmp_path)


def test_a_tower_of_another_grid_is_refused(pictures: Pictures, attached: Any) -> None:
    made = llava(tower=Dinov2WithRegistersConfig(**vision_settings(num_register_tokens=4)))
    one = attached(made, labels=pictures.open(), sea={})
    made.model(**made.batch(pictures.batch([["wide.png"]])))
    made.model.config.vision_config.num_register_tokens = 0
    with pytest.raises(UserError, match="found 20; the tower 'dinov2_with_registers' has another grid; choose a model"):
        one.loss(["wide.png"])


@pytest.mark.parametrize("name", ["smolvlm", "internvl"])
def test_a_video_that_enters_as_images_is_named(name: str, pictures: Pictures, attached: Any) -> None:
    made = tiny(name)
    one = attached(made, labels=pictures.open(), sea={})
    frames = np.stack([np.asarray(pictures.image("wide.png"))] * 4)
    told = VideoMetadata(fps=2.0, duration=2.0, total_num_frames=4, frames_indices=[0, 1, 2, 3])
    given = {"videos": [frames], "video_metadata": [told], "do_sample_frames": False, "return_tensors": "pt"}
    made.model(**made.processor(text=["<video> red"], **given))
    for ids, found in (([], r"found none, and 16 visual tokens; give the ids"), (["wide.png"], "found 16")):
        with pytest.raises(UserError, match=f"{found}; if some are a video's, leave its rows out"):
            one.loss(ids)


OFF: dict[str, Callable[[Any], None]] = {
    "smolvlm": lambda given: setattr(given.image_processor, "do_image_splitting", False),
    "idefics3": lambda given: given.__dict__.update(images_kwargs={**given.images_kwargs, "do_image_splitting": False}),
    "internvl": lambda given: setattr(given, "images_kwargs", {"crop_to_patches": False}),
    "gemma3": lambda given: setattr(given, "images_kwargs", SCAN | {"do_pan_and_scan": False}),
}
"""How a processor is set to cut no images."""


@pytest.mark.parametrize("name", OFF)
def test_as_many_names_as_tiles_are_refused(name: str, pictures: Pictures, attached: Any) -> None:
    made = MAKERS[name]()
    if name == "gemma3":
        made.processor.images_kwargs = SCAN
    one, counts = attached(made, labels=pictures.open(), sea={}), []
    for change in (lambda _: None, OFF[name]):
        change(made.processor)
        made.model(**made.batch(pictures.batch([["wide.png"]])))
        counts.append(one.kept().call.total // 4)
        assert one.laid(one.kept(), ["wide.png"])[0].tokens == 4 * counts[-1]
        with pytest.raises(UserError, match=f"{name}: expected .* found {4 * counts[-1]}"):
            one.loss(["wide.png"] * max(2, counts[-1]))
    assert counts[0] > counts[1] == 1


def test_several_images_of_a_sample_in_onevision_are_padded(pictures: Pictures, attached: Any) -> None:
    made = tiny("llava_onevision")
    one = attached(made, labels=pictures.open(), sea={})
    kept, fed = forward(one, made.batch(pictures.batch([["wide.png", "tall.png"]])))
    laid = one.laid(kept, ["wide.png", "tall.png"])
    assert torch.equal(fed, kept.visual)
    assert [image.tokens for image in laid] == [17, 17]
    assert laid[0].tiles[0].box == (0.0, -0.5, 1.0, 1.5)
    assert laid[1].tiles[0].box == (-0.5, 0.0, 1.5, 1.0)


def test_the_table_is_the_one_that_is_tested() -> None:
    assert FAMILIES.keys() == MAKERS.keys()


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_an_image_of_another_shape_is_refused(name: str, pictures: Pictures, attached: Any) -> None:
    """A resized copy, of which either side may be rounded, has the label's shape; one on its side has not.

    Of the other families, pixels of one size say nothing of it.
    """
    made = tiny(name)
    one = attached(made, labels=pictures.open(), sea={})
    one.sizes = {"rounded": (50, 33)}
    wide = pictures.image("wide.png")
    copies = [(wide.resize((77, 38)), "wide.png", True), (wide.resize((300, 200)), "rounded", True)]
    others = [wide.crop((0, 0, 48, 48)), wide.resize((64, 64)), wide.rotate(90, expand=True)]
    for image, named, fits in [*copies, *((image, "wide.png", False) for image in others)]:
        made.model(**made.batch([([image], "red")]))
        if fits:
            one.loss([named])
            continue
        said = f"{name}: expected .* of the shape of 96 x 48 pixels.*; found .* upright and whole"
        with pytest.raises(UserError, match=said):
            one.loss([named])


def test_other_families_are_refused_by_name() -> None:
    model = LlamaForCausalLM(LlamaConfig(**text_settings()))
    with pytest.raises(UserError, match=r"of the type 'llama'; expected one of llava, .*families\.py: which module"):
        attach(model, None, basic={})
