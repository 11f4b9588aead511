"""Questions about photos: a model that sees answers them, one that does not look stands at the questions' own level."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sea_pipeline.core.errors import UserError
from tests.support.analysis_models import Make, Ready, record, write
from tests.support.world import COLOURS
from trainer.evaluation.answers import Question, mean_over_groups, normalised, question_only, vqa_accuracy
from trainer.evaluation.evaluator import evaluating
from trainer.evaluation.questions import SHORT, Asker, read_questions
from trainer.model.load import load_model
from trainer.recipes.recipe import Recipe

NAMES = ("red", "green", "blue", "yellow")
PHOTOS = 16


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(PHOTOS):
        shade = np.clip(np.array(COLOURS[NAMES[number % 4]]) + np.random.default_rng(number).integers(-9, 9, 3), 0, 255)
        Image.new("RGB", (32, 32), tuple(shade.tolist())).save(tmp_path / "photos" / f"{number}.png")
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
    made = ready(write(tmp_path / "data.json", rows), image_root=photos, batch_size=16, template="own")
    torch.manual_seed(0)
    model = load_model(made.folder, Recipe(model=made.folder.path)).train().requires_grad_(True)
    if _learnt:
        model.load_state_dict(_learnt)
        return made._replace(model=model)
    spread_out = made.model.model.multi_modal_projector.state_dict()  # else every colour gives nearly the same tokens
    model.model.multi_modal_projector.load_state_dict(spread_out)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    batches = list(made.evaluator.batches(torch.device("cpu")))
    for _ in range(60):
        for batch in batches:
            (model(**batch)["lm"] / len(batch["targets"])).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    _learnt.update(deepcopy(model.state_dict()))
    return made._replace(model=model)


def asked(made: Ready, photos: Path, given: list[Question], batch_size: int = 8) -> dict[str, float]:
    with evaluating(made.model):
        return Asker(
            made.model,
            made.folder,
            lambda image: Image.open(photos / image).convert("RGB"),
            batch_size=batch_size,
        )(given)


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


@pytest.mark.parametrize(
    ("answer", "same"),
    [
        ("Two.", "2"), ("the dog", "Dog"), ("A red, big car", "red big car"), ("1,000", "1000"), ("don't", "dont"),
        ("3.5", "3.5"), ("none", "0"), ("yes\n", "Yes"), ("it's", "its"), ("left-hand", "left hand"), ("a.m.", "am"),
    ],
)  # fmt: skip
def test_answers_that_are_the_same(answer: str, same: str) -> None:
    assert normalised(answer) == normalised(same)
    assert normalised("a dog") != normalised("a cat")


def test_ten_people() -> None:
    said = ["red"] * 2 + ["blue"] * 5 + ["a blue"] * 2 + ["green"]
    assert vqa_accuracy("Blue.", said) == 1
    assert vqa_accuracy("red", said) == pytest.approx(0.6)  # 8 of ten people see two others, two see one
    assert vqa_accuracy("green", said) == pytest.approx(0.3)
    assert vqa_accuracy("pink", said) == 0
    assert vqa_accuracy("yes", ("yes",)) == 1


def test_the_mean_is_over_objects_and_its_error_over_photos() -> None:
    """Two objects of 30 and 10 questions count alike; a slow twin draws photos with replacement."""
    random = np.random.default_rng(0)
    photos = [f"{number // 2}" for number in range(40)]
    groups = ["dog"] * 30 + ["cat"] * 10
    values = np.concatenate([random.random(30) < 0.8, random.random(10) < 0.4]).astype(float)
    value, error = mean_over_groups(values, groups, photos)
    assert value == pytest.approx((values[:30].mean() + values[30:].mean()) / 2)
    draws = []
    for _ in range(4000):
        weight = np.bincount(random.integers(0, 20, 20), minlength=20)[np.arange(40) // 2]
        both = (slice(30), slice(30, 40))
        parts = [(values[part] * weight[part]).sum() / max(1, weight[part].sum()) for part in both]
        draws.append(np.mean(parts))
    assert error == pytest.approx(np.std(draws), rel=0.15)
    assert mean_over_groups([1.0], ["dog"], ["a"]).error is None


def test_question_only_takes_the_best_answer_of_each_kind() -> None:
    given = [
        Question("a", "How many dogs are there?", ("2",) * 10, False),
        Question("b", "How many dogs run?", ("2",) * 4 + ("3",) * 6, False),
        Question("c", "How many dogs sit?", ("4",) * 10, False),
        Question("d", "What is it?", ("cat",) * 10, False),
    ]
    assert question_only(given) == [1, 1, 0, 1]


def test_both_forms_of_a_file(tmp_path: Path) -> None:
    listed = [
        {"image": "a.jpg", "question": "Is there a dog?", "label": "Yes", "object": "dog", "question_id": 0},
        {"image": "b.jpg", "question": "What?", "answers": ["x"] * 10},
        {"image": "c.jpg", "statement": "It is.", "label": "no"},
        "text",
    ]
    found = read_questions(write(tmp_path / "list.json", listed))  # type: ignore[arg-type]
    assert found.asked == [
        Question("a.jpg", "Is there a dog?", ("yes",), True, "dog"),
        Question("b.jpg", "What?", ("x",) * 10, False),
    ]
    assert found.left == {"": 2}
    sections = {"vqa": {"b.jpg": [listed[1]]}, "pope": {"a.jpg": [{"question": "Is it?", "label": "no"}]}}
    sections |= {"vsr": {"c.jpg": [listed[2], listed[2]]}}
    (tmp_path / "sections.json").write_text(json.dumps(sections))
    found = read_questions(tmp_path / "sections.json")
    assert [one.yes_no for one in found.asked] == [False, True]
    assert found.left == {"vsr": 2}


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "[1, 2]", '{"a": {"b": [{"statement": "x"}]}}', "null", '"x"', "\\ud800", "[" * 9000]
)
def test_what_asks_nothing_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text(content)
    with pytest.raises(UserError, match=r"q\.json: expected") as caught:
        read_questions(tmp_path / "q.json")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_command(command: Any, seeing: Ready, photos: Path, tmp_path: Path) -> None:
    listed = [
        {"image": one.image, "question": one.text, "label": one.answers[0], "object": one.group}
        for one in questions()
        if one.yes_no
    ]
    (tmp_path / "questions.json").write_text(json.dumps(listed))
    given = ["evaluate", seeing.folder.path, "--data", tmp_path / "data.json", "--image-root", photos]
    code, stdout, stderr = command(*given, "--questions", tmp_path / "questions.json", "--json")
    assert code == 0, stderr
    found = json.loads(stdout)
    assert {"yes_no_accuracy", "yes_no_accuracy_se", "yes_no_accuracy_other", "right_photo_gain"} < set(found)
    code, stdout, stderr = command(*given, "--questions", tmp_path / "questions.json")
    assert code == 0, stderr
    assert f"{found['yes_no_accuracy']:.3f} ± {found['yes_no_accuracy_se']:.3f}" in stdout
    code, _, stderr = command(*given, "--questions", tmp_path / "questions.json", "--question-root", tmp_path)
    assert code == 1
    assert "--question-root" in stderr
    assert stderr.count("\n") == 1
