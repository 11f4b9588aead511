"""Batches against what is planted in the pixels, and against transformers' own loss on the same conversations."""

import json
import os
import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from sea_pipeline import label_cache, label_run, open_labels
from sea_pipeline.errors import UserError
from tests.tiny_models import tiny_model
from tests.tiny_runs import World, label_settings
from tests.world import COLOURS, draw
from trainer.conversations import load_conversations
from trainer.data import Collator, Labels, TrainingData
from trainer.features import tower_features
from trainer.load import ModelFolder, open_model_folder, sea_term
from trainer.model import AlignedLlava
from trainer.parts import quiet
from trainer.recipe import Sea

M = 16
"""Visual tokens of an image: 4 x 4 patches of 8 pixels."""
ROWS = ("one", "two", "text", "long", "same")
IMAGES: dict[str, Any] = {"one": "0.png", "two": ["1.png", "2.png"], "long": "sub/3.png", "same": "0.png"}
TURNS = {
    "one": [("What is it?", "a red square")],
    "two": [("<image> and <image>: which?", "the second"), ("Why?", "It is blue.")],
    "text": [("Which colour?", "red")],
    "long": [("Say it all.", "a red and a green and a blue and a yellow and a cyan patch")],
    "same": [("Again?", "yes")],
}


class Planted(NamedTuple):
    """Pictures of 4 x 6 cells whose centre square is labelled, cell by cell, and conversations about them."""

    folder: ModelFolder
    rows: Any
    photos: Path
    cache: Any
    words: tuple[str, ...]

    def data(self, sea: Sea | None = None, **settings: Any) -> TrainingData:
        given = {"labels": Labels(self.cache, sea or Sea(window=1), True, None)} | settings
        locate = partial(Path.joinpath, self.photos)
        return TrainingData(self.rows, locate, self.folder.processor, self.folder.grid, **given)

    def batch(self, *names: str, data: TrainingData | None = None, epoch: int = 0) -> Any:
        data = data or self.data()
        collator = Collator(data, self.folder.processor.tokenizer.pad_token_id, seed=1)
        return collator([data[epoch * len(ROWS) + ROWS.index(name)] for name in names])


@pytest.fixture
def planted(tiny: World, tmp_path: Path) -> Planted:
    random = np.random.default_rng(0)
    for name in ("0.png", "1.png", "2.png", "sub/3.png"):
        cells = [[str(random.choice(list(COLOURS))) for _ in range(6)] for _ in range(4)]
        draw(tmp_path / "photos" / name, cells, size=(72, 48))
    settings = label_settings(tmp_path / "photos", tiny.words, tmp_path / "labels")
    label_run.label_images(settings.model_copy(update={"top_n": 1}))
    store = open_labels(tmp_path / "labels")
    folder = open_model_folder(tiny.model)
    rows = conversations(folder, tmp_path)
    return Planted(folder, rows, tmp_path / "photos", label_cache.label_cache(store), store.words)


def conversations(folder: ModelFolder, tmp_path: Path) -> Any:
    records = []
    for name in ROWS:
        spoken = [(("human", question), ("gpt", answer)) for question, answer in TURNS[name]]
        said = [{"from": who, "value": text} for pair in spoken for who, text in pair]
        records.append({"id": name, "conversations": said} | ({"image": IMAGES[name]} if name in IMAGES else {}))
    (tmp_path / "data.json").write_text(json.dumps(records))
    file, tokenizer = tmp_path / "data.json", folder.processor.tokenizer
    return load_conversations(file, tokenizer, template="vicuna_v1", image_tokens=M, image_root=tmp_path / "photos")


@pytest.fixture
def model(planted: Planted) -> AlignedLlava:
    with quiet():
        loaded: AlignedLlava = AlignedLlava.from_pretrained(planted.folder.path, dtype=torch.float32).eval()
    loaded.sea_term = sea_term(planted.folder, planted.words, Sea())
    return loaded


