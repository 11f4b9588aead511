"""What --encoder says."""

import pytest

from sea_pipeline.core.errors import UserError
from sea_pipeline.encoders import EncoderOptions, EncoderSpec, load_encoder, paths_of
from tests.support.refused import refused


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
        ("packaged#final", "expected packaged, packaged@SIDE, open_clip:"),
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
