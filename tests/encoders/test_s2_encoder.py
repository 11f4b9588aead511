"""What --encoder says; and S2 around any encoder, against loops over tiles and cells in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sea_pipeline.core.errors import UserError
from sea_pipeline.encoders import Encoder, EncoderOptions, EncoderSpec, load_encoder, paths_of
from sea_pipeline.encoders.open_clip_models import ModelSource
from sea_pipeline.encoders.s2 import S2Encoder
from tests.support.refused import refused
from tests.support.s2_twin import slowly
from tests.support.tiny_clip import CLIP, planted_clip, random_model, save_model
from tests.support.world import COLOURS, ColourEncoder, draw


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "random", random_model(CLIP), CLIP)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "scales"), [("clip", [1]), ("clip", [1, 2, 3]), ("colours", [2]), ("colours", [1, 2, 3])], ids=str
)
def test_scales_tile_by_tile(kind: str, scales: list[int], model: Path) -> None:
    base: Encoder = ColourEncoder() if kind == "colours" else load_encoder(f"open_clip:{model}#vv", "cpu")
    encoder = S2Encoder(base, scales)
    size = base.preprocess.size * scales[-1]
    assert (encoder.grid, encoder.width, encoder.preprocess.size) == (base.grid, base.width, size)
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(256, (2, size, size, 3), dtype=torch.uint8, generator=generator)
    found = encoder.patches(pixels)
    assert found.dtype == torch.float32
    expected = torch.stack([slowly(base, scales, image) for image in pixels])
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


def test_loaded_it_needs_no_more(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that several threads may ask for patches at once."""
    encoder = load_encoder(f"s2@1,2:open_clip:{model}", "cpu")
    encoder.load()
    monkeypatch.setattr(ModelSource, "load", None)
    size = encoder.preprocess.size
    assert encoder.patches(torch.zeros(1, size, size, 3, dtype=torch.uint8)).isfinite().all()


