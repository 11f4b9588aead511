"""Score answers by VQA v2's accuracy, by means over groups with their errors, and by what questions alone allow."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.measures.blind_control import Mean, standard_error

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = frozenset(("a", "an", "the"))


class Question(NamedTuple):
    """A question about a photo."""

    image: str
    text: str
    answers: tuple[str, ...]
    """People's answers; only `yes` or `no` for a yes/no question."""
    yes_no: bool
    group: str = ""
    """What the question is about. The accuracy of yes/no questions is a mean over groups."""


def normalised(answer: str) -> str:
    """Normalise an answer as VQA v2 compares it.

    That is lower case, no punctuation or articles, and small numbers as digits. Apostrophes are removed from both
    answers; VQA has a list of contractions that lack one instead.
    """
    text = re.sub(r"(?<=\d),(?=\d)", "", answer.strip().lower())
    text = re.sub(r"(?<!\d)\.|\.(?!\d)|['\u2019`]", "", text)
    text = re.sub(r"[^\w\s.]|_", " ", text)
    return " ".join(_DIGITS.get(word, word) for word in text.split() if word not in _ARTICLES)


def vqa_accuracy(answer: str, answers: Sequence[str]) -> float:
    """Compute VQA v2's accuracy of an answer, 0..1.

    It is the mean over people of min(1, matches among the other people / 3). With fewer than four people it is 1 if
    anyone gave the answer.
    """
    given, said = normalised(answer), [normalised(one) for one in answers]
    if len(said) < 4:
        return float(given in said)
    matches = sum(one == given for one in said)
    return float(np.mean([min(1.0, (matches - (one == given)) / 3) for one in said]))


def mean_over_groups(values: npt.ArrayLike, groups: Sequence[str], photos: Sequence[str]) -> Mean:
    """Compute the mean over groups of their means, with its standard error over photos.

    With w_i = 1 / (groups * size of i's group), the error is sqrt(P / (P - 1) * sum over photos p of
    (sum over p's questions of w_i * (value_i - mean of i's group))^2).

    Args:
        values: (questions,), 0..1.
        groups: the group of each question.
        photos: the photo of each question.
    """
    scores = np.asarray(values, float)
    _, group = np.unique(np.asarray(groups, str), return_inverse=True)
    sizes = np.bincount(group)
    means = np.bincount(group, scores) / sizes
    # w_i * (value_i - mean of i's group); the parts sum to 0.
    parts = (scores - means[group]) / (len(sizes) * sizes[group])
    return Mean(float(means.mean()), standard_error(parts, photos))


def question_only(questions: Sequence[Question]) -> list[float]:
    """Score the best answers that the questions alone allow.

    The answers are chosen on the file itself, so this is an upper bound. A yes/no question gets the more common label
    of the questions with the same words, another question the best answer to those with the same first three words.
    """
    asked: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, question in enumerate(questions):
        words = question.text.lower().split()
        asked[tuple(words if question.yes_no else words[:3])].append(number)
    scores = [0.0] * len(questions)
    for alike in asked.values():
        answers = {normalised(answer) for number in alike for answer in questions[number].answers}
        table = {answer: [vqa_accuracy(answer, questions[number].answers) for number in alike] for answer in answers}
        for number, score in zip(alike, max(table.values(), key=sum), strict=True):
            scores[number] = score
    return scores
