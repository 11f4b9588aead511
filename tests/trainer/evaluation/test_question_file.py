"""Files of questions as people have them, what is told of entries that are no questions, and scores of answers."""

import json
import runpy
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sea_pipeline.core.errors import UserError
from tests.support.heard import Heard
from tests.support.refused import refused
from trainer.evaluation import answers
from trainer.evaluation.answers import Question, mean_over_groups, normalised, question_only, vqa_accuracy
from trainer.evaluation.question_file import read_questions
from trainer.evaluation.questions import open_questions


def written(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("entry", "answers"),
    [
        ({"question": "Q?", "label": " Yes.\n"}, ("yes",)),
        ({"question": "Q?", "label": True}, ("yes",)),
        ({"question": "Q?", "label": False}, ("no",)),
        ({"text": "Q?", "label": "no!"}, ("no",)),
        ({"question": "Q?", "answers": [2, 2.0, 2.5, "two", False]}, ("2", "2", "2.5", "two", "no")),
        ({"question": "Q?", "answers": [{"answer": "cat", "answer_id": 1}, {"answer": 3}]}, ("cat", "3")),
        ({"question": "Q?", "answers": ["cat", None]}, None),
        ({"question": "Q?", "answers": [{"said": "cat"}]}, None),
        ({"question": "Q?", "label": "maybe"}, None),
        ({"question": "Q?", "label": 1}, None),  # the number of a choice, for all one knows
        ({"question": "Q?", "answer": "cat"}, None),
        ({"question": ["Q?"], "label": "yes"}, None),
        ({"statement": "It is.", "label": "no"}, None),
    ],
)
def test_an_entry_is_read_or_counted(entry: dict[str, Any], answers: tuple[str, ...] | None, tmp_path: Path) -> None:
    sure = {"image": "s.jpg", "question": "Sure?", "label": "yes", "object": "dog", "question_id": 0}
    found = read_questions(written(tmp_path / "q.json", [sure, {"image": 7, **entry}]))
    if answers is None:
        assert found.left == {"": 1}
        assert str(next(iter(entry))) in found.example
    else:
        assert found.left == {}
        assert found.asked[1] == Question("7", "Q?", answers, "label" in entry)
    assert found.asked[0] == Question("s.jpg", "Sure?", ("yes",), True, "dog")


@pytest.mark.parametrize("name", ["q.jsonl", "pope.json"])
@pytest.mark.parametrize("count", [1, 3])
def test_one_object_a_line_with_a_byte_order_mark(name: str, count: int, tmp_path: Path) -> None:
    """POPE's own files are called .json, and a text may hold Unicode's own end of a line."""
    lines = [
        json.dumps({"image": f"{n}", "text": "A\u2028dog?", "label": "no"}, ensure_ascii=False) for n in range(count)
    ]
    (tmp_path / name).write_text("\ufeff" + "\r\n".join(lines) + "\n\n", "utf-8")
    found = read_questions(tmp_path / name)
    assert [one.image for one in found.asked] == [f"{n}" for n in range(count)]
    assert found.left == {}
    with (tmp_path / name).open("a") as file:
        file.write('{"image": \n')
    if count > 1:
        with pytest.raises(UserError, match=rf"expected questions as JSON; line {count + 2} cannot be read"):
            read_questions(tmp_path / name)