@pytest.mark.slow
def test_the_vector_ranks_words_as_joined_channels_do(model: Path) -> None:
    """cos([u, u'], [t, t]) of each scale's u, times a factor of the patch alone."""
    spec = f"open_clip:{model}#final"
    pixels = torch.randint(256, (1, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    one = load_encoder(f"s2@1:{spec}", "cpu")
    small = F.interpolate(pixels.permute(0, 3, 1, 2).float(), size=(32, 32), mode="bicubic").permute(0, 2, 3, 1)
    parts = [one.patches(small)[0], load_encoder(f"s2@2:{spec}", "cpu").patches(pixels)[0]]
    words = one.words(list(COLOURS), lambda _: None)
    joined = F.cosine_similarity(torch.cat(parts, -1)[:, None], torch.cat([words, words], -1)[None], dim=-1)
    found = load_encoder(f"s2@1,2:{spec}", "cpu").patches(pixels)[0] @ words.T
    factor = found / joined
    torch.testing.assert_close(factor, factor[:, :1].expand_as(factor), atol=1e-3, rtol=1e-3)
    assert (found.argsort(-1) == joined.argsort(-1)).all()


@pytest.mark.slow
def test_names_and_words_are_the_bases(model: Path) -> None:
    base, encoder = load_encoder(f"open_clip:{model}", "cpu"), load_encoder(f"s2:open_clip:{model}", "cpu")
    assert encoder.word_fields() == base.word_fields()
    fields = dict(encoder.fields())
    assert encoder.spec == f"s2:open_clip:{model}#final"
    assert load_encoder(encoder.spec, "cpu").fields() == fields
    assert (fields["scales"], fields["preprocess"]["size"]) == ([1, 2, 3], 96)
    assert fields["preprocess"]["mean"] == [0.5, 0.5, 0.5]
    assert load_encoder(f"s2@1,2:open_clip:{model}", "cpu").fields() != fields
    assert paths_of(f"s2@1,2:open_clip:{model}", "cpu") == [
        f"s2@1,2:open_clip:{model}#{path}" for path in ("final", "value", "vv")
    ]
    torch.testing.assert_close(encoder.words(["red"], lambda _: None), base.words(["red"], lambda _: None))


def test_the_planted_answer_in_its_place(tmp_path: Path) -> None:
    """A wide picture: at every scale each patch of its centre square has one colour, and its own."""
    encoder = load_encoder(f"s2:open_clip:{planted_clip(tmp_path / 'planted')}#value", "cpu")
    names = ["red", "green", "blue", "yellow", "cyan", "magenta"]
    cells = [[names[(5 * row + column * column) % 6] for column in range(6)] for row in range(4)]
    pixels = encoder.preprocess(Image.open(draw(tmp_path / "picture.png", cells, (144, 96))))
    assert pixels.crop_box == (24 / 144, 0.0, 120 / 144, 1.0)
    vectors = encoder.patches(torch.from_numpy(np.array(pixels.values))[None])[0]
    best = (vectors @ encoder.words(list(COLOURS), lambda _: None).T).argmax(-1)
    assert [list(COLOURS)[index] for index in best.tolist()] == [name for row in cells for name in row[1:5]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("packaged", EncoderSpec(None)),
        ("s2:packaged", EncoderSpec(None, scales=(1, 2, 3))),
        ("open_clip:ViT-B-32/openai", EncoderSpec("ViT-B-32/openai")),
        ("open_clip:ViT-B-32/openai#final+", EncoderSpec("ViT-B-32/openai", "final", 1)),
        ("open_clip:hf-hub:org/name#vv", EncoderSpec("hf-hub:org/name", "vv")),
        ("s2@1,2:open_clip:a/b#value-", EncoderSpec("a/b", "value", -1, (1, 2))),
        ("open_clip:odd#name/w.pt", EncoderSpec("odd#name/w.pt")),
        ("open_clip:odd#final/w#pool", EncoderSpec("odd#final/w", "pool")),
        ("open_clip:final", EncoderSpec("final")),
    ],
)
def test_a_spec_and_its_spelling(text: str, expected: EncoderSpec) -> None:
    assert EncoderSpec.parse(text) == expected
    assert str(expected) == text


def test_the_default_scales_have_one_spelling() -> None:
    assert str(EncoderSpec.parse("s2@1,2,3:packaged")) == "s2:packaged"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("clip", "expected packaged, packaged@SIDE, open_clip:ARCH/PRETRAINED"),
        ("packaged#final", "packaged has one path and no sign; leave #final out"),
        ("packaged+", "packaged has one path and no sign; leave + out"),
        ("s2:packaged\u2212", "packaged has one path and no sign; leave \u2212 out"),
        ("open_clip:", "expected packaged, packaged@SIDE, open_clip:"),
        ("open_clip:#vv", "expected packaged, packaged@SIDE, open_clip:"),
        ("s2:s2:packaged", "expected packaged, packaged@SIDE, open_clip:"),
        ("s2@:packaged", "expected packaged, packaged@SIDE, open_clip:"),
        ("s2@2,1:packaged", "ascending scales from 1; found 2,1"),
        ("s2@1,1:packaged", "ascending scales from 1; found 1,1"),
        ("s2@0,1:packaged", "ascending scales from 1; found 0,1"),
    ],
)
def test_what_is_no_spec_is_refused(text: str, told: str) -> None:
    with refused(told, match="^--encoder " + text.replace("#", r"\#")):
        load_encoder(text, "cpu")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("packaged", "packaged"),
        ("s2:packaged", "s2-packaged"),
        ("open_clip:ViT-L-14-336/openai#vv-", "ViT-L-14-336-openai-vv-"),
        ("open_clip:ViT-B-32/runs/epoch_7.pt", "ViT-B-32-epoch_7"),
        ("s2@1,2:open_clip:/models/clip-a", "s2@1,2-clip-a"),
        ("open_clip:hf-hub:org/name", "org-name"),
        ("open_clip:../models/clip-a/", "clip-a"),
        ("open_clip:~/clip-a.v2", "clip-a.v2"),
        ("open_clip:/a/" + "x" * 90, "x" * 60),
    ],
)
def test_a_short_name_for_folders(text: str, name: str) -> None:
    assert EncoderSpec.parse(text).short_name() == name


def test_the_packaged_encoder_has_one_path_and_no_options() -> None:
    assert paths_of("packaged", "cpu") == ["packaged"]
    assert paths_of("s2:packaged", "cpu") == ["s2:packaged"]
    for options in (EncoderOptions(precision="bfloat16"), EncoderOptions(template="photo")):
        with pytest.raises(UserError, match=r"--encoder packaged: expected --precision float32 and --template bare"):
            load_encoder("packaged", "cpu", options)
