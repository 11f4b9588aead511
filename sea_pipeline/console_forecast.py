"""What a terminal shows of a forecast."""

from typing import TYPE_CHECKING

from rich.filesize import decimal

from sea_pipeline import console

if TYPE_CHECKING:  # it brings torch
    from sea_pipeline.labels.forecast import Forecast


def forecast_tables(found: "Forecast") -> None:
    """What was measured, what all images would take, and hours by workers."""
    words = found.words_seconds
    embedded = f", {words:,.0f} s of them to embed words, which are kept now" if words > 1 else ""
    parts = ", ".join(f"{part} {1000 * spent:,.1f}" for part, spent in found.seconds_per_image.items())
    console.print_table(
        {
            "measured": f"{found.measured:,} images on {found.device}, {found.images_per_second:,.1f} images/s"
            + (f"; {found.bad:,} of them bad" if found.bad else ""),
            "ms per image": f"{parts} (decoding runs beside the others, summed over its threads)",
            "starting": f"{found.start_seconds:,.0f} s for each worker{embedded}",
            "memory": f"{decimal(found.memory_bytes)} for each worker",
            "planned": f"{console.counted(found.planned, 'image')} in {console.counted(found.shards, 'shard')}",
            "on disk": f"{decimal(round(found.bytes))}, {decimal(round(found.bytes_per_image))} per image",
        }
    )
    console.output.print()
    costs = any(share.cost is not None for share in found.shares)
    table = console.plain_table()
    for column in ("workers", "hours", *(["cost"] if costs else [])):
        table.add_column(column, justify="right")
    for share in found.shares:
        cost = [] if share.cost is None else [f"{share.cost:,.2f}"]
        table.add_row(f"{share.workers:,}", f"{share.hours:,.2f}", *cost)
    console.output.print(table)
