"""The contextual lens: a planted model says its captions' words, a blind one says nothing, and a slow twin agrees."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.captions import content_words
from tests.support.analysis_models import M, Make, Ready, nearest_twin, record, write
from tests.support.sentence_piece import vicuna_like
from tests.support.tiny_runs import World
from tests.support.tiny_tokenizers import byte_level
from tests.support.world import COLOURS, draw
from trainer.evaluation import token_replacement
from trainer.evaluation.contextual_lens import Index, _positions, build_index, index_layers, nearest_states, size_of
from trainer.evaluation.contextual_shares import Lens, captioned_photos, look_through
from trainer.evaluation.token_replacement import TrainedTexts, trained_text
from trainer.losses.supervision import watching_layers
from trainer.model.parts import load_tokenizer
from trainer.model.prompts import front
from trainer.model.tokenise import tokenise

TEXTS = [f"The picture shows a {one} square and a {two} ground." for one in COLOURS for two in COLOURS if one != two]
PHOTOS = 16


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """Photos of one colour each, two captions a photo."""
    names, records = list(COLOURS), []
    for number in range(PHOTOS):
        name = names[number % len(names)]
        draw(tmp_path / "images" / f"{number}.png", [[name]], size=(32, 32))
        records.append(record(f"{number}", [f"images/{number}.png"], "Which?", f"It is a {name} one."))
        records.append(record(f"{number}b", [f"images/{number}.png"], "What?", f"That is {name}."))
    return write(tmp_path / "colours.json", records)


@pytest.fixture
def made(ready: Make, colours: Path, tmp_path: Path) -> Ready:
    return ready(colours, image_root=tmp_path, batch_size=3)


def look(made: Ready, index: Index, limit: int | None = None) -> Lens:
    return look_through(made.evaluator, made.model, index, captioned_photos(made.evaluator, limit))


class PerPhoto(nn.Module):
    """A projector that gives each photo its own tokens, (P, m, d), in their order."""

    def __init__(self, tokens: torch.Tensor) -> None:
        super().__init__()
        self.tokens, self.at = tokens, 0

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        self.at += len(features)
        return self.tokens[self.at - len(features) : self.at]


@pytest.mark.slow
@pytest.mark.parametrize("layer", [0, 1])
def test_visual_tokens_that_are_words_in_sentences_are_read_as_these(made: Ready, layer: int) -> None:
    """Planted: a photo's tokens are states of its colour, in as many sentences; its caption has the word."""
    index = build_index(made.model, made.evaluator.data.processor.tokenizer, TEXTS)
    planted = []
    for words in captioned_photos(made.evaluator).values():
        (colour,) = words & set(COLOURS)
        rows = ((index.word == index.words.index(colour)) & (index.layer == layer)).nonzero().flatten()
        planted.append(index.states[rows.repeat(M)[:M]])
    made.model.model.multi_modal_projector = PerPhoto(torch.stack(planted))
    first: dict[str, Any] = {**look(made, index).summary[0]}
    assert first["contextual_share"] == 1
    assert first["matched"] == {str(layer): 1}
    assert first["matched_layer"] == layer
    same = sum(one % len(COLOURS) == two % len(COLOURS) for one in range(PHOTOS) for two in range(PHOTOS) if one != two)
    chance = same / (PHOTOS * (PHOTOS - 1))
    assert first["contextual_share_other"] == pytest.approx(chance, abs=0.2)
    gain, error = first["contextual_gain"], first["contextual_gain_se"]
    assert gain == 1 - first["contextual_share_other"] > 4 * error
    assert (first["word_share"] == 1) == (layer == 0), "a state in context is not nearest to its own embedding here"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["constant", "random"])
def test_a_blind_model_gains_nothing(made: Ready, kind: str) -> None:
    """Tokens that say nothing of their photo: within two standard errors of 0 at every layer, by both lenses."""
    index = build_index(made.model, made.evaluator.data.processor.tokenizer, TEXTS)
    drawn = torch.randn(PHOTOS, M, made.embeddings.shape[1], generator=torch.Generator().manual_seed(1))
    made.model.model.multi_modal_projector = PerPhoto(drawn[:1].expand_as(drawn) if kind == "constant" else drawn)
    for layer in look(made, index).summary:
        for lens in ("contextual", "word"):
            values: dict[str, Any] = {**layer}
            assert abs(values[f"{lens}_gain"]) <= 2 * values[f"{lens}_gain_se"] + 1e-9
            assert values[f"{lens}_gain"] == pytest.approx(values[f"{lens}_share"] - values[f"{lens}_share_other"])


