"""Read files of questions about photos, without torch."""

import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.llava_json import relative_path, shown
from sea_pipeline.storage.json_files import unique_keys

_FORMS = (
    "a list of objects with `image`, `question` and `label` (yes or no) or `answers` (a list of texts), or one such "
    "object a line, or an object of sections, each an object of images with a list of such questions"
)
_EDGES = re.compile(r"^\W+|\W+$")


class Question(NamedTuple):
    """A question about a photo."""

    image: str
    text: str
    answers: tuple[str, ...]
    """People's answers; only `yes` or `no` for a yes/no question."""
    yes_no: bool
    group: str = ""
    """What the question is about. The accuracy of yes/no questions is a mean over groups."""


class Questions(NamedTuple):
    """The questions of a file."""

    asked: list[Question]
    left: dict[str, int]
    """Number of entries of another form, by section."""
    example: str = ""
    """The first of these entries, shortened."""


def read_questions(path: Path) -> Questions:
    """Read a file of questions.

    Args:
        path: a JSON file with a list of objects `{"image", "question", "label": "yes" | "no", "object"}` or `{"image",
            "question", "answers": [text, ...]}`, or with an object of sections, each `{image: [question, ...]}`; or one
            such object a line. POPE's `text` may stand for `question`, true and false for a label, and an answer may be
            a number or VQA v2's `{"answer": text}`.

    Raises:
        UserError: the file cannot be read, or has no questions.
    """
    content = _content(path)
    asked: list[Question] = []
    left: Counter[str] = Counter()
    example = ""
    for section, image, entry in _entries(content):
        question = _question(image, entry)
        if question is None:
            example = example or shown(entry)
            left[section] += 1
        else:
            asked.append(question)
    if not asked:
        raise UserError(f"{path}: expected {_FORMS}; found {shown(content)}")
    return Questions(asked, dict(left), example)


def left_out(path: Path, questions: Questions) -> str | None:
    """Say in a line which entries of a file are no questions, or return None if all are."""
    if not questions.left:
        return None
    count = sum(questions.left.values())
    sections = [f"{number:,} in {section!r}" for section, number in questions.left.items() if section]
    where = f" ({', '.join(sections)})" if sections else ""
    return (
        f"{path}: {count:,} of {count + len(questions.asked):,} entries are left out{where}, such as "
        f"{questions.example}; expected {_FORMS}"
    )


def check_photos(path: Path, questions: Iterable[Question], root: Path) -> None:
    """Refuse questions about photos that do not exist below a folder.

    Raises:
        UserError: counts these photos.
    """
    photos = sorted({question.image for question in questions})
    missing = [photo for photo in photos if not _exists(root, photo)]
    if missing:
        raise UserError(
            f"{path}: expected photos below {root}; {len(missing):,} of {len(photos):,} are not there, such as "
            f"{shown(missing[0])}; name the folder of the photos with --question-root"
        )


def _exists(root: Path, photo: str) -> bool:
    try:
        return (root / relative_path(photo, str(root))).is_file()
    except (ValueError, OSError):  # outside the root; a name that is too long
        return False


def _content(path: Path) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Parse a file as JSON, or as JSON by lines, which POPE's files are whatever they are called."""
    expected = f"{path}: expected questions as JSON"
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{expected}; it cannot be read: {reason}") from error
    try:
        content = json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        if len(lines) < 2 or not _is_object(lines[0][1]):
            raise UserError(f"{expected}; it cannot be read: {error}") from error
        return [_line(expected, number, line) for number, line in lines]
    # A file of a single line holds a question, and not sections.
    return [content] if isinstance(content, dict) and isinstance(_text(content), str) else content


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _line(expected: str, number: int, line: str) -> Any:  # noqa: ANN401 - whatever JSON holds
    try:
        return json.loads(line, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{expected}; line {number} cannot be read: {error}") from error


def _entries(content: Any) -> Iterator[tuple[str, Any, Any]]:  # noqa: ANN401 - whatever JSON holds
    if isinstance(content, list):
        yield from (("", entry.get("image") if isinstance(entry, dict) else None, entry) for entry in content)
    elif isinstance(content, dict):
        for section, images in content.items():
            if isinstance(images, dict):
                for image, entries in images.items():
                    listed = entries if isinstance(entries, list) else [entries]
                    yield from ((section, image, entry) for entry in listed)
            else:
                yield from ((section, None, entry) for entry in (images if isinstance(images, list) else [images]))


def _question(image: Any, entry: Any) -> Question | None:  # noqa: ANN401 - whatever JSON holds
    name = _name(image)
    if not isinstance(entry, dict) or name is None or not isinstance(text := _text(entry), str):
        return None
    if (label := _label(entry.get("label"))) is not None:
        return Question(name, text, (label,), True, str(entry.get("object", "")))
    given = entry.get("answers")
    answers = [_answer(one) for one in given] if isinstance(given, list) else []
    said = tuple(answer for answer in answers if answer is not None)
    return Question(name, text, said, False) if said and len(said) == len(answers) else None


def _name(image: Any) -> str | None:  # noqa: ANN401 - whatever JSON holds
    """Return the one name of a photo, for `a.jpg` and `./a.jpg` are one."""
    written = _written(image)
    return posixpath.normpath(written) if written else written


def _text(entry: dict[str, Any]) -> Any:  # noqa: ANN401 - whatever JSON holds
    return entry.get("question", entry.get("text"))


def _label(label: Any) -> str | None:  # noqa: ANN401 - whatever JSON holds
    if isinstance(label, bool):
        return "yes" if label else "no"
    said = _EDGES.sub("", label).lower() if isinstance(label, str) else ""
    return said if said in ("yes", "no") else None


def _answer(answer: Any) -> str | None:  # noqa: ANN401 - whatever JSON holds
    if isinstance(answer, bool):
        return "yes" if answer else "no"
    return _written(answer.get("answer") if isinstance(answer, dict) else answer)


def _written(value: Any) -> str | None:  # noqa: ANN401 - whatever JSON holds
    """Return a text, or a number as text, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
