"""The nearest tokens of visual tokens, layer by layer; and figures of them, as `evaluate --save-figures` draws them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import decoders
from torch import nn
from transformers import LlavaForConditionalGeneration

from sea_pipeline.core.errors import UserError
from sea_pipeline.labels.store import open_labels
from tests.support.analysis_models import M, Make, Planted, Ready, nearest_twin
from tests.support.refused import ran
from tests.support.tiny_runs import World
from tests.support.tiny_tokenizers import byte_level, llama_like
from trainer.evaluation.evaluator import ShownImage
from trainer.evaluation.figures import _layers, _words
from trainer.evaluation.nearest_by_layer import look_at_layers, nearest_by_layer, token_texts
from trainer.evaluation.token_replacement import replace_and_describe


def layers_twin(ready: Ready, row: int) -> list[list[list[int]]]:
    """layers -> images -> m tokens of one sample, in float64, on its own and without padding."""
    model = ready.model.eval().double()
    sample = ready.evaluator.data[row]
    assert sample["images"] is not None
    states: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out: states.append(out if torch.is_tensor(out) else out[0]))
        for layer in model.model.language_model.layers
    ]
    with torch.no_grad():
        visual = model.model.multi_modal_projector(model.tower_output(sample["images"].double()))
        LlavaForConditionalGeneration.forward(
            model, input_ids=sample["input_ids"][None], pixel_values=sample["images"].double()
        )
    for hook in hooks:
        hook.remove()
    model.float()
    image_token = ready.folder.processor.image_token_id
    places = [place for place, token in enumerate(sample["input_ids"].tolist()) if token == image_token]
    flat = [visual.flatten(0, 1), *(state[0, places] for state in states)]
    found = [nearest_twin(vectors, ready.embeddings) for vectors in flat]
    return [[layer[start : start + M] for start in range(0, len(layer), M)] for layer in found]


@pytest.mark.slow
def test_nearest_tokens_are_those_of_a_slow_twin(ready: Make, mixed: Path) -> None:
    """Beside texts, in batches with padding behind, with several images in a sample; and a limit counts images."""
    made = ready(mixed)
    twins = [layers_twin(made, row) for row in (1, 2, 3)]
    expected = [[image for twin in twins for image in twin[layer]] for layer in range(3)]
    images = [(1, "00.png"), (2, "01.png"), (2, "03.png"), (3, "04.png")]
    for batch_size, limit in ((1, None), (2, None), (4, None), (2, 1), (2, 2), (2, 3), (2, 9)):
        made.evaluator.batch_size = batch_size
        told: list[int] = []
        found = look_at_layers(made.evaluator, made.model, limit, advance=told.append)
        assert found.images == [ShownImage(*image) for image in images[:limit]]
        assert (found.tokens.dtype, sum(told)) == (torch.int32, len(found.images))
        assert found.tokens.tolist() == [layer[:limit] for layer in expected]
    kinds = [len(layer.unique()) for layer in found.tokens]
    assert min(kinds) >= 5, "eight colours should read as several tokens"
    assert min(kinds[1:]) > 20, "layers should tell patches of one colour apart"


def test_the_last_layer_is_looked_at_before_the_final_norm(ready: Make, mixed: Path) -> None:
    made = ready(mixed)
    (batch,) = made.evaluator.batches(torch.device("cpu"))
    found = nearest_by_layer(made.model.eval(), batch, made.embeddings)
    with torch.no_grad():
        made.model.model.language_model.norm.weight.neg_()
    assert nearest_by_layer(made.model, batch, made.embeddings).equal(found)


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(ready: Make, mixed: Path, training: bool) -> None:
    made = ready(mixed)
    made.model.train(training)
    hooks = [dict(module._forward_hooks) for module in made.model.modules()]
    modes = [module.training for module in made.model.modules()]
    assert {training} <= set(modes)  # a frozen tower is in evaluation mode always
    look_at_layers(made.evaluator, made.model, 1)
    replace_and_describe(made.evaluator, made.model, 1, 2)
    assert [module.training for module in made.model.modules()] == modes
    assert [dict(module._forward_hooks) for module in made.model.modules()] == hooks


def test_a_planted_token_is_named(ready: Make, mixed: Path) -> None:
    made = ready(mixed)
    tokens = torch.tensor([made.id("Ġred")] * 8 + [made.id("Ġ")] * 4 + [made.id("</s>")] * 3 + [made.id("!")])
    assert made.id("!") == 1 + made.id("<|im_end|>"), "the first that is not special"
    made.model.model.multi_modal_projector = Planted(2.5 * made.embeddings[tokens])
    found = look_at_layers(made.evaluator, made.model)
    assert found.tokens[0].tolist() == [tokens.tolist()] * 4
    assert found.by_layer(2)[0] == [" red"] * 8 + [" "] * 4 + ["</s>"] * 3 + ["!"]
    assert found.summary[0] == {
        "layer": 0,
        "special": 3 / 16,
        "distinct_tokens": 4,
        "frequent": [
            {"token": " red", "share": 1 / 2},
            {"token": " ", "share": 1 / 4},
            {"token": "</s>", "share": 3 / 16},
            {"token": "!", "share": 1 / 16},
        ],
    }


def test_layer_0_agrees_with_the_metrics(ready: Make) -> None:
    made = ready(labelled=True)
    metrics, found = made.evaluator(made.model), look_at_layers(made.evaluator, made.model)
    assert len(found.images) == 11, "twelve samples, one of them a text"
    for name in ("meaningful", "meaningful_chance", "distinct_tokens"):
        assert found.summary[0][name] == metrics[name]  # type: ignore[literal-required]


def test_meaningful_finds_planted_labels_at_layer_0_only(ready: Make, tiny: World) -> None:
    made = ready(labelled=True)
    words = made.evaluator.words([ShownImage(0, "00.png")])[0, :, 0].tolist()
    names = open_labels(tiny.labels).words
    made.model.model.multi_modal_projector = Planted(made.embeddings[[made.id(f"Ġ{names[word]}") for word in words]])
    first = look_at_layers(made.evaluator, made.model, 1).summary
    assert first[0]["meaningful"] == 1.0
    assert "meaningful_chance" not in first[0], "there is no other image"
    some = look_at_layers(made.evaluator, made.model, 5).summary
    assert [one["layer"] for one in some] == [0, 1, 2]
    assert 0 < some[0]["meaningful_chance"] < 1


def test_numbers_that_are_none_are_told(ready: Make, mixed: Path) -> None:
    made = ready(mixed)
    with torch.no_grad():
        made.model.model.language_model.layers[0].mlp.down_proj.weight[3] = torch.nan
    with pytest.raises(UserError, match=r"^layer 1: expected numbers as visual tokens; found some that are not finite"):
        look_at_layers(made.evaluator, made.model)


def test_an_llm_without_layers_of_that_name(ready: Make, mixed: Path) -> None:
    made = ready(mixed)
    made.model.model.language_model.layers = nn.ModuleList()
    with pytest.raises(UserError, match="expected an LLM with a list of decoder layers"):
        look_at_layers(made.evaluator, made.model)


def test_tokens_read_as_in_running_text() -> None:
    pieces = llama_like()
    pieces.backend_tokenizer.decoder = decoders.Sequence(  # Llama 2's
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    for tokenizer, before, newline in ((byte_level(), "Ġ", "Ċ"), (pieces, "▁", "<0x0A>")):
        names = [f"{before}cat", f"{before}photo", "at", before, newline, "</s>" if before == "▁" else "<|im_end|>"]
        ids = tokenizer.convert_tokens_to_ids(names)
        assert tokenizer.unk_token_id not in ids
        expected = [" cat", " photo", "at", " ", "\n", names[-1]]
        assert token_texts(tokenizer, ids) == dict(zip(ids, expected, strict=True))
    assert token_texts(byte_level(), byte_level().convert_tokens_to_ids(["â"])).popitem()[1] == "\ufffd"


@pytest.mark.slow
def test_figures_of_words_and_layers(command: Any, tiny: World, tmp_path: Path) -> None:
    arguments = ["evaluate", tiny.model, "--data", tiny.held_out, "--image-root", tiny.data.parent / "images"]
    arguments += ["--save-figures", tmp_path / "figures", "--limit-images", 2]
    stdout = ran(command, *arguments, "--labels", tiny.labels, "--layers")
    assert "8 figures are in" in stdout
    names = [f"{place}-{image}.png.{what}" for place, image in (("00", 12), ("01", 13)) for what in ("layers", "words")]
    files = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert files == sorted(f"{name}.{kind}" for name in names for kind in ("pdf", "png"))


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
