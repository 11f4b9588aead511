"""The texts that `meaningful` compares: of the LLM's tokens and of the labels' list."""

import pytest
import torch

from sea_pipeline.labels.store import open_labels
from tests.support.analysis_models import Make
from tests.support.tiny_runs import SquareEncoder, World
from trainer.evaluation import evaluator
from trainer.words import whole_words


def nothing(_: int) -> None:
    pass


@pytest.fixture
def encoder(tiny: World, monkeypatch: pytest.MonkeyPatch) -> SquareEncoder:
    """Counts what it embeds."""
    counting = SquareEncoder()
    monkeypatch.setattr(evaluator, "load_encoder", lambda *given: counting)
    return counting


def test_a_word_of_both_is_embedded_once(ready: Make, tiny: World, encoder: SquareEncoder) -> None:
    made, listed = ready(labelled=True), open_labels(tiny.labels).words
    by_token = whole_words(made.folder.processor.tokenizer, made.folder.vocabulary)
    words = set(by_token.values())
    assert words & set(listed)
    assert words - set(listed)
    rows, token_text, word_text = made.evaluator._texts
    assert encoder.embedded_words == len(words | set(listed))
    assert torch.equal(word_text, encoder.words(listed, nothing))
    assert (rows >= 0).nonzero().flatten().tolist() == list(by_token)
    assert torch.equal(token_text[rows[rows >= 0]], encoder.words(list(by_token.values()), nothing))


def test_where_the_list_has_every_word_nothing_else_is_embedded(
    ready: Make, tiny: World, encoder: SquareEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = open_labels(tiny.labels).words
    monkeypatch.setattr(evaluator, "whole_words", lambda *given: {7: listed[2], 9: listed[0]})
    rows, token_text, _ = ready(labelled=True).evaluator._texts
    assert encoder.embedded_words == len(listed)
    assert rows[[7, 9]].tolist() == [2, 0]
    assert torch.equal(token_text, encoder.words(listed, nothing))
