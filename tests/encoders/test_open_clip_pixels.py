"""Preprocessing against open_clip's own."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from sea_pipeline.encoders import Preprocess


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("size", [(90, 50), (37, 150), (64, 64), (301, 30)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_are_open_clips_own(mode: Any, size: tuple[int, int], interpolation: Any) -> None:
    """To the bit where open_clip resizes once; its centre crop is of whole pixels after resizing, so within a step."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    smooth = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    image = Image.fromarray(smooth).resize(size, Image.Resampling.BICUBIC)
    config = PreprocessCfg(
        64, mean=(0,) * 3, std=(1,) * 3, interpolation=interpolation, resize_mode=mode, fill_color=77
    )
    theirs = (image_transform_v2(config, is_train=False)(image) * 255).round().byte().permute(1, 2, 0).numpy()
    ours = Preprocess(64, mode, interpolation, 77)(image).values
    assert ours.shape == (64, 64, 3)
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= (0 if mode != "shortest" or size[0] == size[1] else 16)


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("size", [(96, 50), (37, 150), (64, 64), (1000, 40)])
def test_the_crop_box_says_where_a_pixel_comes_from(mode: Any, size: tuple[int, int]) -> None:
    """In an image whose red says how far right and whose green how far down a pixel is, ours and open_clip's."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    width, height = size
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = ((np.arange(width) + 0.5) / width * 200 + 25).round()
    ramp[..., 1] = ((np.arange(height) + 0.5) / height * 200 + 25).round()[:, None]
    image = Image.fromarray(ramp)
    pixels = Preprocess(40, mode)(image)
    config = PreprocessCfg(40, mean=(0,) * 3, std=(1,) * 3, resize_mode=mode)
    theirs = image_transform_v2(config, is_train=False)(image).permute(1, 2, 0).numpy() * 255
    x0, y0, x1, y1 = pixels.crop_box
    across = x0 + (x1 - x0) * (np.arange(40) + 0.5) / 40
    down = y0 + (y1 - y0) * (np.arange(40) + 0.5) / 40
    for values in (pixels.values.astype(float), theirs):
        for axis, places, length in ((0, across, width), (1, down, height)):
            seen = np.take(values[..., axis], 20, axis=axis)
            within = (places > 0.05) & (places < 0.95)
            step = 200 / min(length, 40) + 3
            assert within.any()
            assert np.abs(seen - (places * 200 + 25))[within].max() < step
    if mode == "longest" and width != height:
        assert min(x0, y0) < 0
        assert max(x1, y1) > 1
        assert (pixels.values[0, 0] == 0).all()
    if mode == "squash":
        assert pixels.crop_box == (0, 0, 1, 1)


@pytest.mark.parametrize(("mode", "height"), [("shortest", 1), ("squash", 1), ("longest", 40)])
def test_a_line_of_pixels(mode: Any, height: float) -> None:
    """Of which open_clip's own padding would leave nothing; one row of pixels stays, 40 times as high as the photo."""
    pixels = Preprocess(40, mode)(Image.new("RGB", (1600, 1), (9, 9, 9)))
    assert (pixels.values.max((1, 2)) == 9).sum() == (1 if mode == "longest" else 40)
    assert pixels.crop_box[3] - pixels.crop_box[1] == height
