"""Words by the text towers of open_clip, and what precision does to words and patches."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sea_pipeline.encoders import EncoderOptions, load_encoder, paths_of
from tests.support.tiny_clip import CLIP, SIGLIP, changed, random_model, save_model

TEXTS = ["red", "a rather long text of a good many words", "", "ox", "antidisestablishmentarianism", "don't", "magenta"]


def quiet(_: int) -> None:
    pass


@pytest.mark.parametrize(
    ("config", "cuts"),
    [
        (CLIP, True),
        (changed(CLIP, quick_gelu=True), True),
        (changed(CLIP, custom_text=True), True),
        (changed(CLIP, custom_text=True, text_cfg=CLIP["text_cfg"] | {"pool_type": "eos", "eos_id": 49407}), True),
        (changed(CLIP, text_cfg=CLIP["text_cfg"] | {"no_causal_mask": True}), False),
        (changed(CLIP, text_cfg=CLIP["text_cfg"] | {"pool_type": "last"}), False),
        (SIGLIP, False),
    ],
    ids=["clip", "quick", "custom", "eos", "no mask", "last", "siglip"],
)
@pytest.mark.parametrize("template", ["bare", "photo", "ensemble"])
def test_words_are_encode_text_in_full_length(
    config: dict[str, Any], cuts: bool, template: Any, tmp_path: Path
) -> None:
    from open_clip import get_tokenizer
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    model = random_model(config)
    folder = save_model(tmp_path / "model", model, config)
    encoder = load_encoder(f"open_clip:{folder}", "cpu", EncoderOptions(template=template))
    lengths = []
    transformer = encoder._towers[1]._tower.transformer
    transformer.register_forward_pre_hook(lambda module, given: lengths.append(given[0].shape[1]))
    done: list[int] = []
    found = encoder.words(TEXTS, done.append)
    assert found.dtype == torch.float32
    assert sum(done) == len(TEXTS)
    forms = {"bare": [str], "photo": ["a photo of a {}.".format], "ensemble": OPENAI_IMAGENET_TEMPLATES}[template]
    tokenizer = get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        for word, vector in zip(TEXTS, found, strict=True):
            each = model.double().encode_text(tokenizer([form(word) for form in forms]), normalize=True)
            mean = each.mean(0)
            torch.testing.assert_close(vector.double(), mean / mean.norm(), atol=1e-5, rtol=0)
    full = config["text_cfg"]["context_length"]
    assert (max(lengths) < full) == cuts


def test_many_words_keep_their_order(tmp_path: Path) -> None:
    """More than a chunk and several batches, of all lengths: each as it is alone."""
    folder = save_model(tmp_path / "model", random_model(CLIP), CLIP)
    encoder = load_encoder(f"open_clip:{folder}", "cpu")
    words = [" ".join(["word"] * (1 + number % 7) + [str(number)]) for number in range(700)]
    found = encoder.words(words, quiet)
    for number in range(0, 700, 97):
        torch.testing.assert_close(found[number], encoder.words([words[number]], quiet)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("precision", "least"), [("bfloat16", 0.995), ("float16", 0.9999)])
@pytest.mark.parametrize("config", [CLIP, SIGLIP], ids=["clip", "siglip"])
def test_half_precision_is_close_and_words_stay_exact(
    precision: Any, least: float, config: dict[str, Any], tmp_path: Path
) -> None:
    folder = save_model(tmp_path / "model", random_model(config), config)
    for spec in paths_of(f"open_clip:{folder}", "cpu"):
        exact, half = load_encoder(spec, "cpu"), load_encoder(spec, "cpu", EncoderOptions(precision=precision))
        size = exact.preprocess.size
        pixels = torch.randint(256, (2, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        slow, fast = exact.patches(pixels), half.patches(pixels)
        assert fast.dtype == torch.float32
        torch.testing.assert_close(fast.norm(dim=-1), torch.ones(fast.shape[:2]), atol=1e-5, rtol=0)
        assert not torch.equal(slow, fast)
        assert (slow * fast).sum(-1).min() > least
        assert torch.equal(exact.words(TEXTS, quiet), half.words(TEXTS, quiet))
