"""Finds the token that ends each answer of a rendered conversation, so that it is trained with the answer."""

from typing import TypeAlias

Spans: TypeAlias = list[tuple[int, int]]
"""Half-open character ranges of a text, ascending."""


def with_ends(
    text: str, spans: Spans, answers: list[str], asked: str, special: tuple[str, ...], eos: str | None
) -> tuple[str, Spans]:
    """Train each answer with the token that ends its turn, and with nothing after it.

    OneVision's template writes the token outside its marks. LLaVA-1.5's writes a space alone; the model was trained
    with an EOS in its place, which is put there. GPT-OSS's writes another token after the last answer than after
    earlier ones.

    Args:
        text: the conversation.
        spans: its answers.
        answers: what they say, without white space at their ends.
        asked: the conversation up to its first question, if it has several.
        special: the special tokens, the longest first.
        eos: the tokenizer's.

    Returns:
        The text and the spans, with the ends.
    """
    last = _end_of_last(text, spans, answers[-1], special) if answers[-1] else ""
    ends = tuple(filter(None, (eos, last)))
    # Of an earlier answer: a token that ends a question, too, or does not begin one
    others = tuple(one for one in special if asked and (asked.rstrip().endswith(one) or one not in asked))
    said = tuple(filter(None, answers))
    written, found, done = "", [], 0
    for start, end in spans:
        trained = text[start:end].rstrip()
        stop = start + len(trained)
        after = _skip(text, stop)
        following = next((one for one in (*ends, *others) if text.startswith(one, after)), "")
        added = ""
        if not trained.endswith(ends) and (trained.endswith(said) or not trained.endswith(others)):
            if following:
                stop = after + len(following)
            elif eos and trained.endswith(said):
                added = eos
            else:
                stop = end if trained else start  # nothing is trained of an empty answer
        written += text[done:stop] + added
        if stop > start:
            found.append((len(written) - len(added) - (stop - start), len(written)))
        done = _skip(text, stop, " ") if added else stop
    return written + text[done:], found


def _skip(text: str, start: int, which: str | None = None) -> int:
    """Return where a text goes on after the white space, or the characters `which`, at `start`."""
    return len(text) - len(text[start:].lstrip(which))


def _end_of_last(text: str, spans: Spans, answer: str, special: tuple[str, ...]) -> str:
    """Return the special token that ends the last answer, in its span or after it, or an empty text.

    Only there it is certain that a special token ends the answer; elsewhere it may begin the next turn.
    """
    if not spans:
        return ""
    start, end = spans[-1]
    after = [text[start:].rpartition(answer)[2].lstrip(), text[end:].lstrip()]
    found = [next((one for one in special if rest.startswith(one)), "") for rest in after]
    trained = text[start:end].rstrip()  # of an answer that the template changes
    return found[0] or next((one for one in special if trained.endswith(one)), "") or found[1]
