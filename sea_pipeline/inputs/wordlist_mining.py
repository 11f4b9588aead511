"""Mine a word list from captions (SEA v2), their content words and frequent phrases, followed by a general list.

`captions.py` defines words and phrases. Counts are of occurrences in all gpt turns of records with an image. All counts
are exact, so the order of the records does not change the list.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.captions import (
    LONGEST_PHRASE,
    gpt_turns,
    ids_as_said,
    is_content,
    is_entry,
    singular,
    windows,
    word_runs,
)
from sea_pipeline.inputs.llava_json import readable_records

LEAST_SHARE = 1e-5
"""Occurrences per caption that an entry needs (6 in 558,000), so that misspellings do not fill the list."""
LEAST_PHRASE = 3
"""Occurrences that a phrase needs, however small the file is."""
LEAST_NPMI = 0.3
"""The association that a phrase needs; see `association`."""


def mine(path: Path, general: Sequence[str], most: int) -> tuple[str, ...]:
    """List the words and phrases of captions, most frequent first, then the words of a general list.

    A plural that the general list lacks counts as its singular, if that list or the captions have the singular. Entries
    of equal count are in alphabetical order. The file is read three times; memory grows with its distinct words.

    Args:
        path: LLaVA's `.json` or `.jsonl` with the captions.
        general: the words that follow, in their order, without those that are there already.
        most: the most entries; the rest is cut from the end.

    Raises:
        UserError: see `llava_json.records`; or no caption holds a content word.
    """
    counts, least = _counts(path)
    total = sum(counts[0].values())
    # The entries: frequent content words, and frequent phrases whose words belong together.
    words = {word: count for word, count in counts[0].items() if count >= least and is_content(word)}
    phrases = {
        phrase: count
        for longer in counts[1:]
        for phrase, count in longer.items()
        if is_entry(parts := phrase.split())
        and association(count, [counts[0][part] for part in parts], total) >= LEAST_NPMI
    }
    if not words:
        raise UserError(
            f"--wordlist mine:{path}: expected captions, gpt turns of records with an image; found no content word in "
            "any; give a file with captions"
        )
    # Captions are in lower case; an entry takes the general list's spelling, and a plural the name of its singular.
    spelled = {name: general[number] for name, number in ids_as_said(general).items()}
    known = spelled.keys() | words.keys() | phrases.keys()
    found: Counter[str] = Counter()
    for entry, count in (words | phrases).items():
        name = entry if entry in spelled else singular(entry, known) or entry
        found[spelled.get(name, name)] += count
    # The most frequent first, then in alphabetical order.
    mined = sorted(found, key=lambda entry: (-found[entry], entry))
    return tuple(dict.fromkeys([*mined, *general]))[:most]


def association(together: int, alone: Sequence[int], total: int) -> float:
    """Compute the normalised pointwise mutual information of adjacent words.

    It is ln(p / prod p_i) / (-(n - 1) ln p), for two words as Bouma (2009) defines it, and for n words divided by n -
    1. It is 0 if the words meet as often as by chance, and 1 if none of them ever occurs without the others.

    Args:
        together: how often they are adjacent in this order.
        alone: how often each of them occurs, n numbers.
        total: occurrences of all words.
    """
    p = together / total
    # ln(p / prod p_i)
    surprise = math.log(p) - sum(math.log(count / total) for count in alone)
    return surprise / (-(len(alone) - 1) * math.log(p))


def _counts(path: Path) -> tuple[list[Counter[str]], int]:
    """Count each run of one, two and three words, and return the counts and the least count of an entry.

    Rare longer runs are left out. A phrase is never more frequent than its parts, so only phrases of frequent parts are
    counted.
    """
    counts: list[Counter[str]] = []
    frequent: set[str] = set()
    for length in range(1, LONGEST_PHRASE + 1):
        counter: Counter[str] = Counter()
        captions = 0
        for caption in _captions(path):
            captions += 1
            for run in word_runs(caption):
                for words in windows(run, length):
                    if length == 1 or {" ".join(words[1:]), " ".join(words[:-1])} <= frequent:
                        counter[" ".join(words)] += 1
        least = max(1, math.ceil(LEAST_SHARE * captions))
        # Runs from which longer ones may be built.
        frequent = {words for words, count in counter.items() if count >= max(least, LEAST_PHRASE)}
        counts.append(counter if length == 1 else Counter({words: counter[words] for words in frequent}))
    return counts, least


def _captions(path: Path) -> Iterator[str]:
    for images, row in readable_records(path):
        if images:
            yield from gpt_turns(row)
