"""How V^ becomes bytes: known error bounds, planted answers, slow twins, damage; judged by the losses' gradients."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import save

from sea_pipeline.core.errors import UserError
from trainer.losses.equations import das, sds
from trainer.targets import codecs
from trainer.targets.codecs import Codec, CodecName, Int8Codec, Pq64Codec, fit_codec, load_codec, save_codec

NAMES: list[CodecName] = ["float16", "int8", "pq64"]
WIDTHS = [1, 63, 64, 65, 130]
"""Of pq64, which cuts a vector into 64 parts."""


def refined(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Like a V^: offsets, three dimensions a hundred times larger than the others, lengths that differ."""
    random = np.random.default_rng(seed)
    of_dimension = np.random.default_rng(99)
    scale = np.exp(of_dimension.normal(size=width))
    scale[:3] *= 100
    vectors = (random.normal(size=(count, width)) + of_dimension.normal(size=width)) * scale
    return (vectors * random.uniform(0.5, 2, (count, 1))).astype(np.float32)


def clusters(count: int, width: int, spread: float = 0.0) -> np.ndarray:
    """`count` vectors around 24 centres."""
    random = np.random.default_rng(1)
    centres = random.normal(size=(24, width)) * 10
    return (centres[np.arange(count) % 24] + spread * random.normal(size=(count, width))).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "width"), [("float16", 7), ("int8", 130), *(("pq64", width) for width in WIDTHS)])
def test_sizes_and_types(name: CodecName, width: int) -> None:
    codec = fit_codec(name, refined(300, width))
    expected = {"float16": 2 * width, "int8": width + 2, "pq64": 64}[name]
    assert (codec.name, codec.width, codec.bytes_per_vector) == (name, width, expected)
    assert codecs.bytes_per_vector(name, width) == expected
    for count in (0, 1, 5):
        codes = codec.encode(refined(count, width, seed=2))
        assert (codes.dtype, codes.shape) == (np.uint8, (count, expected))
        decoded = codec.decode(codes)
        assert (decoded.dtype, decoded.shape) == (np.float32, (count, width))


def test_float16_is_exact_to_half_a_unit_in_the_last_place() -> None:
    vectors = refined(50, 65)
    codec = fit_codec("float16", vectors)
    decoded = codec.decode(codec.encode(vectors))
    assert (np.abs(decoded - vectors) <= np.spacing(np.abs(vectors).astype(np.float16)).astype(np.float32) / 2).all()
    halves = vectors.astype(np.float16).astype(np.float32)
    assert (codec.decode(codec.encode(halves)) == halves).all()


def test_float16_names_the_largest_value_it_cannot_hold() -> None:
    codec = fit_codec("float16", refined(1, 3))
    with pytest.raises(UserError, match=r"65,504 at most; found -70,001; use int8"):
        codec.encode(np.array([[1, 66_000, 2], [3, 4, -70_001]], np.float32))
    assert codec.decode(codec.encode(np.full((1, 3), 65_504, np.float32))).tolist() == [[65_504] * 3]


def assert_within_half_a_step(codec: Codec, vectors: np.ndarray) -> None:
    assert isinstance(codec, Int8Codec)
    exact = vectors.astype(np.float64)
    scale = np.abs((exact - codec.centre) / codec.spread).max(1, keepdims=True) / 127
    # The scale is rounded to float16, hence 1.001; the last term is the rounding of float32.
    bound = 0.5 * 1.001 * np.maximum(scale, 2.0**-14) * codec.spread + 1e-6 * (np.abs(exact) + np.abs(codec.centre))
    assert (np.abs(codec.decode(codec.encode(vectors)) - exact) <= bound).all()


@pytest.mark.parametrize("width", [1, 130])
def test_int8_is_within_half_a_step_of_each_vectors_scale(width: int) -> None:
    codec = fit_codec("int8", refined(200, width))
    fresh = refined(100, width, seed=3)
    assert_within_half_a_step(codec, fresh)
    assert_within_half_a_step(codec, 1000 * fresh)  # far outside the sample's range
    assert_within_half_a_step(codec, 1e-6 * fresh)


def test_int8_holds_what_does_not_vary_and_what_begins_to() -> None:
    sample = refined(100, 6)
    sample[:, 4] = 7
    codec = fit_codec("int8", sample)
    assert_within_half_a_step(codec, sample)
    assert (codec.decode(codec.encode(sample))[:, 4] == 7).all()
    sample[0, 4] = 8
    assert codec.decode(codec.encode(sample[:1]))[0, 4] == pytest.approx(8, abs=0.01)
    alone = np.array([[1.0, -2.0, 300.0]], np.float32)
    codec = fit_codec("int8", alone)
    assert (codec.decode(codec.encode(alone)) == alone).all()
    assert_within_half_a_step(codec, alone + np.array([[5, 0.01, -1]], np.float32))


