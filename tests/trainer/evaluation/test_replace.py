"""Texts that a model says of visual tokens, and of their nearest tokens alone."""

import json
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import nn

from sea_pipeline.core.errors import UserError
from tests.support.analysis_models import M, Make, Planted, Ready, nearest_twin, record, write
from tests.support.tiny_runs import World
from trainer.evaluation.token_replacement import (
    answer_text,
    generate,
    nearest_in_place,
    prompted,
    replace_and_describe,
    said_words,
    shares,
)


def describe(made: Ready, new_tokens: int = 12, images: int = 2) -> list[list[int]]:
    pictures = [made.evaluator.data.image(f"{number:02d}.png", "")[0] for number in range(images)]
    written = generate(made.model.eval(), prompted(made.folder.processor, pictures), new_tokens)
    return written.tolist()  # type: ignore[no-any-return]


def greedy_twin(made: Ready, visual: torch.Tensor, new_tokens: int) -> list[int]:
    """Argmax after argmax without a cache, from embeddings put together by hand; visual (m, d)."""
    model, processor = made.model.eval(), made.folder.processor
    picture = made.evaluator.data.image("00.png", "")[0]
    ids = prompted(processor, [picture])["input_ids"][0].tolist()
    rows, place = [], 0
    for token in ids:
        is_image = token == processor.image_token_id
        rows.append(visual[place] if is_image else model.get_input_embeddings().weight[token])
        place += is_image
    assert place == len(visual)
    found: list[int] = []
    for _ in range(new_tokens):
        hidden = model.model.language_model(inputs_embeds=torch.stack(rows)[None]).last_hidden_state[0, -1]
        found.append(int((model.lm_head.weight.double() @ hidden.double()).argmax()))
        rows.append(model.get_input_embeddings().weight[found[-1]])
    return found


@pytest.mark.slow
@torch.no_grad()
def test_texts_are_those_of_a_slow_twin(ready: Make) -> None:
    made = ready()
    pixels = made.evaluator.data[0]["images"]
    assert pixels is not None
    visual = made.model.eval().model.multi_modal_projector(made.model.tower_output(pixels))[0]
    replaced = made.embeddings[nearest_twin(visual, made.embeddings)]
    twins = [greedy_twin(made, given, 12) for given in (visual, replaced)]
    assert twins[0] != twins[1], "replacing changes nothing here"
    ends = made.model.generation_config.eos_token_id
    assert not {*twins[0], *twins[1]} & {*ends}, "a text ends early"
    assert describe(made)[0] == twins[0]
    with nearest_in_place(made.model, made.embeddings):
        assert describe(made)[0] == twins[1]
    assert describe(made)[0] == twins[0], "the projector stays replaced"


def test_tokens_that_are_embeddings_are_replaced_by_themselves(ready: Make) -> None:
    made = ready()
    exact = made.embeddings[7 * torch.arange(M)]
    texts = []
    for factor, noise in ((1.0, 0.0), (3.0, 0.002)):
        given = factor * exact + noise * torch.randn(exact.shape, generator=torch.Generator().manual_seed(1))
        made.model.model.multi_modal_projector = Planted(given)
        texts.append(describe(made))
        with nearest_in_place(made.model, made.embeddings):
            texts.append(describe(made))
            assert made.model.model.multi_modal_projector(torch.zeros(2, M, 16)).equal(exact.expand(2, -1, -1))
    assert texts[0] == texts[1] == texts[3]
    assert texts[2] != texts[0], "three times as long, they should read otherwise"