def test_what_is_left_out_is_told_by_section(tmp_path: Path) -> None:
    listed = [{"image": "a.jpg", "question": "Q?", "label": "yes"}] * 2
    sections = {"pope": {"a.jpg": [{"question": "Q?", "label": "no"}, {"question": "Q?"}]}, "vqa": listed, "info": "v2"}
    sections["open"] = {"b.jpg": [{"question": "What?", "answers": ["x"]}]}
    path = written(tmp_path / "q.json", sections)
    heard = Heard()
    asked = [Question("a.jpg", "Q?", ("no",), True), Question("b.jpg", "What?", ("x",), False)]
    assert open_questions(path, heard) == asked
    (said,) = heard.warnings
    assert "4 of 6 entries are left out (1 in 'pope', 2 in 'vqa', 1 in 'info'), such as {'question': 'Q?'}; exp" in said
    with pytest.raises(UserError, match="cannot be read: an object has the key 'vqa' twice; keep one of them"):
        read_questions(written(tmp_path / "q.json", '{"vqa": [], "vqa": []}'))
    with pytest.raises(UserError, match=r"q\.json: expected a list of objects with"):
        read_questions(written(tmp_path / "q.json", {"vqa": listed}))
    whole = Heard()
    open_questions(written(tmp_path / "q.json", listed), whole)
    assert whole.lines == []


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "[1, 2]", '{"a": {"b": [{"statement": "x"}]}}', "null", '"x"', "\\ud800", "[" * 9000]
)
def test_what_asks_nothing_is_one_line(content: str, tmp_path: Path) -> None:
    with refused(match=r"q\.json: expected"):
        read_questions(written(tmp_path / "q.json", content))


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


@pytest.mark.parametrize(
    ("answer", "other"),
    [
        (".5", "5"), ("50%", "50"), ("$5", "5"), ("#1", "1"), ("10:30", "10 30"), ("red & white", "red white"),
        ("left-hand", "lefthand"), ("v.2", "v2"), ("5*", "5"), ("a~b", "ab"),
    ],
)  # fmt: skip
def test_answers_that_vqa_tells_apart(answer: str, other: str) -> None:
    """By the code that lmms-eval took from VQA, too."""
    path = Path(sys.prefix, "harness/lmms_eval/tasks/_task_utils/vqa_eval_metric.py")
    theirs = runpy.run_path(str(path))["EvalAIAnswerProcessor"]()
    assert theirs(answer) != theirs(other)
    assert normalised(answer) != normalised(other)
    assert vqa_accuracy(answer, [answer] * 10) == 1


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


def test_letters_are_answers_and_nothing_is_none() -> None:
    assert vqa_accuracy("A", ["A"] * 10) == vqa_accuracy("a.", ["A"]) == 1
    assert vqa_accuracy("", ["A"] * 10) == vqa_accuracy("the", ["A"] * 10) == vqa_accuracy("B", ["A"] * 10) == 0
    assert vqa_accuracy("", ["?"] * 10) == vqa_accuracy(".", [""]) == 0
    assert normalised("A cat") == normalised("the cat") == "cat"
    assert question_only([Question("a", "Q?", ("?",) * 10, False)]) == [0]


STARTS = ("What is the", "What is a", "How is the")


def slow(questions: list[Question]) -> list[float]:
    """Every answer on every question that begins alike."""
    asked: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, question in enumerate(questions):
        words = question.text.lower().split()
        asked[tuple(words if question.yes_no else words[:3])].append(number)
    scores = [0.0] * len(questions)
    for alike in asked.values():
        said = dict.fromkeys(normalised(answer) for number in alike for answer in questions[number].answers)
        table = {answer: [vqa_accuracy(answer, questions[number].answers) for number in alike] for answer in said}
        for number, score in zip(alike, max(table.values(), key=sum), strict=True):
            scores[number] = score
    return scores


def test_question_only_scores_an_answer_where_it_was_given_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    words = ["two", "2", "The dog", "dog", "a", "", "red", "blue.", "Red"]
    given = [
        Question(f"{n}", f"{random.choice(STARTS)} {n}?", tuple(random.choice(words, size)), False)
        for n, size in enumerate(random.integers(1, 11, 60))
    ]
    given += [Question(f"{n}", f"Is it the {n % 3}?", (str(random.choice(["yes", "no"])),), True) for n in range(30)]
    expected = slow(given)
    calls: list[str] = []

    def counted(answer: str) -> str:
        calls.append(answer)
        return normalised(answer)

    monkeypatch.setattr(answers, "normalised", counted)
    assert question_only(given) == expected
    assert len(calls) == sum(len(one.answers) for one in given)
    assert 0 < np.mean(expected) < 1