def test_int8_refuses_what_its_scale_cannot_hold() -> None:
    codec = fit_codec("int8", refined(100, 5))
    with pytest.raises(ValueError, match="8,000,000 spreads"):
        codec.encode(np.full((1, 5), 3e38, np.float32))


def gradient_cosines(term: str, codec: Codec, seed: int = 5) -> np.ndarray:
    """By patch, between the gradients with exact and with decoded V^."""
    random = torch.Generator().manual_seed(seed)
    target = refined(98, codec.width, seed)
    visual = torch.randn(98, codec.width, generator=random)
    words = torch.randn(500, codec.width, generator=random) / 10
    words[:, :3] /= 100  # else the three huge dimensions alone decide the word
    gradients = []
    for values in (target, codec.decode(codec.encode(target))):
        v, attention, v_hat = visual.clone().requires_grad_(), torch.full((98,), 1 / 98), torch.from_numpy(values)
        (das(v, v_hat, attention) if term == "das" else sds(v, v_hat, attention, words)).backward()
        gradients.append(v.grad)
    return F.cosine_similarity(*gradients, dim=-1).numpy()


@pytest.mark.parametrize("term", ["das", "sds"])
@pytest.mark.parametrize(("name", "long"), [("float16", 1), ("int8", 1), ("int8", 100)])
def test_the_losses_gradients_hardly_change(name: CodecName, long: int, term: str) -> None:
    """Nor do a few tokens of a hundred times the length cost the others."""
    sample = refined(2000, 96)
    sample[::200] *= long
    cosines = gradient_cosines(term, fit_codec(name, sample))
    assert cosines.mean() > 0.999
    assert cosines.min() > 0.98


def test_int8_without_standardised_dimensions_would_be_worse() -> None:
    """The bound above means something: three huge dimensions break a scale by vector alone."""
    plain = Int8Codec(96, np.zeros(96, np.float32), np.ones(96, np.float32))
    assert gradient_cosines("sds", plain).mean() < 0.99


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_pq64_finds_planted_clusters(width: int) -> None:
    vectors = clusters(480, width)
    codec = fit_codec("pq64", vectors)
    errors = np.linalg.norm(codec.decode(codec.encode(vectors)) - vectors, axis=1)
    # FAISS splits the centroids that it has too many of, and moves the halves apart by a thousandth.
    assert (errors < 3e-3 * np.linalg.norm(vectors, axis=1).mean()).all()


def test_pq64_keeps_the_direction_of_clusters_with_noise() -> None:
    vectors = clusters(2400, 130, spread=1.0)
    codec = fit_codec("pq64", vectors[:2000])
    fresh, decoded = (torch.from_numpy(part) for part in (vectors[2000:], codec.decode(codec.encode(vectors[2000:]))))
    visual = torch.randn(400, 130, generator=torch.Generator().manual_seed(0))
    gradients = []
    for target in (fresh, decoded):
        v = visual.clone().requires_grad_()
        gradients += torch.autograd.grad(das(v, target, torch.full((400,), 1 / 400)), v)
    assert F.cosine_similarity(*gradients, dim=-1).mean() > 0.995


def test_pq64_is_its_formula() -> None:
    codec = fit_codec("pq64", refined(600, 130))
    assert isinstance(codec, Pq64Codec)
    assert codec.axes.shape == (192, 130)
    assert codec.codebooks.shape == (64, 256, 3)
    norms = np.linalg.norm(codec.axes, axis=1)
    kept = codec.axes[norms > 0]
    assert len(kept) == 130
    np.testing.assert_allclose(kept @ kept.T, np.eye(130), atol=1e-5)
    fresh = refined(20, 130, seed=4)
    codes = codec.encode(fresh)
    for vector, code, decoded in zip(fresh, codes, codec.decode(codes), strict=True):
        parts = np.split(codec.axes.astype(np.float64) @ (vector - codec.mean), 64)
        total = codec.mean.astype(np.float64)
        for place in range(64):
            distances = np.square(codec.codebooks[place] - parts[place]).sum(-1)
            assert distances[code[place]] <= distances.min() + 1e-5 * (1 + np.square(parts[place]).sum())
            total = total + codec.codebooks[place, code[place]] @ codec.axes[3 * place : 3 * place + 3]
        np.testing.assert_allclose(decoded, total, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("count", [1, 2, 255])
def test_pq64_with_few_vectors_holds_them(count: int, capfd: pytest.CaptureFixture[str]) -> None:
    sample = refined(count, 20)
    codec = fit_codec("pq64", sample)
    np.testing.assert_allclose(codec.decode(codec.encode(sample)), sample, rtol=1e-3, atol=1e-2)
    assert capfd.readouterr().err == ""


def test_pq64_without_faiss_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    codec = fit_codec("pq64", refined(300, 7))
    (tmp_path / "codec").write_bytes(save_codec(codec))
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install .*\[cpu\]'"):
        fit_codec("pq64", refined(300, 7))
    again = load_codec(tmp_path / "codec")
    assert (again.decode(again.encode(refined(5, 7))) == codec.decode(codec.encode(refined(5, 7)))).all()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 65])
