"""Batches against what is planted in the pixels."""

import pickle
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sea_pipeline.core.errors import UserError
from tests.support.heard import Heard
from tests.support.planted_photos import ROWS, M, Planted, aligned, colours, pairs
from tests.support.refused import refused
from tests.support.tiny_runs import World, tiny_recipe
from trainer.data.dataset import TrainingLabels
from trainer.data.kept_features import tower_features
from trainer.data.run_rows import open_conversations, warn_of_rows
from trainer.model.aligned_llava import AlignedLlava
from trainer.model.load import open_model_folder
from trainer.recipes.recipe import Sea


@pytest.fixture
def model(planted: Planted) -> AlignedLlava:
    return aligned(planted)


@pytest.mark.slow
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
    data = planted.data(labels=TrainingLabels(cache, Sea(window=1, gather=True), False, None))  # type: ignore[arg-type]
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
    labels = TrainingLabels(planted.cache, Sea(window=1, dedupe="tokens"), True, keys)
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
    data = planted.data(labels=TrainingLabels(planted.cache, Sea(), False, None), random_crop=0.2)
    with pytest.raises(UserError, match=r"labels of '0\.png'.*carry them over: labels\.transfer: true in a recipe"):
        [data[epoch * len(ROWS)] for epoch in range(5)]


def test_an_image_that_cannot_be_read(planted: Planted, model: AlignedLlava, tmp_path: Path) -> None:
    planted = planted._replace(photos=Path(shutil.copytree(planted.photos, tmp_path / "photos")))
    (planted.photos / "2.png").write_bytes(b"not an image")
    data = planted.data()
    for act in (lambda: data[ROWS.index("two")], lambda: tower_features(model, data)):
        with refused(start=f"{planted.photos / '2.png'}: sample 'two': expected an image; "):
            act()


@pytest.mark.parametrize(
    ("short_by", "rope", "positions"),
    [(1, None, True), (0, None, False), (1, {"factor": 2.0}, False), (None, None, False)],
)
def test_rows_beyond_the_llms_positions_are_counted(
    short_by: int | None, rope: Any, positions: bool, tiny: World
) -> None:
    data = tiny_recipe(tiny).data
    conversations, heard = open_conversations(data, open_model_folder(tiny.model)), Heard()
    longest = max(conversations.train["length"])
    most = None if short_by is None else longest - short_by
    warn_of_rows(conversations, data, SimpleNamespace(max_position_embeddings=most, rope_parameters=rope), heard)
    wanted = rf"{tiny.data}: \d+ of \d+ rows .* positions, {most}; .* {longest}; data.max_length: {most} cuts them"
    assert [bool(re.fullmatch(wanted, line)) for line in heard.warnings] == [True] * positions
