"""Questions about photos: how many a model answers rightly, with their own photos and with others'.

A yes/no question is answered by the probabilities of the two words, a question with people's answers by what the model
writes, greedily. Beside them stands what someone reaches who reads the questions alone.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from sea_pipeline.errors import UserError
from sea_pipeline.llava_json import shown
from trainer.controls import Mean, others
from trainer.model import AlignedLlava
from trainer.replace import generate, stock

SHORT = "Answer the question using a single word or phrase."
"""What LLaVA-1.5 writes behind a question that asks for a short answer."""
NEW_TOKENS = 10
"""Of a short answer, at most."""

_FORMS = (
    "a list of objects with `image`, `question` and `label` (yes or no) or `answers` (a list of texts), or an object "
    "of sections, each an object of images with a list of such questions"
)
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = frozenset(("a", "an", "the"))


class Question(NamedTuple):
    """A question about a photo."""

    image: str
    text: str
    answers: tuple[str, ...]
    """Of people; `yes` or `no` alone for a yes/no question."""
    yes_no: bool
    group: str = ""
    """What it asks after; accuracies of yes/no questions are means over these."""


class Questions(NamedTuple):
    """What a file asks."""

    asked: list[Question]
    left: dict[str, int]
    """By section, how many entries are of another form."""


def read_questions(path: Path) -> Questions:
    """Reads a file of questions.

    Args:
        path: JSON: a list of objects `{"image", "question", "label": "yes" | "no", "object"}` or `{"image", "question",
            "answers": [text, ...]}`; or an object of sections, each `{image: [question, ...]}`.

    Raises:
        UserError: it cannot be read, or asks nothing.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: expected questions as JSON; it cannot be read: {reason}") from error
    asked: list[Question] = []
    left: Counter[str] = Counter()
    for section, image, entry in _entries(content):
        question = _question(image, entry)
        if question is None:
            left[section] += 1
        else:
            asked.append(question)
    if not asked:
        raise UserError(f"{path}: expected {_FORMS}; found {shown(content)}")
    return Questions(asked, dict(left))


def _entries(content: Any) -> Iterator[tuple[str, Any, Any]]:  # noqa: ANN401 - whatever JSON holds
    if isinstance(content, list):
        yield from (("", entry.get("image") if isinstance(entry, dict) else None, entry) for entry in content)
    elif isinstance(content, dict):
        for section, images in content.items():
            for image, entries in images.items() if isinstance(images, dict) else ():
                yield from ((section, image, entry) for entry in (entries if isinstance(entries, list) else [entries]))


def _question(image: Any, entry: Any) -> Question | None:  # noqa: ANN401 - whatever JSON holds
    if not isinstance(entry, dict) or not isinstance(image, str) or not isinstance(entry.get("question"), str):
        return None
    text, label, answers = entry["question"], entry.get("label"), entry.get("answers")
    if isinstance(label, str) and label.lower() in ("yes", "no"):
        return Question(image, text, (label.lower(),), True, str(entry.get("object", "")))
    if isinstance(answers, list) and answers and all(isinstance(answer, str) for answer in answers):
        return Question(image, text, tuple(answers), False)
    return None


# Scores


def normalised(answer: str) -> str:
    """An answer as VQA v2 compares it: lower case, no punctuation or articles, small numbers as digits.

    Apostrophes are left out on both sides, in place of VQA's list of contractions that lack one.
    """
    text = re.sub(r"(?<=\d),(?=\d)", "", answer.strip().lower())
    text = re.sub(r"(?<!\d)\.|\.(?!\d)|['\u2019`]", "", text)
    text = re.sub(r"[^\w\s.]|_", " ", text)
    return " ".join(_DIGITS.get(word, word) for word in text.split() if word not in _ARTICLES)


def vqa_accuracy(answer: str, answers: Sequence[str]) -> float:
    """VQA v2's accuracy of an answer, 0..1: a third for each of the other people who gave it, at most 1.

    It is the mean over people of min(1, matches among the others / 3). With fewer than four people it is 1 if anyone
    gave the answer.
    """
    given, said = normalised(answer), [normalised(one) for one in answers]
    if len(said) < 4:
        return float(given in said)
    matches = sum(one == given for one in said)
    return float(np.mean([min(1.0, (matches - (one == given)) / 3) for one in said]))


def mean_over_groups(values: npt.ArrayLike, groups: Sequence[str], photos: Sequence[str]) -> Mean:
    """Computes the mean over groups of their means, with its standard error over photos.

    With w_i = 1 / (groups * size of i's group), the error is sqrt(P / (P - 1) * sum over photos p of
    (sum over p's questions of w_i * (value_i - mean of i's group))^2).

    Args:
        values: (questions,), 0..1.
        groups: of each question.
        photos: of each question.
    """
    scores = np.asarray(values, float)
    _, group = np.unique(np.asarray(groups, str), return_inverse=True)
    names, photo = np.unique(np.asarray(photos, str), return_inverse=True)
    sizes = np.bincount(group)
    means = np.bincount(group, scores) / sizes
    parts = np.bincount(photo, (scores - means[group]) / (len(sizes) * sizes[group]), len(names))
    count = len(names)
    error = float(np.sqrt(count / (count - 1) * np.square(parts).sum())) if count > 1 else None
    return Mean(float(means.mean()), error)