@pytest.mark.parametrize("name", NAMES)
def test_a_codec_comes_back_from_its_file(name: CodecName, width: int, tmp_path: Path) -> None:
    codec = fit_codec(name, refined(300, width))
    assert save_codec(codec) == save_codec(fit_codec(name, refined(300, width)))
    (tmp_path / "codec.safetensors").write_bytes(save_codec(codec))
    again = load_codec(tmp_path / "codec.safetensors")
    assert (again.name, again.width) == (name, width)
    assert save_codec(again) == save_codec(codec)
    fresh = refined(9, width, seed=6)
    assert (again.encode(fresh) == codec.encode(fresh)).all()
    assert (again.decode(codec.encode(fresh)) == codec.decode(codec.encode(fresh))).all()


def problem(path: Path, whole: bytes) -> str:
    """Why a file is refused; nothing where it is read and means what it meant whole."""
    try:
        codec = load_codec(path)
    except UserError as error:
        return str(error)
    assert save_codec(codec) == whole
    return ""


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_codec_is_refused(name: CodecName, tmp_path: Path) -> None:
    path = tmp_path / "codec.safetensors"
    whole = save_codec(fit_codec(name, refined(300, 7)))
    values = 8 + int.from_bytes(whole[:8], "little")  # past the header and the spaces that pad it
    offsets = [*range(0, values, 3), *range(values, len(whole), max(1, len(whole) // 30))]
    found = []
    for number, offset in enumerate(offsets):
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << number % 8
        path.write_bytes(damaged)
        found.append(problem(path, whole))
        assert found[-1] or offset < values
    assert all(str(path) in line and "expected" in line for line in found if line)
    assert sum(map(bool, found)) > 0.9 * len(found)
    for short in (b"", whole[:4], whole[:-1]):
        path.write_bytes(short)
        with pytest.raises(UserError, match=r"codec\.safetensors: expected a codec"):
            load_codec(path)
    path.unlink()
    with pytest.raises(UserError, match=r"codec\.safetensors: expected a codec"):
        load_codec(path)


def test_another_version_and_another_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "codec.safetensors"
    whole = save_codec(fit_codec("int8", refined(300, 7)))
    for old, new in ((rb"\"version\": 1", rb"\"version\": 2"), (rb"\"int8\"", rb"\"int4\"")):
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(UserError, match=r"in version 1.*found.*use the sea-pipeline that wrote it"):
            load_codec(path)
    path.write_bytes(save({"weight": np.zeros(3, np.float32)}))
    with pytest.raises(UserError, match="found something else"):
        load_codec(path)


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_fit_is_refused(name: CodecName) -> None:
    codec = fit_codec(name, refined(300, 7))
    with pytest.raises(ValueError, match=r"expected vectors of shape \(n, 7\), found \(2, 8\)"):
        codec.encode(np.zeros((2, 8), np.float32))
    for value in (np.nan, np.inf, 1e300):
        with pytest.raises(ValueError, match="finite"):
            codec.encode(np.full((2, 7), value, np.float64))
    with pytest.raises(ValueError, match="expected uint8 codes"):
        codec.decode(np.zeros((2, codec.bytes_per_vector + 1), np.uint8))
    with pytest.raises(ValueError, match="expected uint8 codes"):
        codec.decode(np.zeros((2, codec.bytes_per_vector), np.int8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected a sample"):
        fit_codec(name, np.zeros((0, 7), np.float32))
    with pytest.raises(ValueError, match="finite"):
        fit_codec(name, np.full((3, 7), np.nan, np.float32))