def test_the_index_is_that_of_a_slow_twin(made: Ready) -> None:
    """Each text on its own, without padding, in float64; the texts differ in length."""
    tokenizer = made.evaluator.data.processor.tokenizer
    texts = ["The left half is magenta.", "I see a blue and a yellow patch beside a cyan one, or a red square."]
    index = build_index(made.model, tokenizer, texts)
    model = made.model.eval().double()
    words, states = [], []
    order = np.random.default_rng(0).permutation(2)
    for text in (texts[number] for number in order):
        (encoded,) = tokenise(tokenizer, [text])
        outputs: list[torch.Tensor] = []
        before = front(tokenizer)
        layers = model.model.language_model.layers
        with watching_layers(layers, lambda _, hidden, kept=outputs: kept.append(hidden[0])), torch.no_grad():  # type: ignore[misc]
            model.model.language_model(input_ids=torch.tensor([[*before, *encoded.ids]]), use_cache=False)
        for place in _positions(text, encoded.offsets, len(before)):
            words.append(place.word)
            states.append(outputs[0][place.at] / outputs[0][place.at].norm())
    made.model.float()
    assert index_layers(2) == [0, 1]
    deep = index.layer == 1
    assert [index.words[number] for number in index.word[deep].tolist()] == words
    assert torch.allclose(index.states[deep].double(), torch.stack(states), atol=1e-5)
    assert sorted(words) == sorted(content_words(" ".join(texts))), "a BOS stands before the first"
    ids = [token for token in range(len(tokenizer)) if tokenizer.decode([token]).strip() in words]
    expected = nn.functional.normalize(made.embeddings[ids], dim=-1)
    shallow = index.states[: index.embeddings]
    assert (shallow @ expected.T).amax(1).min() > 1 - 1e-5, "layer 0 is the embeddings of whole words"
    size = size_of(index)
    assert size["bytes"] == size["states"] * 32 * 4 == (len(words) + size["embeddings"]) * 32 * 4


@pytest.mark.parametrize(("k", "n", "block"), [(1, 1, 4), (7, 23, 5), (33, 64, 16), (5, 3, 2048)])
def test_the_search_is_exact(k: int, n: int, block: int) -> None:
    random = torch.Generator().manual_seed(k)
    queries, states = torch.randn(k, 9, generator=random), torch.randn(n, 9, generator=random)
    states[-1] = states[0]  # of equal ones the first
    queries, states = nn.functional.normalize(queries, dim=-1), nn.functional.normalize(states, dim=-1)
    assert nearest_states(queries, states, block).tolist() == nearest_twin(queries, states)


