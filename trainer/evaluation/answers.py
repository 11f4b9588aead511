"""Score answers by VQA v2's accuracy, by means over groups with their errors, and by what questions alone allow."""

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trainer.evaluation.question_file import Question as Question
from trainer.measures.blind_control import Mean, standard_error

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = r';/[]"{}()=+\_-><@`,?!'
"""What VQA v2 removes from an answer; if no space stands beside the sign, it becomes one."""


def normalised(answer: str) -> str:
    """Normalise an answer as VQA v2 compares it.

    That is lower case, no punctuation or articles, and small numbers as digits. Signs such as `%`, `$` and `:` stay, as
    does a point before a digit. Apostrophes are removed from both answers; VQA has a list of contractions that lack one
    instead. An answer of articles alone keeps them, because it names the choice A.
    """
    said = text = re.sub(r"['\u2019]", "", " ".join(answer.lower().split()))
    has_thousands = re.search(r"\d,\d", said) is not None
    for sign in filter(said.__contains__, _PUNCTUATION):
        vanishes = has_thousands or f"{sign} " in said or f" {sign}" in said
        text = text.replace(sign, "" if vanishes else " ")
    words = re.sub(r"\.(?!\d)", "", text).split()
    return " ".join(_DIGITS.get(word, word) for word in words if word not in _ARTICLES) or " ".join(words)


def vqa_accuracy(answer: str, answers: Sequence[str]) -> float:
    """Compute VQA v2's accuracy of an answer, 0..1.

    It is the mean over people of min(1, matches among the other people / 3). With fewer than four people it is 1 if
    anyone gave the answer. An answer of which nothing is left is never right.
    """
    return _accuracy(normalised(answer), [normalised(one) for one in answers])


def _accuracy(given: str, said: Sequence[str]) -> float:
    """Compute `vqa_accuracy` of normalised answers; an empty one matches nothing."""
    if not given:
        return 0.0
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
    said = [[normalised(answer) for answer in question.answers] for question in questions]
    scores = [0.0] * len(questions)
    for alike in asked.values():
        # A question scores 0 for the answers that nobody gave to it, so only its own are tried.
        tables = [
            {answer: _accuracy(answer, said[number]) for answer in dict.fromkeys(said[number])} for number in alike
        ]
        totals: dict[str, float] = defaultdict(float)
        for table in tables:
            for answer, score in table.items():
                totals[answer] += score
        best = max(totals, key=totals.__getitem__, default="")
        for number, table in zip(alike, tables, strict=True):
            scores[number] = table.get(best, 0.0)
    return scores
