"""The pages that people read, and what tests ask of them: commands, Python, sentences.

Also a program that prints how long each page's sentences are: `python -m tests.support.prose`.
"""

import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.paths import ROOT

FOLDERS = ("docs", "jobs", "wordlists")
PAGES = [*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in sorted((ROOT / folder).rglob("*.md")))]


def name(page: Path) -> str:
    """Its path in the repository, for the names of tests."""
    return page.relative_to(ROOT).as_posix()


class Block(NamedTuple):
    """A block of code."""

    language: str
    text: str


def blocks(text: str) -> Iterator[Block]:
    """The fenced and the indented blocks of Markdown."""
    for language, code in re.findall(r"^```(\w*)[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(language, code)
    for code in re.findall(r"(?:(?<=\n\n)|\A)((?:    .*\n|\n(?=    ))+)", _without_fences(text)):
        yield Block("", code)


def commands(text: str) -> Iterator[str]:
    """Command lines of ours, without `sea-pipeline` and what a shell does with the output."""
    for block in blocks(text):
        for line in re.sub(r"\\\n\s*", "", block.text).splitlines():
            if found := re.match(r"\s*(?:sea-pipeline|torchrun .* -m sea_pipeline) +(?!-)(\w.*)", line):
                yield found[1].partition(" > ")[0].partition(" | ")[0]


def sentences(text: str) -> list[str]:
    """Sentences of the prose: no code, tables, headings, equations or HTML."""
    text = re.sub(r"\$\$.*?\$\$|<!--.*?-->|</?\w[^>]*>", "", _without_fences(text), flags=re.DOTALL)
    text = re.sub(r"!\[[^\]]*\][(\[][^)\]]*[)\]]", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text)
    found = []
    for paragraph in paragraphs:
        lines = [line for line in paragraph.splitlines() if not re.match(r"\||#|    |\[\w+\]: ", line)]
        prose = re.sub(r"^\s*(?:[-*]|\d+\.) ", "", " ".join(lines))
        found += [each for each in re.split(r"(?<=[.!?])[\"')*]*\s+(?=[\"'`(*$\w])(?![a-z0-9])", prose) if each.strip()]
    return found


def lengths(text: str) -> list[int]:
    """The words of each sentence."""
    counts = [sum(bool(re.search(r"\w", word)) for word in sentence.split()) for sentence in sentences(text)]
    return [count for count in counts if count]


def _without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def main() -> None:
    """Prints a line for each page: sentences, their median, the longest, the share of those over 30 words."""
    for page in PAGES:
        counts = lengths(page.read_text("utf-8"))
        over = sum(count > 30 for count in counts) / len(counts)
        print(
            f"{name(page):32} {len(counts):4} sentences, median {statistics.median(counts):4}, "
            f"longest {max(counts):3}, {over:.0%} over 30 words"
        )


if __name__ == "__main__":
    main()
