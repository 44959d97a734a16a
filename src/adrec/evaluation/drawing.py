"""How plots are drawn: inline SVG whose colours are CSS variables, and whose text stays text.

So one page suits screens in light and dark and paper.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, GRID, REFERENCE, MODEL = "#a10000", "#a10001", "#a10002", "#a2000{}"
"""Stand-ins that matplotlib draws with and that become CSS variables."""


@dataclass(frozen=True)
class Style:
    """How a model is drawn, everywhere on the page."""

    colour: str
    """What matplotlib draws with."""
    dash: str
    """SVG dash array, empty for a solid line."""

    @property
    def css(self) -> str:
        """The colour on the page."""
        return css_colour(self.colour)

    @property
    def line(self) -> Any:
        """Matplotlib's line style."""
        return (0, [float(part) for part in self.dash.split()]) if self.dash else "-"


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A drawing with what its reader needs."""

    title: str
    svg: Markup
    label: str
    """What it shows, for who cannot see it."""
    note: str = ""
    legend: Sequence[tuple[str, str, Style]] = ()
    """Name, value and style of each line."""


def upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def square(side: float, below: float = 0.0) -> tuple[Figure, Axes]:
    """A figure whose main axes are exactly square, with `below` inches beneath for others."""
    box, bottom = 0.84 * side, 0.12 * side + below
    height = bottom + box + 0.02 * side
    figure = Figure(figsize=(side, height), facecolor="none")
    return figure, figure.add_axes((0.13, bottom / height, 0.84, box / height))


def name_axes(axes: Axes, x: str, y: str) -> None:
    """Name the axes and dress them in the page's colours."""
    axes.set_xlabel(x, color=INK, fontsize=8.5, parse_math=False)
    axes.set_ylabel(y, color=INK, fontsize=8.5, parse_math=False)
    axes.tick_params(colors=INK, labelsize=8, width=0.6, length=2.5)
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    axes.grid(color=GRID, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set(color=GRID, linewidth=0.8)


def svg_of(figure: Figure, name: str) -> Markup:
    """The figure as an SVG element that can stand in a page beside others.

    Its text is text in the page's font, its colours are CSS variables, its ids are its own.
    """
    buffer = io.StringIO()
    prefix = re.sub(r"[^a-z0-9]+", "-", name.lower())
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):  # savefig reads only rc
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"| (width|height)="[\d.]+pt"| version="1.1"', "", svg)
    svg = re.sub(r"#a[12]000\d", lambda found: css_colour(found[0]), svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", svg)
    svg = re.sub(r'\bid="|(?<=href=")#|(?<=url\()#', lambda found: found[0] + prefix + "-", svg)
    return Markup(svg.strip())


def css_colour(colour: str) -> str:
    names = {INK: "var(--ink)", GRID: "var(--grid)", REFERENCE: "var(--reference)"}
    return names.get(colour) or f"var(--model-{colour[-1]})"


def short_count(count: float) -> str:
    """1,500 as 1.5k."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"