def test_texts_and_their_control(ready: Make, mixed: Path) -> None:
    made = ready(mixed, batch_size=3)
    found = replace_and_describe(made.evaluator, made.model, 8, 6)
    assert [image.image_id for image in found.images] == ["00.png", "01.png", "03.png", "04.png"]
    assert [told["control_of"] for told in found.described] == ["01.png", "04.png", "04.png", "00.png"]
    texts = {image.image_id: told for image, told in zip(found.images, found.described, strict=True)}
    assert all(told["control"] == texts[told["control_of"]]["replaced"] for told in found.described)
    assert (found.summary["images"], found.summary["scored"]) == (4, 4)
    one = replace_and_describe(made.evaluator, made.model, 1, 6)
    assert one.described == [{"visual": texts["00.png"]["visual"], "replaced": texts["00.png"]["replaced"]}]
    assert {"visual", "replaced"} == {"visual", "visual_control", "replaced", "replaced_control"} & set(one.summary)


def test_no_image_is_its_own_control(ready: Make, tmp_path: Path) -> None:
    images = {"one": "00.png", "the same": "00.png", "other": "01.png"}
    records = [record(name, [image], "What?", "red") for name, image in images.items()]
    made = ready(write(tmp_path / "twice.json", records))
    found = replace_and_describe(made.evaluator, made.model, 3, 2)
    assert [told["control_of"] for told in found.described] == ["01.png", "00.png"]


def test_new_tokens_are_at_most_so_many(ready: Make) -> None:
    made = ready()
    assert [len(text) for text in describe(made, new_tokens=5)] == [5, 5]
    ends = made.model.generation_config.eos_token_id
    with torch.no_grad():  # the head now says the end of the text, whatever it is given
        made.model.lm_head.weight = nn.Parameter(torch.zeros_like(made.model.lm_head.weight))
    made.model.generation_config.eos_token_id = [*ends, 0]
    assert [len(text) for text in describe(made, new_tokens=5)] == [1, 1]


def test_shares_by_hand() -> None:
    texts = ["A red CAT.", "two dogs", "a cat", "nothing"]
    answers = [{"cat", "mat"}, {"dog"}, set(), {"cat"}]
    others = [[1, 2, 3], [2, 3, 0], [3, 0, 1], [0, 1]]
    found = shares("visual", texts, answers, others)
    assert found == {"visual": 1 / 3, "visual_control": 2 / 8}
    assert shares("visual", texts[:1], answers[:1], [[]]) == {"visual": 1.0}
    assert shares("visual", texts[2:3], answers[2:3], [[]]) == {}


def test_words_that_count_are_not_those_of_the_question() -> None:
    text = "Please describe the image: Two CATS, in détail 3x, on a tree-top."
    assert said_words(text) == {"cats", "détail", "tree-top"}


def test_answers_of_several_turns(ready: Make, tiny: World) -> None:
    made = ready()
    turns = json.loads(tiny.data.read_text())[1]["conversations"]
    assert answer_text(made.evaluator, 1).split() == f"{turns[1]['value']} {turns[3]['value']}".split()
    encoded = made.folder.processor.tokenizer(["red", "\n", "blue"], add_special_tokens=False)["input_ids"]
    row = {"input_ids": list(chain(*encoded)), "trained": [part is not encoded[1] for part in encoded for _ in part]}
    made.evaluator.data.rows = [row | {"truncated": cut} for cut in (False, True)]
    assert answer_text(made.evaluator, 0) == "red blue", "also where no space stands before an answer"
    assert answer_text(made.evaluator, 1) == "red ", "the last word may be half of one"
    assert 0 < len(made.evaluator.content_words(1)) < len(made.evaluator.content_words(0))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            "{{ messages[0]['content'][-1]['text'] }}",
            "cannot write a question about an image (The total number of <image>",
        ),
        ("{{ raise_exception('only a system') }}", "cannot write a question about an image (only a system)"),
        ("{{ 1 + 'a' }}", "cannot write a question about an image (unsupported operand"),
    ],
)
def test_a_chat_template_that_cannot_ask(ready: Make, template: str, said: str) -> None:
    made = ready()
    made.folder.processor.chat_template = template
    picture = made.evaluator.data.image("00.png", "")[0]
    with pytest.raises(UserError) as error:
        prompted(made.folder.processor, [picture])
    assert said in str(error.value)
