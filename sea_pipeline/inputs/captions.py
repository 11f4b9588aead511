"""Captions as words: what a LLaVA record says of its image, and which entries of a word list that names.

The rules are few and for English; other languages' function words count as content.

- A word is a run of letters, with hyphens or an apostrophe inside, in lower case and Unicode form NFC; `'s` is cut off.
- A content word is a word of two letters or more that is not in `FUNCTION_WORDS` and no contraction (`don't`).
- A phrase is two or three words that stand side by side, nothing but space between them, the first and the last of them
  content words: `glass of wine`.
- A plural in -s, -es, -ies or -men stands for its singular where the list has only that: `dogs` names `dog`, and
  `glasses` names `glasses` where the list has both.
"""

import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

LONGEST_PHRASE = 3
"""Words of a phrase at most."""

_FUNCTION_WORDS = """
articles and quantities
    a an the one two three four five six seven eight nine ten first second third another other others each every either
    neither both all any some none no not yes few many much more most less least several such same own only
pronouns
    i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers
    herself it its itself they them their theirs themselves this that these those who whom whose which what whoever
    whatever something anything nothing everything someone anyone everyone nobody somebody anybody everybody there
prepositions
    of in on at by for from to into onto with within without about above across after against along among amid around
    as before behind below beneath beside besides between beyond despite down during except inside like near off out
    outside over past per since through throughout till toward towards under underneath until up upon via versus
conjunctions and their kind of adverbs
    and or but nor so yet if then than because although though while whereas when where why how whether unless once
    also too very just even still again already always never often sometimes here now ever quite rather almost
    perhaps maybe however thus therefore together away back else instead well
auxiliaries
    am is are was were be been being do does did doing done has have had having can could may might must shall should
    will would ought cannot let lets get gets got getting
"""
FUNCTION_WORDS = frozenset(
    word for line in _FUNCTION_WORDS.splitlines() if line.startswith(" ") for word in line.split()
)
"""What is never a content word."""

_TOKEN = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")  # noqa: RUF001 - both apostrophes are written


def gpt_turns(row: Mapping[str, Any]) -> list[str]:
    """What a LLaVA record says of its image: the texts of its gpt turns, in their order; other turns are ignored."""
    turns = row.get("conversations")
    return [
        turn["value"]
        for turn in (turns if isinstance(turns, list) else [])
        if isinstance(turn, dict) and turn.get("from") in ("gpt", "assistant") and isinstance(turn.get("value"), str)
    ]


def word_runs(caption: str) -> list[list[str]]:
    """The words of a caption in their order, a new list wherever something else than space stands between two."""
    runs: list[list[str]] = [[]]
    for token in _TOKEN.findall(unicodedata.normalize("NFC", caption.lower())):
        if (word := _word(token)) is not None:
            runs[-1].append(word)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def content_spans(caption: str) -> list[tuple[int, int]]:
    """Gives where the content words of a caption stand: half-open ranges of its characters, ascending."""
    found = ((match.span(), _word(match[0].lower())) for match in _TOKEN.finditer(caption))
    return [span for span, word in found if word is not None and is_content(word)]


def _word(token: str) -> str | None:
    """What a run of characters in lower case is as a word, None where it is none."""
    word = token.replace("’", "'").removesuffix("'s")  # noqa: RUF001
    return word if word.replace("-", "").replace("'", "").isalpha() else None


def is_content(word: str) -> bool:
    """Whether a word of `word_runs` is a content word."""
    return len(word) > 1 and "'" not in word and word not in FUNCTION_WORDS


def is_entry(words: Sequence[str]) -> bool:
    """Whether words that stand side by side are a content word or a phrase, by the rules above."""
    return is_content(words[0]) and is_content(words[-1])


def content_words(caption: str) -> list[str]:
    """The content words of a caption, repeated as they are there."""
    return [word for run in word_runs(caption) for word in run if is_content(word)]


def phrases(caption: str) -> list[str]:
    """The phrases of a caption, two words before three, repeated as they are there."""
    runs = word_runs(caption)
    return [
        " ".join(words)
        for length in range(2, LONGEST_PHRASE + 1)
        for run in runs
        for words in windows(run, length)
        if is_entry(words)
    ]


def windows(run: Sequence[str], length: int) -> Iterator[Sequence[str]]:
    """Every `length` words of a run that stand side by side."""
    return (run[start : start + length] for start in range(len(run) - length + 1))


def in_list(entry: str, words: Collection[str]) -> str | None:
    """The word or phrase as `words` has it: itself, else its singular, else None."""
    return entry if entry in words else singular(entry, words)


def singular(entry: str, words: Collection[str]) -> str | None:
    """The singular of a word, or of a phrase's last word, that is among `words`; None where none is."""
    before, space, last = entry.rpartition(" ")
    return next((single for form in _singulars(last) if (single := before + space + form) in words), None)


def _singulars(word: str) -> Iterator[str]:
    if word.endswith("men"):
        yield word[:-2] + "an"
    if word.endswith("s") and not word.endswith("ss"):
        yield word[:-1]
        if word.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
            yield word[:-2]
        if word.endswith("ies"):
            yield word[:-3] + "y"
