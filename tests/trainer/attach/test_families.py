"""Where each family's visual tokens lie: planted colours, through the family's own processor and code."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sea_pipeline.core.errors import UserError
from tests.support.world import COLOURS
from tests.trainer.attach.families import MAKERS, Tiny, gemma3, llava, llava_onevision, tiny
from tests.trainer.attach.worlds import Pictures, labelled
from trainer.attach import FAMILIES, attach
from trainer.attach.attached import Attached
from trainer.attach.tiles import ImageTokens, Size

GROUND, COLOUR = "grey", "red"
SHAPES = ((384, 192), (160, 320), (280, 200))
"""(width, height): wide, tall, and one that gets bars where there are any; cells end near whole pixels."""


class Planted:
    """An attached model that is shown pictures of one colour with a cell of another one."""

    def __init__(self, made: Tiny, pictures: Pictures) -> None:
        self.made = made
        self.attached: Attached = attach(made.model, made.processor, labels=pictures.open(), sea={})

    def tokens(self, images: Sequence[Image.Image]) -> tuple[torch.Tensor, list[ImageTokens]]:
        """V of pictures of one size, which must be what enters the LLM, and where it lies."""
        kept, fed = _forward(self.attached, self.made.batch([([image], "a red patch") for image in images]))
        assert torch.equal(fed, kept.visual)
        laid = self.attached._parts.family.lay(kept.call, [images[0].size] * len(images))
        assert sum(one.tokens for one in laid) == len(kept.visual)
        return kept.visual, laid


def _forward(attached: Attached, batch: dict[str, Any]) -> tuple[Any, torch.Tensor]:
    """What is kept of a forward, and what its LLM is given at the images' places."""
    given: dict[str, Any] = {}
    hook = attached._parts.llm.register_forward_pre_hook(lambda _, __, named: given.update(named), with_kwargs=True)
    with torch.no_grad():
        attached.model(**batch)
    hook.remove()
    kept = attached.kept()
    return kept, given["inputs_embeds"][kept.columns]


def painted(size: Size, box: Sequence[float] = (0, 0, 0, 0)) -> Image.Image:
    width, height = size
    values = np.full((height, width, 3), COLOURS[GROUND], np.uint8)
    x0, y0, x1, y1 = (max(0, round(edge * side)) for edge, side in zip(box, size * 2, strict=True))
    values[y0:y1, x0:x1] = COLOURS[COLOUR]
    return Image.fromarray(values)


def cell_boxes(laid: ImageTokens) -> Iterator[tuple[int, int, list[float]]]:
    """The tile, the cell and the box of every cell that lies in the image for its larger part."""
    for number, tile in enumerate(laid.tiles):
        x0, y0, x1, y1 = tile.box
        width, height = (x1 - x0) / tile.grid[1], (y1 - y0) / tile.grid[0]
        for cell in range(tile.grid[0] * tile.grid[1]):
            row, column = divmod(cell, tile.grid[1])
            x, y = x0 + column * width, y0 + row * height
            if min(x + width, 1) - max(x, 0) > 0.6 * width and min(y + height, 1) - max(y, 0) > 0.6 * height:
                yield number, cell, [x, y, x + width, y + height]


def check_planted(made: Tiny, shapes: Sequence[Size], root: Path, every: int = 1) -> None:
    """A cell that is painted changes that token more than all others of its tile, and is what its label says."""
    places = {}
    for size in shapes:
        bare = attach(made.model, made.processor, labels=None, basic={"degree": "equal"})
        kept, _ = _forward(bare, made.batch([([painted(size)], "a red patch")]))
        (laid,) = bare._parts.family.lay(kept.call, [size])
        bare.detach()
        places[size] = list(cell_boxes(laid))[::every]
        for number, (_, _, box) in enumerate(places[size]):
            file = root / "images" / f"{size[0]}-{number:03d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            painted(size, box).save(file)
    planted = Planted(made, labelled(root))
    red = list(COLOURS).index(COLOUR)
    for size, cells in places.items():
        blank, _ = planted.tokens([painted(size)])
        visual, laid = planted.tokens([painted(size, box) for *_, box in cells])
        for number, ((tile, cell, _), one) in enumerate(zip(cells, laid, strict=True)):
            change = (visual[number * one.tokens :][: one.tokens] - blank).norm(dim=-1)
            assert int(change[torch.from_numpy(one.tiles[tile].cells)].argmax()) == cell
            word_ids = planted.attached.labels_on(f"{size[0]}-{number:03d}.png", one.tiles[tile]).word_ids
            assert word_ids[cell, 0] == red
            assert (word_ids[:, 0] == red).mean() <= 0.5, "the others are not"
    planted.attached.detach()


@pytest.mark.parametrize("name", MAKERS)
def test_a_colour_in_a_cell_is_that_tokens_label(name: str, tmp_path: Path) -> None:
    check_planted(tiny(name), SHAPES, tmp_path, every=3)


def test_onevision_thins_out_large_grids(tmp_path: Path) -> None:
    check_planted(llava_onevision(most=1), SHAPES[:2], tmp_path)


def test_pan_and_scan_crops_are_laid_out(tmp_path: Path) -> None:
    scan = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 16, "pan_and_scan_max_num_crops": 4}
    made = gemma3()
    made.processor.images_kwargs = scan | {"pan_and_scan_min_ratio_to_activate": 1.2}
    check_planted(made, (*SHAPES[:2], (200, 200)), tmp_path)
    with torch.no_grad():
        assert len(made.batch([([painted((96, 48))], "red")])["pixel_values"]) == 3


def test_bars_of_a_padded_tower_have_no_labels(tmp_path: Path) -> None:
    from transformers import LlavaImageProcessor

    made = llava()
    crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    made.processor.image_processor = LlavaImageProcessor(do_pad=True, **crop)
    check_planted(made, SHAPES[:2], tmp_path)


def test_several_images_of_a_sample_in_onevision_are_padded(pictures: Pictures) -> None:
    made = tiny("llava_onevision")
    attached = attach(made.model, made.processor, labels=pictures.open(), sea={})
    batch = made.batch(pictures.batch([["wide.png", "tall.png"]]))
    kept, fed = _forward(attached, batch)
    laid = attached.laid(kept, ["wide.png", "tall.png"])
    assert torch.equal(fed, kept.visual)
    assert [one.tokens for one in laid] == [17, 17]
    assert laid[0].tiles[0].box == (0.0, -0.5, 1.0, 1.5)
    assert laid[1].tiles[0].box == (-0.5, 0.0, 1.5, 1.0)
    attached.detach()


def test_the_table_is_the_one_that_is_tested() -> None:
    assert FAMILIES.keys() == MAKERS.keys()


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_an_image_that_is_not_upright_is_refused(name: str, pictures: Pictures) -> None:
    """Of the others, pixels of one size say nothing of it."""
    made = tiny(name)
    attached = attach(made.model, made.processor, labels=pictures.open(), sea={})
    turned = pictures.image("wide.png").rotate(90, expand=True)
    with torch.no_grad():
        made.model(**made.batch([([turned], "red")]))
    with pytest.raises(UserError, match=f"{name}: expected .* upright and whole"):
        attached.loss(["wide.png"])
    attached.detach()


def test_other_families_are_refused_by_name() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.trainer.attach.families import text_settings

    model = LlamaForCausalLM(LlamaConfig(**text_settings()))
    with pytest.raises(UserError, match=r"of the type 'llama'; expected one of llava, .*families\.py: which module"):
        attach(model, None, basic={})
