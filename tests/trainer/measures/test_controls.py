"""The blind control: a model that sees gains from the right photo, one that does not look gains nothing."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from sea_pipeline.inputs.captions import content_spans, content_words
from tests.support.analysis_models import Make, Ready, draw_shade, learn, record, write
from tests.support.sentence_piece import vicuna_like
from tests.support.tiny_tokenizers import byte_level
from tests.support.world import COLOURS
from trainer.measures.blind_control import content_tokens, mean_over_photos, others, with_other_photos
from trainer.model.load import load_model
from trainer.model.parts import load_tokenizer
from trainer.recipes.recipe import Recipe

ANSWERS = {name: f"It is a {name} one, and a {name} one it is." for name in COLOURS}
PHOTOS = 24


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """A question about each of 24 pictures of one colour, one picture in two samples, and a text alone."""
    records, names = [], list(COLOURS)
    for number in range(PHOTOS):
        name = names[number % len(names)]
        draw_shade(tmp_path / "images" / f"{number}.png", name, number, 20)
        records.append(record(f"{number}", [f"images/{number}.png"], "Which?", ANSWERS[name]))
    records.append(record("again", ["images/0.png"], "Once more?", ANSWERS[names[0]]))
    records.append(record("text", [], "Which?", "It is a text of words."))
    return write(tmp_path / "colours.json", records)


@pytest.fixture(scope="module")
def _learnt() -> dict[str, torch.Tensor]:
    """The weights of `seeing`, learnt once."""
    return {}


@pytest.fixture
def seeing(ready: Make, colours: Path, tmp_path: Path, _learnt: dict[str, torch.Tensor]) -> Ready:
    """A model that has learnt to name what it sees."""
    made = ready(colours, image_root=tmp_path)
    model = load_model(made.folder, Recipe(model=made.folder.path)).train().requires_grad_(True)
    made = made._replace(model=model)
    if _learnt:
        model.load_state_dict(_learnt)
        return made
    learn(made, model, 1e-2, epochs=24)
    _learnt.update(deepcopy(model.state_dict()))
    return made


@pytest.mark.slow
def test_a_model_that_sees_gains_and_the_same_model_blinded_does_not(seeing: Ready) -> None:
    found = seeing.evaluator(seeing.model)
    for name in ("right_photo_gain", "right_photo_gain_content"):
        assert found[name] > 4 * found[f"{name}_se"] > 0
    assert found["right_photo_gain_content"] > 1.5 * found["right_photo_gain"], "the colour is a content word"
    assert found["lm_loss_other"] > found["lm_loss"]
    for parameter in seeing.model.model.multi_modal_projector.linear_2.parameters():
        parameter.data.zero_()
    blind = seeing.evaluator(seeing.model)
    for name in ("right_photo_gain", "right_photo_gain_content"):
        assert blind[name] == pytest.approx(0, abs=1e-6)  # batches are summed in another order on some processors
    assert blind["lm_loss"] > found["lm_loss"]


def test_a_model_of_shuffled_photos_gains_nothing(ready: Make, colours: Path, tmp_path: Path) -> None:
    """It may look, but what it sees says nothing of the answer: within two standard errors of 0 on other pictures."""
    made = ready(colours, image_root=tmp_path)
    found = made.evaluator(made.model)  # random weights
    assert abs(found["right_photo_gain"]) < 2 * found["right_photo_gain_se"]


@pytest.mark.slow
def test_the_numbers_are_those_of_a_slow_twin(seeing: Ready) -> None:
    """One sample at a time by transformers' own forward, all sums in float64; the batches are of uneven samples."""
    seeing.evaluator.batch_size = 3
    evaluator, rows = seeing.evaluator, seeing.evaluator.data.rows
    found = evaluator(seeing.model)
    model = seeing.model.eval()
    swap = others([image for row in rows for image in row["images"]])
    own, other, tokens = [], [], []
    words: list[tuple[float, float, int]] = []
    for number, row in enumerate(rows):
        sums = []
        for data in (evaluator.data, with_other_photos(evaluator.data, swap)):
            if not row["images"] and data is not evaluator.data:
                continue
            batch = evaluator._collate([data[number]])
            logits = model(**{key: batch[key] for key in ("input_ids", "pixel_values") if key in batch}).logits[0]
            logs = torch.log_softmax(logits[batch["predict"]].double(), -1)
            sums.append(-logs[torch.arange(len(logs)), batch["targets"]].detach())
        own.append(float(sums[0].sum()))
        tokens.append(len(sums[0]))
        other.append(float(sums[-1].sum()) if row["images"] else None)
        tokenizer = evaluator.data.processor.tokenizer
        mask = torch.from_numpy(content_tokens(tokenizer, row["input_ids"], row["trained"]))
        words.append((float(sums[0][mask].sum()), float(sums[-1][mask].sum()), int(mask.sum())))
    shown = [number for number, value in enumerate(other) if value is not None]
    count = sum(tokens[number] for number in shown)
    difference = [other[number] - own[number] for number in shown]  # type: ignore[operator]
    assert found["trained_tokens"] == sum(tokens)
    assert found["lm_loss"] == pytest.approx(sum(own) / sum(tokens), rel=1e-4)
    assert found["lm_loss_other"] == pytest.approx(sum(other[number] for number in shown) / count, rel=1e-4)  # type: ignore[misc]
    assert found["right_photo_gain"] == pytest.approx(sum(difference) / count, rel=1e-3)
    of_words = sum(words[number][2] for number in shown)
    gain = sum(words[number][1] - words[number][0] for number in shown) / of_words
    assert found["right_photo_gain_content"] == pytest.approx(gain, rel=1e-3)
    content = sum(each[0] for each in words) / sum(each[2] for each in words)
    assert found["lm_loss_content"] == pytest.approx(content, rel=1e-4)
    by_photo: dict[str, list[int]] = {}
    for place, number in enumerate(shown):
        by_photo.setdefault(rows[number]["images"][0], []).append(place)
    assert len(by_photo) == PHOTOS < len(shown)
    value, residue = sum(difference) / count, 0.0
    for places in by_photo.values():
        residue += sum(difference[place] - value * tokens[shown[place]] for place in places) ** 2
    expected = (PHOTOS / (PHOTOS - 1) * residue) ** 0.5 / count
    assert found["right_photo_gain_se"] == pytest.approx(expected, rel=1e-3)


