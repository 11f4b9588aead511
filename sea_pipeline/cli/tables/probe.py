"""Print the results of `probe` in a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Column, Table

from sea_pipeline.cli import terminal
from sea_pipeline.labels.caption_lift import Coverage, ProbeFindings, SignFigures

_MOST_WORDS = 10


def probe_tables(findings: ProbeFindings) -> None:
    """Print what was probed, the figures of each encoder, path and sign, and the better signs."""
    held = findings.coverage
    unread = findings.images - min(probed.images for probed in findings.probed)
    terminal.print_table(
        {
            "images": f"{findings.images:,} with captions"
            + (f", {unread:,} of which cannot be used" if unread else ""),
            "word list": f"{findings.wordlist}, {findings.listed:,} words; n = {findings.top_n}",
            "content words": f"{held.words.total:,} in the captions, {held.occurrences.total:,} with repetitions",
            "in the list as they stand": _share(held, "as_they_stand"),
            "only in another form": _share(held, "other_form") + _some(held.inflected),
            "not in the list": _share(held, "absent") + _some(held.absent),
        }
    )
    terminal.output.print()
    terminal.output.print(_figures(findings))
    terminal.output.print()
    fixed = {(probed.spec, probed.sign) for probed in findings.probed if not probed.selectable}
    for spec, sign in findings.verdicts().items():
        verdict = f"sign {_mark(sign)} is better" if sign else "no sign wins: the intervals meet"
        other = ", which this encoder cannot take; choose another encoder" if (spec, sign) in fixed else ""
        terminal.output.print(f"{spec}: {verdict}{other}")


def llm_tables(found: Mapping[str, Any]) -> None:
    """Print how near an LLM's layers, and V^, are to its words, and what follows for BASIC.

    found: the object of `--json`.
    """
    terminal.print_table(
        {
            "LLM": f"{found['llm']}, {found['vocabulary']:,} tokens in its vocabulary",
            "text": f"{found['text']}, {found['tokens']:,} tokens of it",
            "V^": f"of layers 1 to {found['k']}, weights {found['layer_weights']}",
        }
    )
    table = terminal.plain_table(
        "layer",
        numbers=("own token nearest", "cosine", "median rank", "L_das of words", "of random vectors"),
        title="\nhow near the states of text are to their tokens' own embeddings, by cosine",
    )
    for layer in found["layers"]:
        table.add_row(str(layer["layer"]), *_near(layer))
    for kind, refined in found["refined"].items():
        name = "V^" if kind == "none" else f"V^, lens {kind}" + ("" if kind == "ridge" else " (control)")
        das = refined["das"]
        table.add_row(name, *_near(refined), f"{das['words']:.2f}", f"{das['random']:.2f}", style="bold")
    terminal.output.print(table)
    for sentence in found["verdicts"]:
        terminal.output.print(f"\n{sentence}")


def _near(found: Mapping[str, Any]) -> tuple[str, ...]:
    return f"{found['own']:.1%}", f"{round(found['cosine'], 3) + 0.0:+.3f}", f"{found['rank']:,.0f}"


def _share(held: Coverage, kind: str) -> str:
    words, occurrences = (getattr(counts, kind) / counts.total for counts in (held.words, held.occurrences))
    return f"{words:.1%} of words, {occurrences:.1%} with repetitions"


def _some(words: Sequence[str]) -> str:
    more = ", …" if len(words) > _MOST_WORDS else ""
    return f" ({', '.join(words[:_MOST_WORDS])}{more})" if words else ""


def _figures(findings: ProbeFindings) -> Table:
    numbers = ("hit", "chance", "lift", "95 % interval", "ratio", "s < 0", "list used")
    table = terminal.plain_table(Column("encoder", overflow="fold"), "sign", numbers=numbers)
    table.add_column("most frequent labels", overflow="fold")
    best = findings.best
    for probed in findings.probed:
        figures = (*_numbers(probed), " ".join(word for word, _ in probed.frequent))
        table.add_row(
            f"{probed.spec}{'  ← best' if probed is best else ''}",
            _mark(probed.sign),
            *figures,
            style="bold" if probed is best else None,
        )
    return table


def _numbers(probed: SignFigures) -> tuple[str, ...]:
    gain = probed.lift
    return (
        f"{gain.hit:.1%}",
        f"{gain.chance:.1%}",
        _change(gain.gain),
        f"{_change(gain.low)} to {_change(gain.high)}",
        f"{gain.ratio:.2f}",
        f"{probed.dropped:.1%}",
        f"{probed.used:.1%}",
    )


def _change(share: float) -> str:
    return f"{round(share, 3) + 0.0:+.1%}"  # + 0.0: no minus before a zero


def _mark(sign: int) -> str:
    return "+" if sign > 0 else "−"  # noqa: RUF001 - a minus as wide as the plus
