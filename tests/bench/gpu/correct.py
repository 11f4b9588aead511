"""Is what the GPU computes right? Every loss, the tap, the supervision, the search and the dense encoder paths against
the tests' twins on the CPU: the papers' formulas in float64, but for what transformers computes in float32 always.

    python -m tests.bench.gpu.correct [--tiny] [--json FILE]

A figure is an error over its tolerance; exits with 1 if one is above 1 or no number. What raises is NaN, as
`NAME.failed`; the others go on.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from sea_pipeline.core.errors import UserError
from sea_pipeline.encoders import EncoderOptions, load_encoder, paths_of
from sea_pipeline.search.exact import Backend, WordSearch
from tests.bench.gpu.common import Setup, main
from tests.bench.measure import Figure
from tests.support import attention_models, basic_models, search_twin
from tests.support.clip_walk import Walk, normalised, pixels_of, pooled_alone, unit
from tests.support.loss_twins import attention, das_twin, random, sds_twin, sea_twin
from tests.support.s2_twin import slowly
from tests.support.tiny_clip import CLIP, SIGLIP, random_model, save_model
from trainer.losses import equations
from trainer.losses.supervision import degrees
from trainer.recipes.recipe import Basic

HALF = torch.bfloat16
Twin = tuple[Callable[..., Any], Callable[..., Any], tuple[torch.Tensor, ...]]
"""A loss, its twin, and what both are given beside V."""


def figures(setup: Setup) -> Iterator[Figure]:
    """losses.*, tap.*, supervision.*, search.* and encoder.*."""
    for part in (_losses, _tap, _supervision, _search, _paths):
        yield from setup.guarded(part.__name__.strip("_"), part(setup))


def _checked(name: str, error: float, tolerance: float, of: str) -> Figure:
    return Figure(name, error / tolerance, "of its tolerance", f"{of}: error {error:.2g}, tolerance {tolerance:g}")


def _relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """|found - wanted| / |wanted|, by the norms over all numbers."""
    return float((found.double().cpu() - wanted).norm() / wanted.norm())


# Losses


def _losses(setup: Setup) -> Iterator[Figure]:
    """Value and gradient by the visual tokens, of inputs in float32 and in bfloat16, which are computed in float32."""
    count, width, entries = (12, 16, 300) if setup.tiny else (64, 512, 8192)
    scale, weights = torch.tensor(2.659, dtype=torch.float64), attention(count)
    words, refined = random(count, width, seed=2), 2 * random(count, width, seed=3)
    embeddings = random(entries, width, seed=4) / width**0.5
    for dtype in (torch.float32, HALF):
        w, r, e = (tensor.to(dtype) for tensor in (words, refined, embeddings))
        twins: dict[str, Twin] = {
            "sea": (equations.sea, sea_twin, (w, scale.float())),
            "das": (equations.das, das_twin, (r, weights.float())),
            "sds": (equations.sds, sds_twin, (r, weights.float(), e)),
        }
        if dtype == HALF:
            twins["sds_products"] = (partial(equations.sds, matmul_dtype=HALF), sds_twin, (r, weights.float(), e))
        for name, twin in twins.items():
            kind, visual = f"losses.{name}.{str(dtype).removeprefix('torch.')}", random(count, width, seed=1).to(dtype)
            coarse = name == "sds_products"  # bfloat16 products; else the gradient alone is rounded to bfloat16
            limits = (0.02, 0.05) if coarse else (1e-5, 1e-5 if dtype == torch.float32 else 5e-3)
            yield from setup.guarded(kind, _loss(setup, kind, visual, twin, limits))


def _loss(setup: Setup, name: str, visual: torch.Tensor, twin: Twin, limits: tuple[float, float]) -> Iterator[Figure]:
    fast, slow, given = twin
    found = _value_and_gradient(fast, visual, given, setup.device, None)
    wanted = _value_and_gradient(slow, visual, given, "cpu", torch.float64)
    yield _checked(f"{name}.value", _relative(found[0], wanted[0]), limits[0], "the paper's formula")
    yield _checked(f"{name}.gradient", _relative(found[1], wanted[1]), limits[1], "its gradient")


def _value_and_gradient(
    loss: Callable[..., Any], visual: torch.Tensor, given: tuple[torch.Tensor, ...], device: str, dtype: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = visual.to(device, dtype, copy=True).requires_grad_()
    value = loss(leaf, *(tensor.to(device, dtype) for tensor in given))
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


# What BASIC reads from the LLM


def _tap(setup: Setup) -> Iterator[Figure]:
    """Attention on images; where nothing is padded, SDPA is given no mask, and the tap makes its own."""
    kinds = [(kind, padded, torch.float32) for kind in ("sdpa", "eager") for padded in (True, False)]
    for kind, padded, dtype in [*kinds, ("sdpa", True, HALF)]:
        name = f"tap.{kind}.{'bfloat16' if dtype == HALF else 'padded' if padded else 'whole'}"
        yield from setup.guarded(name, _tapped(setup, name, kind, padded, dtype))


def _tapped(setup: Setup, name: str, kind: str, padded: bool, dtype: torch.dtype) -> Iterator[Figure]:
    settings: dict[str, Any] = {"initializer_range": 0.2} if dtype == HALF else {}
    wanted = attention_models.expected(2, padded=padded, double=True, **settings)
    found = attention_models.tapped_run(
        attention_models.llm(attention=kind, **settings).to(setup.device, dtype), 2, padded=padded
    )
    error = float((found.double().cpu() - wanted).abs().max())
    said = "sums of attentions in loops, of a float64 model whose norms and softmax are float32"
    yield _checked(name, error, 0.05 if dtype == HALF else 1e-5, said)


def _supervision(setup: Setup) -> Iterator[Figure]:
    layers = 3
    states = basic_models.states(basic_models.llm().double())
    wanted = basic_models.eq4(states, layers)
    attentions = basic_models.plain(basic_models.llm(attention="eager").double(), output_attentions=True).attentions
    shares = basic_models.eq5(attentions, layers)
    # The weights are drawn so wide that three layers make 0.035 of bfloat16's rounding, on a CPU, too.
    for dtype, refined_limit, share_limit in ((torch.float32, 1e-5, 1e-5), (HALF, 0.08, 0.1)):
        seen = basic_models.watch(basic_models.llm().to(setup.device, dtype), Basic(layers=layers))
        name = f"supervision.{str(dtype).removeprefix('torch.')}"
        yield _checked(f"{name}.refined", _relative(seen.refined, wanted), refined_limit, "Eq. 4 in loops")
        found = degrees(seen.attention.view(shares.shape))
        error = float((found.double().cpu() - shares).abs().max())
        yield _checked(f"{name}.attention", error, share_limit, "Eq. 5 in loops")


# Labels


def _search(setup: Setup) -> Iterator[Figure]:
    """Ids must be those of float64, ties included; and at the size of a real list those of the search on the CPU."""
    backends: tuple[Backend, ...] = ("torch", "int8", "faiss")
    words, patches = search_twin.unit(3001, 48, 2), search_twin.unit(300, 48, 1)
    words[7::50] = patches[0]
    wanted = search_twin.twin(patches, words, 10, -1)
    large = (search_twin.unit(2000, 64, 3), search_twin.unit(100, 64, 4))
    if not setup.tiny:
        large = (search_twin.unit(41_242, 768, 3), search_twin.unit(4 * 576, 768, 4))
    exact = [part.numpy() for part in WordSearch(large[0], top_n=10, sign=1, backend="torch")(large[1])]
    for backend in backends:
        cases = {"twin": (words, -1, patches, wanted), "list": (large[0], 1, large[1], exact)}
        for case, given in cases.items():
            name = f"search.{backend}.{case}"
            yield from setup.guarded(name, _searched(setup, name, backend, *given))


def _searched(
    setup: Setup, name: str, backend: Backend, words: torch.Tensor, sign: int, patches: torch.Tensor, wanted: Any
) -> Iterator[Figure]:
    try:
        search = WordSearch(words, top_n=10, sign=sign, backend=backend, device=setup.device)
    except UserError as error:
        yield Figure(name, 0, "of its tolerance", f"absent, not checked: {str(error)[:90]}")
        return
    ids, scores = (part.numpy() for part in search(patches))
    wrong, apart = float((ids != wanted[0]).mean()), float(np.abs(scores - wanted[1]).max())
    said = f"ids of float64, {len(patches):,} patches, {search.fallbacks} of them scored with all words"
    yield _checked(f"{name}.ids", wrong, 1e-9, said)
    yield _checked(f"{name}.scores", apart, 1e-12, "s in float64")


def _paths(setup: Setup) -> Iterator[Figure]:
    """Unit vectors of patches; the largest difference of a number, in bfloat16 the distance of whole vectors."""
    for config, name in ((SIGLIP, "siglip"), (CLIP, "clip")):
        model = random_model(config)
        folder = save_model(setup.scratch / name, model, config)
        for spec in paths_of(f"open_clip:{folder}", setup.device):
            path = spec.rpartition("#")[2]
            twin = partial(_walked, model, path, pooled=config is SIGLIP)
            called = f"encoder.{name}.{path}"
            yield from setup.guarded(called, _encoded(setup, called, spec, twin))
    base = load_encoder(f"open_clip:{folder}#vv", "cpu")
    walked: Any = SimpleNamespace(grid=base.grid, width=base.width, preprocess=base.preprocess)
    walked.patches = partial(_walked, model, "vv", pooled=False)
    spec, called = f"s2@1,2:{base.spec}", "encoder.s2.vv"
    yield from setup.guarded(called, _encoded(setup, called, spec, partial(_at_scales, walked)))


def _at_scales(base: Any, pixels: torch.Tensor) -> torch.Tensor:
    return torch.stack([slowly(base, [1, 2], image) for image in pixels])


def _walked(model: Any, path: str, pixels: torch.Tensor, *, pooled: bool) -> torch.Tensor:
    if path == "pool":
        return pooled_alone(model, pixels)
    if pooled:  # timm's own tokens, which end in its norm
        with torch.no_grad():
            return unit(model.double().visual.trunk.forward_features(normalised(pixels))[:, 1:])
    walk = Walk(model.visual, heads=2, quick=False)
    return torch.stack([unit(walk.path(path, image))[1:] for image in normalised(pixels)])


def _encoded(setup: Setup, name: str, spec: str, twin: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[Figure]:
    pixels = pixels_of(load_encoder(spec, "cpu"))
    wanted = twin(pixels)
    found = load_encoder(spec, setup.device).patches(pixels.to(setup.device))
    error = float((found.double().cpu() - wanted).abs().max())
    yield _checked(f"{name}.float32", error, 2e-5, "a walk through the weights")
    half = load_encoder(spec, setup.device, EncoderOptions(precision="bfloat16")).patches(pixels.to(setup.device))
    distance = float(1 - F.cosine_similarity(half.double().cpu(), wanted, dim=-1).mean())
    yield _checked(f"{name}.bfloat16", distance, 1e-3, "the same: 1 - cosine, the mean over patches")


if __name__ == "__main__":
    if any(not figure.value <= 1 for figure in main(figures, __doc__)):
        sys.exit(1)
