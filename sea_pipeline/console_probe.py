"""What a terminal shows of probing."""

from itertools import islice

from rich.table import Table

from sea_pipeline import console
from sea_pipeline.lift import Findings, Probed

_MOST_MISSING = 10


def probe_tables(findings: Findings) -> None:
    """What was probed, the figures of every encoder, path and sign, and which sign is better."""
    missing = ", ".join(islice(findings.missing, _MOST_MISSING))
    more = ", …" if len(findings.missing) > _MOST_MISSING else ""
    unread = findings.images - min(probed.images for probed in findings.probed)
    console.print_table(
        {
            "images": f"{findings.images:,} with captions"
            + (f", {unread:,} of which cannot be used" if unread else ""),
            "word list": f"{findings.wordlist}, {findings.listed:,} words; n = {findings.top_n}",
            "captions": f"{findings.spoken:,} content words, {len(findings.missing):,} of them not in the list"
            + (f" ({missing}{more})" if missing else ""),
        }
    )
    console.output.print()
    console.output.print(_figures(findings))
    console.output.print()
    for spec, sign in findings.verdicts().items():
        verdict = f"sign {_mark(sign)} is better" if sign else "no sign wins: the intervals meet"
        console.output.print(f"{spec}: {verdict}")


def _figures(findings: Findings) -> Table:
    table = console.plain_table()
    table.add_column("encoder", overflow="fold")
    table.add_column("sign")
    for column in ("hit", "chance", "lift", "95 % interval", "ratio", "s < 0", "list used"):
        table.add_column(column, justify="right")
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


def _numbers(probed: Probed) -> tuple[str, ...]:
    lift = probed.lift
    return (
        f"{lift.hit:.1%}",
        f"{lift.chance:.1%}",
        _change(lift.lift),
        f"{_change(lift.low)} to {_change(lift.high)}",
        f"{lift.ratio:.2f}",
        f"{probed.dropped:.1%}",
        f"{probed.used:.1%}",
    )


def _change(share: float) -> str:
    return f"{round(share, 3) + 0.0:+.1%}"  # + 0.0: no minus before a zero


def _mark(sign: int) -> str:
    return "+" if sign > 0 else "−"  # noqa: RUF001 - a minus as wide as the plus