def colours(planted: Planted, pixels: torch.Tensor) -> Iterator[str | None]:
    """The colour at the centre of each patch; None where it is a mixture."""
    processor = planted.folder.processor.image_processor
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    for image in (pixels * std + mean) * 255:
        for row in range(4):
            for column in range(4):
                centre = image[:, 8 * row + 3 : 8 * row + 5, 8 * column + 3 : 8 * column + 5].mean((1, 2))
                distances = {name: (centre - torch.tensor(colour)).norm() for name, colour in COLOURS.items()}
                nearest = min(distances, key=lambda name: distances[name])
                yield nearest if distances[nearest] < 25 else None


def pairs(planted: Planted, given: Any) -> list[tuple[int, str]]:
    """Patches and words of a batch."""
    return [(int(p), planted.words[w]) for p, w in zip(given["sea_patches"], given["sea_words"], strict=True)]


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


@pytest.mark.parametrize(
    "names", [("one",), ("long", "one"), ("one", "two", "text", "long"), ("text", "two"), ("text",)], ids="+".join
)
def test_l_lm_is_the_stock_models(planted: Planted, model: AlignedLlava, names: tuple[str, ...]) -> None:
    given = planted.batch(*names)
    stock = {name: given[name] for name in ("input_ids", "attention_mask", "pixel_values") if name in given}
    expected = model(**stock, labels=torch.tensor(stock_labels(planted, names))).loss
    ours = model(**given)["lm"] / len(given["targets"])
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    if names != ("text",):
        for one, other in zip(by_projector(model, ours), by_projector(model, expected), strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


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


def test_a_batch_is_padded_on_the_right(planted: Planted, model: AlignedLlava) -> None:
    names = ("text", "two", "one")
    given = planted.batch(*names)
    alone = [planted.batch(name) for name in names]
    pad = planted.folder.processor.tokenizer.pad_token_id
    for line, mask, one in zip(given["input_ids"], given["attention_mask"], alone, strict=True):
        length = one["input_ids"].shape[1]
        assert torch.equal(line[:length], one["input_ids"][0])
        assert (line[length:] == pad).all()
        assert mask.tolist() == [1] * length + [0] * (len(line) - length)
        images = int((line == planted.folder.config.image_token_id).sum())
        assert images == M * (len(one["pixel_values"]) if "pixel_values" in one else 0)
    together = model(**given)["lm"]
    torch.testing.assert_close(together, sum(model(**one)["lm"] for one in alone), atol=1e-4, rtol=1e-5)
    assert given["rows"].tolist() == [2, 1, 0]


def test_every_drawn_patch_shows_its_word(planted: Planted) -> None:
    names = ("text", "long", "two", "one")
    given = planted.batch(*names, data=planted.data(Sea(window=1, gather=True)))  # nothing is dropped
    seen = list(colours(planted, given["pixel_values"]))
    assert len(seen) == 4 * M
    assert None not in seen
    assert pairs(planted, given) == list(enumerate(seen))
    windows = planted.batch(*names, data=planted.data(Sea(window=2, gather=True)))
    assert len(windows["sea_patches"]) == 4 * M / 4
    assert all(seen[patch] == word for patch, word in pairs(planted, windows))


def test_an_image_without_labels_has_its_place(planted: Planted) -> None:
    cache = {image: planted.cache[image] for image in ("2.png", "sub/3.png")}
    data = planted.data(labels=Labels(cache, Sea(window=1, gather=True), False, None))  # type: ignore[arg-type]
    given = planted.batch("one", "two", "long", data=data)
    seen = list(colours(planted, given["pixel_values"]))
    assert pairs(planted, given) == [(patch, seen[patch]) for patch in range(2 * M, 4 * M)]
    none = planted.batch("one", data=data)
    assert len(none["sea_patches"]) == len(none["sea_words"]) == 0
    assert none["sea_patches"].dtype == torch.int64


def test_a_word_is_there_once_in_a_batch(planted: Planted) -> None:
    everything = pairs(planted, planted.batch("one", "two", "same", data=planted.data(Sea(window=1, gather=True))))
    assert len(everything) == 4 * M
    kept = pairs(planted, planted.batch("one", "two", "same"))
    assert sorted(word for _, word in kept) == sorted({word for _, word in everything})
    assert set(kept) <= set(everything)
    images = {patch // M for epoch in range(8) for patch, _ in pairs(planted, planted.batch("one", "two", epoch=epoch))}
    assert images == {0, 1, 2}  # any of them may stay
    keys = np.array([0, 0, 1, 1, 2, 2, 2, 2])  # words of the same tokens
    labels = Labels(planted.cache, Sea(window=1, dedupe="tokens"), True, keys)
    fewer = planted.batch("one", "two", "same", data=planted.data(labels=labels))
    assert sorted(keys[fewer["sea_words"]]) == [0, 1, 2]


def test_draws_depend_on_seed_epoch_and_row(planted: Planted) -> None:
    def drawn(epoch: int = 0, seed: int = 0, name: str = "one") -> tuple[Any, ...]:
        data = pickle.loads(pickle.dumps(planted.data(Sea(window=2), seed=seed, random_crop=0.3)))
        sample = data[epoch * len(ROWS) + ROWS.index(name)]
        assert (sample["epoch"], sample["row"]) == (epoch, ROWS.index(name))
        return sample["patches"].tolist(), sample["words"].tolist(), sample["images"].sum().item()

    assert drawn() == drawn()
    assert drawn(epoch=3) == drawn(epoch=3)
    samples = [drawn(), drawn(epoch=1), drawn(seed=1), drawn(name="same")]  # the same picture
    assert len({str(sample) for sample in samples}) == 4
    given = [planted.batch("one", "two", epoch=epoch) for epoch in (0, 0, 1)]
    assert given[0]["seed"] == given[1]["seed"] != given[2]["seed"]
    assert pairs(planted, given[0]) == pairs(planted, given[1]) != pairs(planted, given[2])


def test_labels_follow_a_random_crop(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    data = planted.data(Sea(window=1, gather=True), random_crop=0.2)
    crops = []
    image_of = data.image
    monkeypatch.setattr(data, "image", lambda *given: crops.append(image_of(*given)) or crops[-1])
    decided = outside = 0
    for epoch in range(40):
        given = planted.batch("one", data=data, epoch=epoch)
        (x0, y0, x1, y1), size = crops[-1][1], crops[-1][0].size
        assert 0 <= x0 < x1 <= 1
        assert 0 <= y0 < y1 <= 1
        assert size == (round((x1 - x0) * 72), round((y1 - y0) * 48))
        assert size[0] == size[1]
        assert 0.2 * 48**2 <= (size[0] + 0.5) ** 2 <= 49**2
        words = dict(pairs(planted, given))
        for patch, colour in enumerate(colours(planted, given["pixel_values"])):
            centre = x0 + (x1 - x0) * (patch % 4 + 0.5) / 4
            if not 1 / 6 <= centre < 5 / 6:  # labels cover the centre square
                assert patch not in words
                outside += 1
            elif colour is not None:
                assert words[patch] == colour
                decided += 1
    assert decided > 200
    assert outside > 20
    assert len({crop[1] for crop in crops}) == 40


def test_labels_of_another_place_need_leave(planted: Planted) -> None:
    data = planted.data(labels=Labels(planted.cache, Sea(), False, None), random_crop=0.2)
    with pytest.raises(UserError, match=r"labels of '0\.png'.*set labels\.transfer: true"):
        [data[epoch * len(ROWS)] for epoch in range(5)]


def test_an_image_that_cannot_be_read(planted: Planted, model: AlignedLlava) -> None:
    (planted.photos / "2.png").write_bytes(b"not an image")
    data = planted.data()
    for act in (lambda: data[ROWS.index("two")], lambda: tower_features(model, data)):
        with pytest.raises(UserError) as caught:
            act()
        assert str(caught.value).startswith(f"{planted.photos / '2.png'}: sample 'two': expected an image; ")
        assert "\n" not in str(caught.value)


def test_kept_features_give_the_same_losses(
    planted: Planted, model: AlignedLlava, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.features._BATCH", 3)  # 4 images: an uneven last batch
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
    model.sea_term = sea_term(planted.folder, planted.words, Sea(gather=gather))
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
