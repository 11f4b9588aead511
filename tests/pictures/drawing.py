"""Shapes and words as SVG, in colours for light and for dark pages."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple


class Palette(NamedTuple):
    """Colours by what they are for; the paper is transparent."""

    ink: str
    soft: str
    line: str
    fill: str
    accent: str
    warm: str
    green: str


PALETTES = {
    "light": Palette("#1a1c1f", "#5f6671", "#b4bcc8", "#f3f5f8", "#3949ab", "#b35c00", "#2e7d32"),
    "dark": Palette("#e7e9ee", "#a3abb8", "#566070", "#242932", "#9fa8da", "#ffb74d", "#81c784"),
}


class Drawing:
    """A picture that grows shape by shape; lengths are pixels."""

    def __init__(self, width: int, height: int, title: str, palette: Palette) -> None:
        self.palette = palette
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" font-family="system-ui, sans-serif"><title>{escape(title)}</title>',
            *(
                f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
                f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{getattr(palette, name)}"/></marker>'
                for name in ("soft", "accent", "warm", "green")
            ),
        ]

    def text(
        self,
        x: float,
        y: float,
        said: str,
        *,
        size: int = 13,
        color: str = "ink",
        anchor: str = "start",
        bold: bool = False,
    ) -> None:
        """Words, the left end (or middle) of their base line at x, y."""
        weight = ' font-weight="600"' if bold else ""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{self._color(color)}" text-anchor="{anchor}"{weight}>'
            f"{escape(said)}</text>"
        )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        line: str = "line",
        fill: str = "none",
        thick: float = 1.2,
        dashed: bool = False,
        round_: float = 6,
    ) -> None:
        """A rectangle."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{round_:g}" '
            f'fill="{self._color(fill)}" stroke="{self._color(line)}" stroke-width="{thick:g}"{dash}/>'
        )

    def arrow(self, points: Sequence[tuple[float, float]], *, color: str = "soft", thick: float = 1.5) -> None:
        """A line through the points, with a head at the last."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{self._color(color)}" stroke-width="{thick:g}" '
            f'marker-end="url(#{color})"/>'
        )

    def line(self, points: Sequence[tuple[float, float]], *, color: str = "ink", thick: float = 2) -> None:
        """A line through the points."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{self._color(color)}" stroke-width="{thick:g}"/>'
        )

    def dot(self, x: float, y: float, radius: float = 4, color: str = "ink") -> None:
        """A filled circle."""
        self._parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{self._color(color)}"/>')

    def image(self, x: float, y: float, size: float, uri: str) -> None:
        """A square picture."""
        self._parts.append(f'<image x="{x:g}" y="{y:g}" width="{size:g}" height="{size:g}" href="{uri}"/>')

    def save(self, file: Path) -> Path:
        """Writes the file."""
        file.write_text("".join([*self._parts, "</svg>\n"]), "utf-8")
        return file

    def _color(self, name: str) -> str:
        return str(getattr(self.palette, name)) if name in Palette._fields else name
