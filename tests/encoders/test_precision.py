"""Whatever autocast a caller has switched on: what an encoder embeds, and what the search finds, is float32."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sea_pipeline.core.devices import exact_float32
from sea_pipeline.encoders import Encoder, load_encoder
from sea_pipeline.encoders.s2 import S2Encoder
from sea_pipeline.encoders.word_cache import word_embeddings
from sea_pipeline.inputs.wordlists import WordList
from sea_pipeline.search.exact import WordSearch
from tests.support.pretend_gpu import pretend_gpu
from tests.support.tiny_clip import CLIP, random_model, save_model
from tests.support.world import COLOURS, ColourEncoder

WORDS = ("cat", "a dog", "treehouse")


class LinearEncoder(ColourEncoder):
    """A stranger's encoder: a layer over colours, which knows nothing of autocast."""

    def __init__(self, version: str = "linear") -> None:
        super().__init__(version)
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 3)

    @torch.no_grad()
    def words(self, words: Sequence[str], advance: Callable[[int], None]) -> torch.Tensor:
        return F.normalize(self.layer(super().words(words, advance)).float(), dim=-1)


def bfloat16() -> AbstractContextManager[object]:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "random", random_model(CLIP), CLIP)


def encoder_of(kind: str, model: Path) -> Encoder:
    if kind == "s2":
        return S2Encoder(ColourEncoder(), [1, 2])
    return load_encoder(f"open_clip:{model}#vv" if kind == "clip" else "packaged", "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "s2", pytest.param("packaged", marks=pytest.mark.real)])
def test_an_encoder_embeds_alike_within_autocast(kind: str, model: Path) -> None:
    size = encoder_of(kind, model).preprocess.size
    pixels = torch.randint(256, (2, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = []
    for around in (nullcontext, bfloat16):
        encoder = encoder_of(kind, model)
        with around():
            found.append((encoder.words(WORDS, lambda _: None), encoder.patches(pixels)))
    (words, patches), (lower_words, lower_patches) = found
    assert torch.equal(words, lower_words)
    assert torch.equal(patches, lower_patches)


def test_the_cache_gets_float32_of_any_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = WordList("colours", tuple(COLOURS))
    plain = LinearEncoder().words(words.words, lambda _: None)
    with bfloat16():
        assert not torch.equal(LinearEncoder().words(words.words, lambda _: None), plain), "it is on"
    monkeypatch.setenv("SEA_PIPELINE_CACHE", str(tmp_path))
    with bfloat16():
        made = word_embeddings(LinearEncoder(), words)
    assert torch.equal(made, plain)
    assert torch.equal(word_embeddings(LinearEncoder(), words), plain)


@pytest.mark.usefixtures("int8_products")
@pytest.mark.parametrize("backend", ["torch", "faiss", "int8"])
def test_the_search_scores_alike_within_autocast(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    words, patches = (F.normalize(torch.randn(count, 48, generator=generator), dim=-1) for count in (300, 40))
    search = WordSearch(words, top_n=5, sign=1, backend=backend)  # type: ignore[arg-type]
    (ids, scores), fallbacks = search(patches), search.fallbacks
    with bfloat16():
        lower_ids, lower_scores = search(patches)
    assert torch.equal(ids, lower_ids)
    assert torch.equal(scores, lower_scores)
    assert search.fallbacks == 2 * fallbacks


def test_every_kind_of_device_and_only_within() -> None:
    with pretend_gpu(), torch.autocast("cuda", torch.bfloat16), bfloat16():
        with exact_float32():
            assert not torch.is_autocast_enabled("cuda")
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cuda")
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_after_transformers_has_set_tf32(precision: str) -> None:
    """By torch's newer names, beside which torch refuses the older ones."""
    backends: Any = torch.backends
    if not hasattr(backends, "fp32_precision"):
        pytest.skip("this torch has the older names only")
    parts = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul]
    before = [backends.fp32_precision, *(part.fp32_precision for part in parts)]
    for part in (backends, *parts):
        part.fp32_precision = precision
    try:
        with exact_float32(), exact_float32():
            assert {part.fp32_precision for part in parts} == {"ieee"}
        assert {part.fp32_precision for part in parts} == {precision}
    finally:
        for part, value in zip([backends, *parts], before, strict=True):
            part.fp32_precision = value
    assert torch.get_float32_matmul_precision() == "highest"