def test_every_photo_is_another_ones_once() -> None:
    images = [f"{number}.jpg" for number in range(50)]
    swap = others(images)
    assert sorted(swap) == sorted(swap.values()) == sorted(images)
    assert all(one != another for one, another in swap.items())
    assert others([*reversed(images), *images]) == swap
    assert others(["a", "a"]) == {}
    assert others(["a", "b"]) == {"a": "b", "b": "a"}


def test_one_photo_has_no_control(ready: Make, colours: Path, tmp_path: Path) -> None:
    alone = write(tmp_path / "alone.json", [record("0", ["images/0.png"], "Which?", "It is red.")])
    made = ready(alone, image_root=tmp_path)
    found = made.evaluator(made.model)
    assert {"lm_loss", "lm_loss_content", "trained_tokens"} <= set(found)
    assert not any("gain" in name or name.endswith(("_se", "_other")) for name in found)


def test_the_error_is_that_of_equal_photos() -> None:
    """With as many tokens each it is the standard error of their means; photos of two samples count once."""
    means = np.random.default_rng(0).normal(size=30)
    found = mean_over_photos(means * 7, [7] * 30, [str(number) for number in range(30)])
    assert found.value == pytest.approx(means.mean())
    assert found.error == pytest.approx(means.std(ddof=1) / 30**0.5)
    twice = mean_over_photos([*means * 3, *means * 4], [3] * 30 + [4] * 30, [str(number) for number in range(30)] * 2)
    assert twice == pytest.approx(found)
    assert mean_over_photos([1.0, 2.0], [1, 1], ["a", "a"]).error is None


def test_the_error_covers_what_was_drawn() -> None:
    """Of 2,000 draws of 40 photos with unequal texts about 95 % hold the truth within two errors."""
    random = np.random.default_rng(1)
    held = 0
    for _ in range(2000):
        tokens = random.integers(3, 30, 40)
        photo = random.normal(0.3, 0.5, 40)
        value, error = mean_over_photos(photo * tokens, tokens, [str(number) for number in range(40)])
        assert error is not None
        held += abs(value - 0.3) < 2 * error
    assert 0.92 < held / 2000 < 0.97


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreTrainedTokenizerBase]:
    folder = tmp_path_factory.mktemp("vicuna")
    vicuna_like(folder)
    return {"bytes": byte_level(), "sentencepiece": load_tokenizer(str(folder))}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
@pytest.mark.parametrize(
    "text",
    [
        "Two dogs are running on the grass.",
        "A woman's hand, and a café with a naïve 猫!",
        "It is not; isn't it?",
        "well-known twenty-one x-ray",
        "😀 smile 😀😀 of a child",
    ],
)
def test_tokens_of_content_words(kind: str, text: str, tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    """A token counts if a letter of it is of a content word; together they write these words and no other letter."""
    tokenizer = tokenizers[kind]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    given = [5, *ids, end, 7, *ids, end]
    trained = [False, *[True] * (len(ids) + 1), False, *[True] * (len(ids) + 1)]
    mask = content_tokens(tokenizer, given, trained)
    assert len(mask) == sum(trained)
    first, second = mask[: len(ids) + 1], mask[len(ids) + 1 :]
    assert (first == second).all()
    assert not first[-1], "the end is no word"
    written = tokenizer.decode([token for token, content in zip(ids, first, strict=False) if content])
    for word in content_words(text):
        assert word in written.lower()
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    spans = content_spans(text)
    for (start, stop), content in zip(offsets, first, strict=False):
        letters = [at for at in range(start, stop) if not text[at].isspace()]
        assert content == any(begin <= at < stop_ for at in letters for begin, stop_ in spans), (start, stop)


def test_a_word_that_a_cut_may_have_halved_is_no_content(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    """However the row is cut, each token counts as in the whole row, or is of the last word."""
    tokenizer, text = tokenizers["bytes"], "The dog's water; it isn't well-known. Ça va"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = content_tokens(tokenizer, ids, [True] * len(ids))
    for kept in range(1, len(ids)):
        left = tokenizer.decode(ids[:kept])
        found = content_tokens(tokenizer, ids[:kept], [True] * kept, cut=True)
        assert not (found & ~whole[:kept]).any(), left
        if left.endswith((" ", ";", ".")):
            assert (found == whole[:kept]).all(), left
    question = content_tokens(tokenizer, [*ids[:4], 5], [True] * 4 + [False], cut=True)
    assert (question == content_tokens(tokenizer, ids[:4], [True] * 4)).all(), "the question is cut, not the answer"


def test_content_spans_are_the_content_words() -> None:
    text = "The old man\u2019s dogs don't sit; 3 well-known ones, and O'Neill, do (a cat)."
    assert [text[start:stop].lower() for start, stop in content_spans(text)] == [
        "old", "man\u2019s", "dogs", "sit", "well-known", "ones", "o'neill", "cat",
    ]  # fmt: skip
    assert content_words(text) == ["old", "man", "dogs", "sit", "well-known", "ones", "o'neill", "cat"]
