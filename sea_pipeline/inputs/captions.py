"""Split captions into words: what a LLaVA record says of its image, and which entries of a word list it names.

The rules are few and for English; other languages' function words count as content.

- A word is a run of letters with their marks (vowel signs, accents), with hyphens, apostrophes or joiners of a script
  inside (`jack-o'-lantern`), in lower case and Unicode form NFC; `'s` is cut off.
- A content word is a word of two letters or more that is not in `FUNCTION_WORDS` and no contraction (`don't`).
- An entry of a list is read by the same rules: `Bird's nest` is named where a caption says `bird's nest`.
- A phrase is two or three adjacent words with nothing but space between them, of which the first and the last are
  content words: `glass of wine`.
- A plural in -s, -es, -ies or -men stands for its singular if the list has only the singular: `dogs` names `dog`, and
  `glasses` names `glasses` if the list has both.
- Two words are forms of one word if one is an inflected form of the other, or both are of a third: `dogs` and `dog`,
  `ran` and `running`. Inflected forms are plurals, and a verb's -s, -ed and -ing, by spelling (`_regular_bases`) or as
  listed in `_IRREGULAR`. Comparatives are words of their own, because most words in -er are none (`player`).
"""

import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from sea_pipeline.inputs.other_formats import ANSWERERS

LONGEST_PHRASE = 3
"""The most words of a phrase."""

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
"""Words that are never content words."""

_IRREGULAR = """
nouns
    child children, foot feet, goose geese, louse lice, man men, mouse mice, ox oxen, person people, tooth teeth,
    woman women, calf calves, elf elves, half halves, hoof hooves, knife knives, leaf leaves, life lives, loaf loaves,
    scarf scarves, self selves, sheaf sheaves, shelf shelves, thief thieves, wife wives, wolf wolves, die dice,
    cactus cacti, fungus fungi
verbs
    arise arose arisen, awake awoke awoken, beat beaten, become became, begin began begun, bend bent, bite bit bitten,
    bleed bled, blow blew blown, break broke broken, breed bred, bring brought, build built, burn burnt, buy bought,
    catch caught, choose chose chosen, cling clung, come came, creep crept, deal dealt, dig dug, draw drew drawn,
    dream dreamt, drink drank drunk, drive drove driven, dwell dwelt, eat ate eaten, fall fell fallen, feed fed,
    feel felt, fight fought, find found, flee fled, fling flung, fly flew flown, forget forgot forgotten,
    forgive forgave forgiven, free freed, freeze froze frozen, give gave given, go went gone, grow grew grown,
    hang hung, hear heard, hide hid hidden, hold held, keep kept, kneel knelt, know knew known, lay laid, lead led,
    lean leant, leap leapt, learn learnt, lend lent, lie lay lain, light lit, lose lost, make made,
    mean meant, meet met, pay paid, ride rode ridden, ring rang rung, rise risen, run ran, say said, see saw seen,
    seek sought, sell sold, send sent, sew sewn, shake shook shaken, shine shone, shoot shot, show shown,
    shrink shrank shrunk, sing sang sung, sink sank sunk, sit sat, sleep slept, slide slid, sling slung, smell smelt,
    speak spoke spoken, spell spelt, spend spent, spill spilt, spin spun, spit spat, spoil spoilt,
    spring sprang sprung, stand stood, steal stole stolen, stick stuck, sting stung, strike struck stricken,
    string strung, strive strove striven, swear swore sworn, sweep swept, swell swollen, swim swam swum, swing swung,
    take took taken, teach taught, tear tore torn, tell told, think thought, throw threw thrown, tread trod trodden,
    understand understood, wake woke woken, wear wore worn, weave wove woven, weep wept, win won, write wrote written
"""
"""A word, then its irregular forms, without those that are more often another word, such as `ground` and `rose`."""
_SHORT = re.compile(r"[^aeiouy]*(?:qu)?[aeiouy][^aeiouywx]")
"""A syllable with one vowel letter before one consonant, which is doubled before -ed and -ing: `hop`, `run`, `quit`."""

