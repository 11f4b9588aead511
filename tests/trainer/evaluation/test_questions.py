"""Questions about photos: a model that sees answers them, one that does not look stands at the questions' own level."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sea_pipeline.inputs.pixels import read_image
from tests.support.analysis_models import Make, Ready, draw_shade, learn, record, write
from tests.support.refused import ran, refuses
from trainer.evaluation.answers import Question
from trainer.evaluation.evaluator import evaluating
from trainer.evaluation.questions import ANSWERS, SHORT, Asker, Prompt, beginnings, free_prompt, yes_or_no
from trainer.model.load import load_model
from trainer.model.prompts import TemplateName
from trainer.recipes.recipe import Recipe

NAMES = ("red", "green", "blue", "yellow")
PHOTOS = 16


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(PHOTOS):
        draw_shade(tmp_path / "photos" / f"{number}.png", NAMES[number % 4], number, 9)
    return tmp_path / "photos"


def questions() -> list[Question]:
    """Of every photo whether it is warm, and whether it is light, of which half are each, and its colour."""
    asked = []
    for number in range(PHOTOS):
        name = NAMES[number % 4]
        for word, names in (("warm", ("red", "yellow")), ("light", ("green", "yellow"))):
            label = "yes" if name in names else "no"
            asked.append(Question(f"{number}.png", f"Is it {word}?", (label,), True, word))
        asked.append(Question(f"{number}.png", "Which is it?", (name,) * 10, False))
    return asked


@pytest.fixture(scope="module")
def _learnt() -> dict[str, torch.Tensor]:
    """The weights of `seeing`, learnt once."""
    return {}


@pytest.fixture
def seeing(ready: Make, photos: Path, tmp_path: Path, _learnt: dict[str, torch.Tensor]) -> Ready:
    """A model that has learnt the answers."""
    rows = [
        record(f"{number}", [one.image], f"{one.text}\n{SHORT}", one.answers[0].capitalize())
        for number, one in enumerate(questions())
    ]
    made = ready(write(tmp_path / "data.json", rows), image_root=photos, batch_size=16, template="vicuna_v1")
    torch.manual_seed(0)
    model = load_model(made.folder, Recipe(model=made.folder.path)).train().requires_grad_(True)
    if _learnt:
        model.load_state_dict(_learnt)
        return made._replace(model=model)
    spread_out = made.model.model.multi_modal_projector.state_dict()  # else every colour gives nearly the same tokens
    model.model.multi_modal_projector.load_state_dict(spread_out)
    learn(made, model, 3e-3, epochs=60, most=1.0)
    _learnt.update(deepcopy(model.state_dict()))
    return made._replace(model=model)


def asked(made: Ready, photos: Path, given: list[Question], batch_size: int = 8) -> dict[str, float]:
    with evaluating(made.model):
        asker = Asker(made.model, made.folder, lambda name: read_image(photos / name).image, batch_size=batch_size)
        return asker(given)


@pytest.mark.parametrize("template", ["own", "vicuna_v1"])
def test_questions_are_asked_with_the_processors_prompt(template: TemplateName, ready: Make) -> None:
    """Its tokenizer keeps the space before `Yes` and `No` apart, and fuses that before other answers."""
    made = ready()
    asker = Asker(made.model, made.folder, lambda _: Image.new("RGB", (9, 9)), template=template)
    given = [Question("a.png", "What is it?", (answer,), answer == "yes") for answer in ("yes", "a cat")]
    parts = [{"type": "image"}, {"type": "text", "text": f"What is it?\n{SHORT}"}]
    chat = [{"role": "user", "content": parts}]
    text = made.folder.processor.apply_chat_template(chat, add_generation_prompt=True)
    expected = made.folder.processor(images=Image.new("RGB", (9, 9)), text=text)["input_ids"]
    for prompt in asker.prompts(given):
        assert [prompt.ids.tolist()] == list(expected)


@pytest.mark.parametrize(
    ("prompt", "answered", "expected"),
    [
        ("Q A:", ["Q A: Yes", "Q A: No"], "Q A:"),
        ("Q A:", ["Q A:<think></think>Yes", "Q A:<think></think>No"], "Q A:<think></think>"),
        ("Q A:<think>", ["Q A:Yes", "Q A:No"], "Q A:"),
    ],
)
def test_a_free_question_ends_where_the_processor_ends_it(prompt: str, answered: list[str], expected: str) -> None:
    assert free_prompt(prompt, answered) == expected


@pytest.mark.parametrize(
    "tokens",
    [
        ["Yes", "yes", "No", "no"],
        [" |Y|es", " y|es", " |N|o", " |n|o"],
        [" Yes", " |yes", " |No", " |no"],
        [" |Yes", " |yes", " |No", " |no|!"],
    ],
)
@pytest.mark.parametrize("said", ANSWERS)
def test_every_spelling_counts_for_its_side(tokens: list[str], said: str) -> None:
    names = sorted({token for each in tokens for token in each.split("|")})
    rows = [[names.index(token) for token in each.split("|")] for each in tokens]
    written = tuple(rows[ANSWERS.index(said)])

    def logits(after: tuple[int, ...]) -> torch.Tensor:
        """Of a model that writes one spelling, however its tokens begin."""
        found = torch.zeros(1, len(names))
        if written[: len(after)] == after:
            found[0, written[len(after)]] = 3.0
        return found

    assert yes_or_no([Prompt(torch.empty(0), *beginnings(rows))], logits) == [said.lower()]


@pytest.mark.slow
def test_a_model_that_sees_answers_and_the_same_model_blinded_guesses(seeing: Ready, photos: Path) -> None:
    found = asked(seeing, photos, questions())
    assert found["yes_no_questions"] == 2 * PHOTOS
    assert found["vqa_questions"] == PHOTOS
    assert found["yes_no_accuracy"] > 0.95
    assert found["vqa_accuracy"] > 0.95
    assert found["yes_no_accuracy_other"] < 0.8
    assert found["vqa_accuracy_other"] < 0.6
    assert found["yes_no_accuracy_question_only"] == 0.5
    assert found["vqa_accuracy_question_only"] == 0.25
    assert found["vqa_accuracy_yes"] == 0
    assert found["vqa_accuracy_people"] == 1
    assert asked(seeing, photos, questions(), batch_size=5) == pytest.approx(found), "padding changes nothing"
    for parameter in seeing.model.model.multi_modal_projector.linear_2.parameters():
        parameter.data.zero_()
    blind = asked(seeing, photos, questions())
    assert blind["yes_no_accuracy"] == blind["yes_no_accuracy_other"] == 0.5, "the question alone is worth a half"
    assert blind["vqa_accuracy"] == blind["vqa_accuracy_other"] <= 0.25


@pytest.mark.slow
def test_of_shuffled_labels_it_knows_nothing(seeing: Ready, photos: Path) -> None:
    random = np.random.default_rng(0)
    given = [one for one in questions() if one.yes_no]
    labels = [one.answers for one in given]
    draws = []
    for _ in range(5):
        random.shuffle(labels)
        shuffled = [one._replace(answers=label) for one, label in zip(given, labels, strict=True)]
        draws.append(asked(seeing, photos, shuffled))
    assert abs(np.mean([draw["yes_no_accuracy"] for draw in draws]) - 0.5) < 0.15


@pytest.mark.slow
def test_the_command(command: Any, seeing: Ready, photos: Path, tmp_path: Path) -> None:
    listed = [
        {"image": one.image, "question": one.text, "label": one.answers[0], "object": one.group}
        for one in questions()
        if one.yes_no
    ]
    (tmp_path / "questions.json").write_text(json.dumps(listed))
    given = ["evaluate", seeing.folder.path, "--data", tmp_path / "data.json", "--image-root", photos]
    found = json.loads(ran(command, *given, "--questions", tmp_path / "questions.json", "--json"))
    assert {"yes_no_accuracy", "yes_no_accuracy_se", "yes_no_accuracy_other", "right_photo_gain"} < set(found)
    stdout = ran(command, *given, "--questions", tmp_path / "questions.json")
    assert f"{found['yes_no_accuracy']:.3f} ± {found['yes_no_accuracy_se']:.3f}" in stdout
    refuses(command, "--question-root", *given, "--questions", tmp_path / "questions.json", "--question-root", tmp_path)
