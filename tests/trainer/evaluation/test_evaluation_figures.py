"""`evaluate --save-figures`, as typed, and what its figures say."""

from pathlib import Path
from typing import Any

import pytest

from sea_pipeline.labels.store import open_labels
from tests.support.analysis_models import Make
from tests.support.tiny_runs import World
from trainer.evaluation.figures import _layers, _words
from trainer.evaluation.nearest_by_layer import look_at_layers


@pytest.mark.slow
def test_figures_of_words_and_layers(command: Any, tiny: World, tmp_path: Path) -> None:
    arguments = ["evaluate", tiny.model, "--data", tiny.held_out, "--image-root", tiny.data.parent / "images"]
    arguments += ["--save-figures", tmp_path / "figures", "--limit-images", 2]
    code, stdout, stderr = command(*arguments, "--labels", tiny.labels, "--layers")
    assert code == 0, stderr
    assert "8 figures are in" in stdout
    names = [f"{place}-{image}.png.{what}" for place, image in (("00", 12), ("01", 13)) for what in ("layers", "words")]
    files = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert files == sorted(f"{name}.{kind}" for name in names for kind in ("pdf", "png"))
    code, _, stderr = command(*arguments)
    assert code == 1
    assert "--save-figures: draws words with --labels and tokens with --layers" in stderr.replace("\n", " ")


def test_hits_are_words_among_the_labels_of_their_patch(tiny: World, ready: Make) -> None:
    made = ready(labelled=True)
    store = open_labels(tiny.labels)
    table = made.evaluator.word_table(made.embeddings)
    assert table is not None
    panel = _words(made.evaluator, made.model, made.evaluator.first_images(1)[0], table)
    assert panel.texts == made.evaluator.nearest_words(made.model, 0)
    own = [{store.words[word] for word in row if word >= 0} for row in store["00.png"].word_ids]
    assert panel.kinds == ["hit" if text in words else "miss" for text, words in zip(panel.texts, own, strict=True)]
    assert panel.title == f"{panel.kinds.count('hit')} of 16 patches hit"


def test_layers_are_the_projector_the_last_and_some_between(ready: Make) -> None:
    made = ready()
    found = look_at_layers(made.evaluator, made.model, 1)
    panels = _layers(found, 0)
    assert panels[0].title == "layer 0, the projector"
    assert panels[-1].title == f"layer {len(found.summary) - 1}"
    assert panels[-1].texts == [text.strip() for text in found.by_layer(0)[-1]]