JOINERS = "\u200c\u200d"
"""Zero width non-joiner and joiner, which some scripts need inside words; see `is_needed`."""
IGNORABLE = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0} | {
    *range(0x180B, 0x1810),
    *range(0xFE00, 0xFE10),
    *range(0xE0100, 0xE01F0),
}
"""Letters and marks that programs draw as nothing (Unicode's Default_Ignorable_Code_Point), and blank Braille."""
_POSSESSIVE = ("'s", "’s")  # noqa: RUF001
_CONTRACTIONS = ("n't", "'d", "'ll", "'m", "'re", "'ve")
"""Ends of contractions, for `not` and for auxiliaries such as `would`."""
_VIRAMA = 9
"""The combining class of the mark that removes a letter's vowel."""


def _is_mark(character: str) -> bool:
    return unicodedata.category(character) in ("Mn", "Mc")


def _token(text: str) -> re.Pattern[str]:
    """Return the pattern of a word, and of a character that is neither in a word nor space, for a text."""
    return _ASCII if text.isascii() else _any_script()


_ASCII = re.compile(r"\w+(?:(?:-'?|'-?)\w+)*|[^\w\s]")
"""The same as `_any_script` in ASCII, and seven times as fast."""


@cache
def _any_script() -> re.Pattern[str]:
    r"""Make the pattern of `_token` for any text.

    Python's \w has letters without their marks, so a word of Hindi or a vowelled one of Arabic would fall apart.
    """
    marks = "".join(filter(_is_mark, map(chr, range(0x300, 0x1F000))))
    letters = rf"\w[\w{marks}]*(?:[{JOINERS}]+[\w{marks}]+)*(?:(?<=[{marks}])[{JOINERS}])?"
    return re.compile(rf"{letters}(?:(?:-['’]?|['’]-?){letters})*|[^\w\s]")  # noqa: RUF001 - both apostrophes are written


def gpt_turns(row: Mapping[str, Any]) -> list[str]:
    """Return the texts of a LLaVA record's gpt turns in their order.

    Other turns are ignored.
    """
    turns = row.get("conversations")
    return [
        turn["value"]
        for turn in (turns if isinstance(turns, list) else [])
        if isinstance(turn, dict) and turn.get("from") in ANSWERERS and isinstance(turn.get("value"), str)
    ]


def word_runs(caption: str) -> list[list[str]]:
    """Split a caption into runs of words, with a new run if anything but space stands between two words."""
    runs: list[list[str]] = [[]]
    for token in _tokens(caption):
        if (word := _word(token)) is not None:
            runs[-1].append(word)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _tokens(caption: str) -> list[str]:
    text = unicodedata.normalize("NFC", caption.lower())
    return _token(text).findall(text)


def content_spans(caption: str) -> list[tuple[int, int]]:
    """Find the content words of a caption, as half-open ranges of its characters, ascending."""
    found = ((match.span(), _word(match[0].lower())) for match in _token(caption).finditer(caption))
    return [span for span, word in found if word is not None and is_content(word)]


def without_last_word(text: str) -> str:
    """Return a text without the word that it ends in, which may be a part of one if the text was cut there."""
    end = len(text.rstrip(f"-'’{JOINERS}"))  # noqa: RUF001 - what a word may go on after
    return next((text[: match.start()] for match in _token(text).finditer(text) if match.end() >= end), text)


def _word(token: str) -> str | None:
    """Normalise a run of lower-case characters to a word, or None if it is none."""
    word = token.replace("’", "'").removesuffix("'s")  # noqa: RUF001
    letters = word.replace("-", "").replace("'", "")
    if letters.isascii():
        return word if letters.isalpha() else None
    seen = "".join(
        character
        for position, character in enumerate(word)
        if ord(character) not in IGNORABLE and (character not in JOINERS or is_needed(word, position))
    )
    return seen if "".join(one for one in seen if one not in "-'" + JOINERS and not _is_mark(one)).isalpha() else None


def is_needed(word: str, position: int) -> bool:
    """Tell whether a joiner changes how its neighbours look.

    It does after a virama or between Arabic letters (RFC 5892), and before a virama (Unicode, 12.2).
    """
    before, behind = word[position - 1 : position], word[position + 1 : position + 2]
    if any(neighbour and unicodedata.combining(neighbour) == _VIRAMA for neighbour in (before, behind)):
        return True
    return all(letter and unicodedata.bidirectional(letter) == "AL" for letter in (before, behind))


def is_content(word: str) -> bool:
    """Tell whether a word of `word_runs` is a content word."""
    return len(word) > 1 and word not in FUNCTION_WORDS and not word.endswith(_CONTRACTIONS)