def question_only(questions: Sequence[Question]) -> list[float]:
    """Scores the best answers that the questions alone allow, chosen on the file itself: an upper bound.

    A yes/no question gets the commoner label of those with its words, another one the best answer by its first three.
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


# Asking


def ask(
    model: AlignedLlava,
    processor: Any,  # noqa: ANN401 - transformers'
    questions: Sequence[Question],
    picture: Callable[[str], Image.Image],
    *,
    batch_size: int = 8,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, float]:
    """Asks a model, with the questions' own photos and with others', and scores what it says.

    Args:
        model: in evaluation mode, with the LLM's layers.
        processor: the model folder's; its chat template writes the questions.
        questions: of a file.
        picture: the photo of an image id.
        batch_size: questions at a time.
        advance: told how many questions are done.

    Returns:
        By kind, `yes_no` or `vqa`: `KIND_questions`, `KIND_accuracy` and `KIND_accuracy_other` (another photo's), each
        with `_se`; `KIND_accuracy_question_only`, see there; `vqa_accuracy_yes` of always saying yes and
        `vqa_accuracy_people` of people's commonest answer.
    """
    found: dict[str, float] = {}
    for kind, yes_no in (("yes_no", True), ("vqa", False)):
        chosen = [question for question in questions if question.yes_no == yes_no]
        if not chosen:
            continue
        swap = others([question.image for question in chosen])
        groups, photos = [question.group for question in chosen], [question.image for question in chosen]
        found[f"{kind}_questions"] = float(len(chosen))
        for ending, image_of in (("", {}), ("_other", swap)):
            if ending and not swap:
                continue
            scores = []
            for start in range(0, len(chosen), batch_size):
                part = chosen[start : start + batch_size]
                given = [_prompt(processor, one.text, picture(image_of.get(one.image, one.image))) for one in part]
                said = _yes_or_no(model, processor, given) if yes_no else _written(model, processor, given)
                scores += [vqa_accuracy(answer, one.answers) for answer, one in zip(said, part, strict=True)]
                advance(len(part))
            value, error = mean_over_groups(scores, groups, photos)
            found[f"{kind}_accuracy{ending}"] = value
            if error is not None:
                found[f"{kind}_accuracy{ending}_se"] = error
        found[f"{kind}_accuracy_question_only"] = mean_over_groups(question_only(chosen), groups, photos).value
        if not yes_no:
            commonest = [Counter(map(normalised, one.answers)).most_common(1)[0][0] for one in chosen]
            for name, answers in (("yes", ["yes"] * len(chosen)), ("people", commonest)):
                scores = [vqa_accuracy(answer, one.answers) for answer, one in zip(answers, chosen, strict=True)]
                found[f"vqa_accuracy_{name}"] = float(np.mean(scores))
    return found


def _prompt(processor: Any, text: str, image: Image.Image) -> Mapping[str, Any]:  # noqa: ANN401 - transformers'
    """A question about a photo in the chat template, up to where the answer begins: ids (1, L) and pixels."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": f"{text}\n{SHORT}"}]
    given: Mapping[str, Any] = processor.apply_chat_template(
        [[{"role": "user", "content": content}]],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    return given


def _padded(given: Sequence[Mapping[str, Any]], pad: int, device: torch.device, *, left: bool) -> dict[str, Any]:
    """Prompts as one batch with its mask; with `left` they end together, else they begin together."""
    ids = [one["input_ids"][0] for one in given]
    longest = max(map(len, ids))
    batch = torch.full((len(ids), longest), pad)
    mask = torch.zeros_like(batch)
    for row, one in enumerate(ids):
        place = slice(longest - len(one), longest) if left else slice(0, len(one))
        batch[row, place], mask[row, place] = one, 1
    pixels = torch.cat([one["pixel_values"] for one in given])
    return {
        "input_ids": batch.to(device),
        "attention_mask": mask.to(device),
        "pixel_values": pixels.to(device),
    }


def _yes_or_no(model: AlignedLlava, processor: Any, given: Sequence[Mapping[str, Any]]) -> list[str]:  # noqa: ANN401
    """The likelier of the two words, by the sum over their spellings, at the place where the answer begins."""
    batch = _padded(given, 0, model.device, left=False)
    hidden = stock(model).model(**batch).last_hidden_state
    last = batch["attention_mask"].sum(1) - 1
    logits = model.lm_head(hidden[torch.arange(len(last)), last]).float()
    yes, no = (_first_tokens(processor.tokenizer, word) for word in ("yes", "no"))
    sums = [logits[:, sorted(mine - theirs)].logsumexp(-1) for mine, theirs in ((yes, no), (no, yes))]
    return ["yes" if more else "no" for more in (sums[0] > sums[1]).tolist()]


def _first_tokens(tokenizer: Any, word: str) -> set[int]:  # noqa: ANN401 - transformers'
    """The tokens that the spellings of a word begin with, behind a space or not."""
    spelled = [f"{space}{one}" for space in ("", " ") for one in (word, word.capitalize())]
    return {tokenizer(one, add_special_tokens=False)["input_ids"][0] for one in spelled}


def _written(model: AlignedLlava, processor: Any, given: Sequence[Mapping[str, Any]]) -> list[str]:  # noqa: ANN401
    pad = processor.tokenizer.pad_token_id or 0
    written = generate(model, _padded(given, pad, model.device, left=True), NEW_TOKENS)
    return [str(text).strip() for text in processor.tokenizer.batch_decode(written, skip_special_tokens=True)]
