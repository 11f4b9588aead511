"""The losses of batches: against transformers' own, with kept features, without images, without L_lm."""

import os
from pathlib import Path

import pytest
import torch

from sea_pipeline.core.errors import UserError
from tests.support.planted_photos import ROWS, M, Planted, aligned, conversations, pairs
from tests.support.tiny_models import tiny_model
from trainer.data.kept_features import tower_features
from trainer.model.aligned_llava import AlignedLlava
from trainer.model.load import open_model_folder
from trainer.model.parts import quiet
from trainer.model.terms import sea_term
from trainer.recipes.recipe import Sea


@pytest.fixture
def model(planted: Planted) -> AlignedLlava:
    return aligned(planted)


def by_projector(model: AlignedLlava, loss: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return [
        parameter.grad for parameter in model.model.multi_modal_projector.parameters() if parameter.grad is not None
    ]


def stock_labels(planted: Planted, names: tuple[str, ...]) -> list[list[int]]:
    """The usual label tensor, token by token: image tokens repeated, what is not trained and padding -100."""
    lines = []
    for name in names:
        row = planted.rows[ROWS.index(name)]
        line: list[int] = []
        for token, trained in zip(row["input_ids"], row["trained"], strict=True):
            image = token == planted.folder.config.image_token_id
            line += M * [-100] if image else [token if trained else -100]
        assert len(line) == row["length"]
        lines.append(line)
    return [line + [-100] * (max(map(len, lines)) - len(line)) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [("one",), ("long", "one"), ("one", "two", "text", "long"), ("text", "two"), ("text",)], ids="+".join
)
def test_l_lm_is_the_stock_models(planted: Planted, model: AlignedLlava, names: tuple[str, ...]) -> None:
    given = planted.batch(*names)
    stock = {name: given[name] for name in ("input_ids", "attention_mask", "pixel_values") if name in given}
    told, found = model(**stock, labels=torch.tensor(stock_labels(planted, names))), model(**given)
    expected, ours = told.loss, found["lm"] / len(given["targets"])
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    if names != ("text",):
        torch.testing.assert_close(found["visual"].flatten(0, 1), told.image_hidden_states)
        for one, other in zip(by_projector(model, ours), by_projector(model, expected), strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("vision", ["siglip", "dinov2"])
def test_l_lm_with_other_towers(planted: Planted, tmp_path: Path, vision: str) -> None:
    folder = open_model_folder(tiny_model(tmp_path / "other", vision))
    other = planted._replace(folder=folder, rows=conversations(folder, tmp_path))
    with quiet():
        model = AlignedLlava.from_pretrained(folder.path, dtype=torch.float32).eval()
    given = other.batch("two", "text")
    stock = {name: given[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    expected = model(**stock, labels=torch.tensor(stock_labels(other, ("two", "text")))).loss
    torch.testing.assert_close(model(**given)["lm"] / len(given["targets"]), expected, atol=1e-5, rtol=1e-5)


def test_kept_features_give_the_same_losses(
    planted: Planted, model: AlignedLlava, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.data.kept_features._BATCHES", {"cpu": 3})  # 4 images: an uneven last batch
    names = ("text", "two", "long", "one")
    pixels = planted.batch(*names)
    data, done = planted.data(), []
    data.kept = tower_features(model, data, done.append)
    assert list(data.kept) == ["0.png", "1.png", "2.png", "sub/3.png"]
    assert sum(done) == 4
    monkeypatch.setattr(data, "image", None)  # no pixel is touched
    features = planted.batch(*names, data=data)
    assert "pixel_values" not in features
    assert features["features"].shape == (4, M, 16)
    assert pairs(planted, features) == pairs(planted, pixels)
    expected, found = model(**pixels), model(**features)
    for name in ("lm", "sea"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-5)


def test_features_that_would_not_fit(planted: Planted, model: AlignedLlava, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = 4 * 4 * M * 16  # bytes of 4 images
    data = planted.data()
    for memory, fits in ((2 * wanted, True), (2 * wanted - 2, False)):
        monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 2, "SC_PHYS_PAGES": memory // 2}.__getitem__)
        if fits:
            assert len(tower_features(model, data)) == 4
        else:
            with pytest.raises(UserError, match=r"data\.keep_features: 4 images need .* set it to false"):
                tower_features(model, data)


@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("with_lm", [True, False])
def test_a_batch_without_images_gives_every_process_a_gradient(
    planted: Planted, model: AlignedLlava, gather: bool, with_lm: bool
) -> None:
    model.sea_term = sea_term(planted.folder.processor.tokenizer, planted.words, Sea(gather=gather))
    model.with_lm = with_lm
    given = model(**planted.batch("text", data=planted.data(Sea(gather=gather))))
    assert ("sea" in given) is gather  # the other processes' pairs are this one's loss, too
    assert ("lm" in given) is with_lm
    loss = given["nothing"] + given.get("lm", 0.0) + given.get("sea", 0.0)
    gradients = by_projector(model, loss)
    assert len(gradients) == 4
    assert not any(gradient.any() for gradient in gradients)
    assert model.sea_term.log_scale.grad == 0


def test_without_l_lm_the_drawn_patches_are_all_that_counts(planted: Planted, model: AlignedLlava) -> None:
    given, found = planted.batch("one", "two"), []
    for model.with_lm in (True, False):
        losses = model(**given)
        found.append((losses["sea"], losses["sea_pairs"], *by_projector(model, losses["sea"])))
        assert ("lm" in losses) is model.with_lm
        assert model.model.language_model.embed_tokens.weight.grad is None  # L_a trains the projector only
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