def is_entry(words: Sequence[str]) -> bool:
    """Tell whether adjacent words are a content word or a phrase, by the rules above."""
    return is_content(words[0]) and is_content(words[-1])


def content_words(caption: str) -> list[str]:
    """List the content words of a caption, with repetitions."""
    return [word for run in word_runs(caption) for word in run if is_content(word)]


def phrases(caption: str) -> list[str]:
    """List the phrases of a caption, those of two words before those of three, with repetitions."""
    runs = word_runs(caption)
    return [
        " ".join(words)
        for length in range(2, LONGEST_PHRASE + 1)
        for run in runs
        for words in windows(run, length)
        if is_entry(words)
    ]


def windows(run: Sequence[str], length: int) -> Iterator[Sequence[str]]:
    """Yield every `length` adjacent words of a run."""
    return (run[start : start + length] for start in range(len(run) - length + 1))


def as_said(entry: str) -> str:
    """Spell an entry of a word list as `word_runs` spells it in a caption.

    An entry with other characters than words and space has no such spelling, and is in lower case only.
    """
    words = list(map(_word, _tokens(entry.strip("'’"))))  # noqa: RUF001
    return entry.lower() if None in words else " ".join(filter(None, words))


def ids_as_said(words: Sequence[str]) -> dict[str, int]:
    """Give the position of an entry in a word list to each word or phrase of captions that names it.

    `bird` names the entry `bird` if the list has `bird's`, too, and `women` names `woman`, not `women's`. Of several
    alike, such as `Bird`, it names the first.
    """
    numbered = list(enumerate(words))[::-1]
    lower = {word.lower(): number for number, word in numbered}
    said = {
        name: number
        for number, word in numbered
        if not (singular(name := as_said(word), lower) and word.endswith(_POSSESSIVE))
    }
    return said | lower


def in_list(entry: str, words: Collection[str]) -> str | None:
    """Find a word or phrase in `words`, as it is or as its singular, or None if neither is there."""
    return entry if entry in words else singular(entry, words)


def singular(entry: str, words: Collection[str]) -> str | None:
    """Find the singular of a word, or of a phrase's last word, among `words`, or None if there is none."""
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


class Forms:
    """The words of a list in all their forms, by the rules above."""

    def __init__(self, words: Collection[str]) -> None:
        self._words = set(map(as_said, words))
        self._bases = {base for word in self._words for base in bases(word)}

    def has(self, word: str) -> bool:
        """Tell whether a word is in the list as it is written."""
        return word in self._words

    def has_other(self, word: str) -> bool:
        """Tell whether another form of a word is in the list."""
        return word in self._bases or any(base in self._words or base in self._bases for base in bases(word))


def _irregular_bases() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in _IRREGULAR.splitlines():
        for base, *forms in map(str.split, filter(str.strip, line.split(",") if line.startswith(" ") else [])):
            for form in forms:
                found.setdefault(form, []).append(base)
    return found


_BASES = _irregular_bases()


def bases(word: str) -> Iterator[str]:
    """Yield what a word may be an inflected form of, `stop` for `stopped`.

    Some of it may be no word.
    """
    yield from _BASES.get(word, ())
    yield from _singulars(word)
    yield from _regular_bases(word)


def _regular_bases(word: str) -> Iterator[str]:
    """Yield the verbs of which a word can be the regular -ed or -ing.

    They are the stem before the ending, the stem with -e, and the stem with its doubled consonant made single.
    """
    ending = next((ending for ending in ("ing", "ed") if word.endswith(ending)), None)
    stem = word.removesuffix(ending or "")
    last = stem.rpartition("-")[2]
    # A stem without a vowel is no verb (`bring`, `red`), and `feed` or `need` is no form of `fe` or `ne`.
    if (
        ending is None
        or not re.search("[aeiouy]", last)
        or (word.endswith("eed") and not re.search("[aeiouy].*e", last))
    ):
        return
    if not _SHORT.fullmatch(last):  # a short stem would have doubled its consonant: `hoped` is not of `hop`
        yield stem
    yield stem + "e"
    if len(stem) > 2 and stem[-1] == stem[-2] and stem[-1] not in "aeiouy":
        yield stem[:-1]
    if stem.endswith("ck"):
        yield stem[:-1]
    if ending == "ed" and stem.endswith("i"):
        yield stem[:-1] + "y"
    if ending == "ing" and stem.endswith("y"):
        yield stem[:-1] + "ie"
