"""`python -m tests.bench.families`: of each family that `attach` knows, what its tests hold, as one table.

Tiny random weights, the families' own processors and real labels of two pictures, one wide and one tall: their grids;
L_a; how far it is from a float64 twin that runs the family's own code; the length of its gradient in the projector,
and how far that is from the twin's; how many planted cells are hit.
"""

import itertools
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from tests.trainer.attach.families import MAKERS
from tests.trainer.attach.planted import SHAPES, missed_cells
from tests.trainer.attach.twins import sea_twin, twin_of
from tests.trainer.attach.worlds import NAMES, Pictures, draw_pictures
from trainer.attach import FAMILIES, Attached, attach

SEA: dict[str, Any] = {"sea": {"window": 1, "logit_scale_init": 1.0}}


class Row(NamedTuple):
    """A line of the table."""

    name: str
    grids: list[str]
    """Of each picture, the grids of its tiles."""
    loss: float
    loss_off: float
    """|L_a - twin's| as a share of the twin's."""
    gradient: float
    """Of the projector, its length."""
    gradient_off: float
    """Of the projector, the length of the difference as a share of the twin's."""
    hits: int
    cells: int


def row_of(name: str, pictures: Pictures, root: Path) -> Row:
    """Measures a family; `root` is a folder for its planted pictures."""
    made = MAKERS[name]()
    made.model.train()
    batch = made.batch(pictures.batch(NAMES))
    twin = twin_of(made, batch)
    one = attach(made.model, made.processor, labels=pictures.open(), **SEA)
    drawn = _noted(one)
    made.model(**batch)
    flat = [each for some in NAMES for each in some]
    grids = [_said([tile.grid for tile in laid.tiles]) for laid in one.laid(one.kept(), flat)]
    loss = one.loss(NAMES)
    loss.backward()
    wanted = sea_twin(one, twin.visual, *drawn)
    theirs = twin.gradient(wanted)
    part = f".{FAMILIES[name].projector}."
    ours = {key: each.grad for key, each in made.model.named_parameters() if part in f".{key}"}
    pairs = [(ours[key].double(), each) for key, each in theirs.items() if part in f".{key}"]  # type: ignore[union-attr]
    length = float(torch.cat([each.flatten() for _, each in pairs]).norm())
    off = float(torch.cat([(found - each).flatten() for found, each in pairs]).norm())
    value, exact = float(loss.detach()), float(wanted.detach())
    one.detach()
    made.model.eval()
    missed, cells = missed_cells(made, SHAPES, root)
    return Row(name, grids, value, abs(value / exact - 1), length, off / length, cells - len(missed), cells)


def _noted(one: Attached) -> list[torch.Tensor]:
    """What will enter L_a: rows of V, and words."""
    entered: list[torch.Tensor] = []
    assert one.words is not None
    forward = one.words.forward

    def noted(visual: torch.Tensor, patches: torch.Tensor, words: torch.Tensor, *others: Any) -> Any:
        entered.extend((patches, words))
        return forward(visual, patches, words, *others)

    one.words.forward = noted  # type: ignore[method-assign]
    return entered


def _said(grids: list[tuple[int, int]]) -> str:
    runs = [(grid, len(list(some))) for grid, some in itertools.groupby(grids)]
    return " + ".join((f"{count} of " if count > 1 else "") + f"{rows}x{columns}" for (rows, columns), count in runs)


def table_of(rows: list[Row], pictures: Pictures) -> Table:
    """The rows as a table."""
    names = [f"{name} {'x'.join(map(str, pictures.image(name).size))}" for name in (NAMES[0][0], NAMES[1][0])]
    table = Table(
        "family", *names, "L_a", "off twin", "projector's gradient", "off twin", "planted cells hit", box=None
    )
    for row in rows:
        figures = (f"{row.loss:.4f}", f"{row.loss_off:.0e}", f"{row.gradient:.3g}", f"{row.gradient_off:.0e}")
        table.add_row(row.name, *row.grids, *figures, f"{row.hits} of {row.cells}")
    return table


def main() -> None:
    """Measures all families, and prints the table."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        os.environ["SEA_PIPELINE_CACHE"] = str(root / "cache")
        pictures = draw_pictures(root / "pictures")
        rows = [row_of(name, pictures, root / name) for name in MAKERS]
        Console(width=200).print(table_of(rows, pictures))


if __name__ == "__main__":
    main()