@pytest.mark.slow
def test_shares_are_those_of_a_slow_twin(ready: Make, mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos of several in a sample, batches with padding: photo by photo in float64."""
    made = ready(mixed, batch_size=2, labelled=True)
    index = build_index(made.model, made.evaluator.data.processor.tokenizer, TEXTS)
    photos = captioned_photos(made.evaluator)
    assert {image: words for (_, image), words in photos.items()} == {
        "00.png": {"red", "patch"},
        "01.png": {"green", "blue"},
        "03.png": {"green", "blue"},
        "04.png": {"left", "half", "magenta", "right", "grey"},
    }
    found = look(made, index)
    projected = {}
    for row in (1, 2, 3):
        sample = made.evaluator.data[row]
        assert sample["images"] is not None
        with torch.no_grad():
            tokens = made.model.projected(made.model.tower_output(sample["images"]))
        projected |= dict(zip(made.evaluator.data.rows[row]["images"], tokens, strict=True))
    shares = []
    for (_, image), own in photos.items():
        near = nearest_twin(projected[image], index.states)
        shares.append(np.mean([index.words[int(index.word[place])] in own for place in near]))
    first: dict[str, Any] = {**found.summary[0]}
    assert first["contextual_share"] == pytest.approx(np.mean(shares))
    assert first["contextual_share_se"] == pytest.approx(np.std(shares, ddof=1) / len(shares) ** 0.5)
    assert {"word_label_gain", "contextual_label_gain_se"} < set(found.summary[2])
    assert len(found.summary) == 3
    made.evaluator.batch_size = 4
    assert look(made, index).words.equal(found.words)
    spelled = made.evaluator.word
    monkeypatch.setattr(made.evaluator, "word", lambda label: f"{spelled(label).capitalize()}'s")
    assert look(made, index).summary == found.summary, "captions are in lower case, and have no possessives"


def test_a_plural_is_its_singular(made: Ready) -> None:
    index = build_index(made.model, made.evaluator.data.processor.tokenizer, ["so the squares and a patch"])
    photos = {shown: {"square"} for shown in captioned_photos(made.evaluator)}
    own = look_through(made.evaluator, made.model, index, photos).own.all(0).tolist()
    assert own == [word == "squares" for word in index.words]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_a_words_place_is_its_last_token(kind: str, tmp_path: Path) -> None:
    vicuna_like(tmp_path / "vicuna")
    tokenizer = byte_level() if kind == "bytes" else load_tokenizer(str(tmp_path / "vicuna"))
    text = "Dogs: the woman's hand and unfathomable pictures"
    (encoded,) = tokenise(tokenizer, [text])
    for first in (0, 1):
        places = list(_positions(text, encoded.offsets, first))
        words = ["dogs", "woman", "hand", "unfathomable", "pictures"]
        begun = encoded.offsets[0][1] >= 4 and not first
        assert [place.word for place in places] == words[begun:], "without a token before it a first word is left out"
        for place in places:
            end = encoded.offsets[place.at - first][1]
            after = text[end : end + 1]
            assert not after.isalpha(), place
            begin = encoded.offsets[place.at - first][0]
            assert place.whole == (text[begin:end].strip().lower() == place.word)


def test_a_cap_and_a_seed(made: Ready) -> None:
    tokenizer = made.evaluator.data.processor.tokenizer
    some = build_index(made.model, tokenizer, TEXTS, tokens=30)
    assert some.tokens == 30 == int((some.layer == 1).sum())
    again = build_index(made.model, tokenizer, TEXTS, tokens=30)
    assert again.states.equal(some.states)
    assert build_index(made.model, tokenizer, TEXTS).texts == len(TEXTS) > some.texts


def test_texts_are_decoded_when_they_are_read(made: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    processor, rows = made.evaluator.data.processor, list(made.evaluator.data.rows) * 4
    whole = build_index(made.model, processor.tokenizer, [trained_text(processor, row) for row in rows], tokens=30)
    read = Mock(wraps=trained_text)
    monkeypatch.setattr(token_replacement, "trained_text", read)
    some = build_index(made.model, processor.tokenizer, TrainedTexts(processor, rows), tokens=30)
    assert some.states.equal(whole.states)
    assert read.call_count == 32 < len(rows)


def test_texts_without_words_and_photos_without_captions(ready: Make, tiny: World, tmp_path: Path) -> None:
    made = ready()
    with pytest.raises(UserError, match="found no content word in 1 texts"):
        build_index(made.model, made.evaluator.data.processor.tokenizer, ["it is on the 3"])
    alone = ready(write(tmp_path / "alone.json", [record("0", ["00.png"], "Is it?", "It is.")]))
    with pytest.raises(UserError, match="found no photo with one in 1 samples"):
        captioned_photos(alone.evaluator)
    with torch.no_grad():
        made.model.model.language_model.layers[0].mlp.down_proj.weight[3] = torch.nan
    with pytest.raises(UserError, match="found some that are not finite"):
        build_index(made.model, made.evaluator.data.processor.tokenizer, TEXTS)


def test_one_photo_has_no_control(ready: Make, tmp_path: Path) -> None:
    made = ready(write(tmp_path / "one.json", [record("0", ["00.png"], "Which?", "It is red.")]))
    index = build_index(made.model, made.evaluator.data.processor.tokenizer, TEXTS)
    (_, *deeper) = look(made, index).summary
    for layer in deeper:
        assert "contextual_share" in layer
        assert not any("gain" in name or name.endswith(("_se", "_other")) for name in layer)
