"""Writes any amount of plain English: simple sentences, filled from short lists and the word list 2of12.

It lets one measure what an LLM does to text, whose own tokens are known. The words are those of any text (articles,
prepositions, common nouns) and, one or two in a sentence, words of the packaged list, none of them twice.
"""

import random
import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice

from sea_pipeline.inputs.wordlists import load_wordlist

_LISTS = {
    "who": "a man|a woman|the boy|the girl|my brother|her sister|an old farmer|a young doctor|the teacher|two children|"
    "some people|our neighbour|a group of men|the driver|three women|a player|the crowd|a little child|his father|"
    "a worker|the cook|a tourist|their mother|four friends|the dog|a small cat|a brown horse|a bird|the cows",
    "did": "found|carried|painted|sold|wanted|lost|described|watched|bought|cleaned|moved|remembered|drew|photographed|"
    "ignored|admired|counted|repaired|dropped|pushed|held|noticed|touched|followed|hid|missed|liked|measured",
    "how": "red|blue|green|yellow|white|black|brown|grey|large|small|old|new|broken|heavy|wooden|empty|round|bright|"
    "clean|dirty|wet|dry|cheap|beautiful|strange|tall|narrow|wide|soft|hard|dark|cold|hot|colourful|striped|thin",
    "what": "table|chair|ball|car|bicycle|boat|window|door|tree|flower|shirt|hat|jacket|bag|cup|plate|bottle|book|"
    "camera|phone|clock|lamp|bench|fence|sign|wall|bridge|train|bus|truck|kite|rope|ladder|basket|umbrella|guitar|"
    "cake|apple|pizza|sandwich|glass|knife|bed|picture|box|wheel|stone|stick|toy|shoe|glove|dress|helmet|board",
    "where": "in the park|on the beach|near the river|at the station|in a field|on a busy street|behind the house|"
    "in front of a building|under the bridge|by the lake|in the snow|on the grass|in the kitchen|at the market|"
    "across the road|in the water|on the roof|beside a mountain|in the forest|next to the church|in the city",
    "when": "yesterday|last year|in the morning|at night|every day|before lunch|after the rain|in winter|on Sunday|"
    "for an hour|two weeks ago|all summer|at noon|this evening|for the first time|in 1987",
    "doing": "sitting|standing|walking|running|playing|sleeping|working|waiting|jumping|riding|swimming|eating|talking|"
    "smiling|looking|climbing|reading|fishing|dancing|laughing",
}
_SENTENCES = (
    "{Who} {did} the {how} {what} {where}.",
    "We saw {who} with a {how} {what} and a {word}, {doing} {where}.",
    "{Who} and {who} are {doing} {where}, near a {what}.",
    "There is a {how} {what} {where}, and a {word} lies on it.",
    "When we came back {when}, {who} {did} a {what} and the {word}.",
    "The {what} is {how}, but the {word} beside it is not.",
    "Is the {word} more {how} than the {what}? Nobody knows.",
    "\"What is a {word}?\" asked {who}. \"It is like a {what}, only more {how}.\"",
    "They said that {who} {did} it {when}; I do not believe them.",
    "You can see {who} {doing} {where} with more than one {what}.",
    "Because of the {word}, {who} {did} neither the {what} nor the {how} one.",
    "In the dictionary, {word} comes before {word}.",
    "Some of the words on the {what} are {word}, {word} and {word}.",
    "If it is too {how}, take another {what} from {who}.",
    "A photo of a {how} {what} and a {how} {what} {where}.",
    "{Who}, {doing} {where}, {did} a {word} {when}.",
)  # fmt: skip


_BEFORE_VOWEL = re.compile(r"(?<=\b[Aa])(?= [aeiou])")


@cache
def plain_text(sentences: int, skip: int = 0) -> str:
    """Write sentences with a space between them.

    They are the same ones each time.

    Args:
        sentences: how many.
        skip: the number of sentences to leave out before them, so that two texts share no words of the word list.
    """
    return " ".join(islice(_sentences(), skip, skip + sentences))


def _sentences() -> Iterator[str]:
    draw = random.Random(0)
    words = iter(_shuffled_words())
    while True:
        yield _filled(_one(draw, _SENTENCES), draw, words)


def _filled(sentence: str, draw: random.Random, words: Iterator[str]) -> str:
    parts = sentence.split("{")
    filled = [parts[0]]
    for part in parts[1:]:
        name, _, rest = part.partition("}")
        chosen = next(words) if name == "word" else _one(draw, _LISTS[name.lower()].split("|"))
        filled += [chosen[0].upper() + chosen[1:] if name[0].isupper() else chosen, rest]
    return _BEFORE_VOWEL.sub("n", "".join(filled))


@cache
def _shuffled_words() -> tuple[str, ...]:
    draw = random.Random(1)
    return tuple(sorted(load_wordlist("2of12").words, key=lambda _: draw.random()))


def _one(draw: random.Random, among: Sequence[str]) -> str:
    return among[int(draw.random() * len(among))]  # of `random` only this method is promised to stay as it is
