"""What a terminal shows of the contextual lens."""

from collections.abc import Mapping
from typing import Any

from rich.filesize import decimal

from sea_pipeline import console

_SHOWN = [
    (lens, kind, what) for lens in ("contextual", "word") for kind in ("", "_label") for what in ("share", "gain")
]


def lens_table(found: Mapping[str, Any]) -> None:
    """What the visual tokens of each layer say through the contextual lens, and through the nearest input embedding."""
    index, layers = found["index"], found["layers"]
    title = (
        "\nshare of visual tokens nearest to a word of their photo's captions, and gain over another photo's, by layer"
    )
    table = console.plain_table(title=title)
    table.add_column("layer", justify="right")
    names = [f"{lens}{kind}_{what}" for lens, kind, what in _SHOWN]
    shown = [name for name in names if name in layers[0]]
    for name in shown:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_column("matches", justify="right")
    table.add_column("most frequent", overflow="fold")
    for layer in layers:
        frequent = "  ".join(f"'{one['token']}' {one['share']:.0%}" for one in layer["frequent"])
        cells = [_share_with_error(name, layer) for name in shown]
        table.add_row(str(layer["layer"]), *cells, f"{layer['matched_layer']:g}", frequent)
    console.output.print(table)
    console.print_table(
        {
            "photos": f"{found['photos']:,}",
            "contextual": f"{index['tokens']:,} words in {index['texts']:,} sentences of {found['data']}, at the LLM's "
            f"layers {', '.join(map(str, index['layers']))}: {index['states']:,} states, {decimal(index['bytes'])}",
            "word": f"the input embeddings alone, {index['embeddings']:,} tokens",
            "matches": "median of the layers that the nearest states are of",
        }
    )


def _share_with_error(name: str, values: Mapping[str, float]) -> str:
    error = values.get(f"{name}_se")
    return f"{values[name]:.3f}" + ("" if error is None else f" ± {error:.3f}")
