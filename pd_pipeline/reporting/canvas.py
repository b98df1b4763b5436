"""The one style of all plots, and how a figure becomes SVG for the page or PNG for others.

Colours of text and grid are stand-ins that the page replaces by its own, so that plots follow its light or dark
scheme. Method colours begin with those of Okabe and Ito, which stay apart for colour-blind readers; every method has a
marker too.
"""

import html
import io
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#1b1f24", "#5b6471", "#d9dde3", "#fefeff"
CSS_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)", PAPER: "var(--paper)"}
WIDTH = 5.0  # inches, 360 points: about a phone's width, so that text of 9.5 points stays readable there

PALETTE = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00", "#8C8C8C", "#56B4E9", "#CC79A7", "#A6761D"),
    *("#7570B3", "#66A61E", "#1B2A49", "#B2182B", "#80B1D3", "#F4A6C0", "#4D7326", "#C7B42C"),
)
MARKERS = ("o", "s", "^", "D", "X", "P", "v", "<", ">", "p", "h", "*", "d", "8")
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#8C8C8C"
QUALITY_COLORS = {"expert": BLUE, "medium": ORANGE, "random": GREY}

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
}

Draw = TypeVar("Draw", bound=Callable[..., Any])


def styled(draw: Draw) -> Draw:
    """Run a drawing function under the style, leaving matplotlib's settings as they were."""

    def inner(*args: Any, **kwargs: Any) -> Any:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    inner.__doc__, inner.__name__ = draw.__doc__, draw.__name__
    return inner  # type: ignore[return-value]


def new_figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure as wide as all others, with its axes in reading order."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


Styles = Mapping[str, tuple[str, str]]
"""Method -> (colour, marker)."""


def method_styles(methods: Iterable[str]) -> Styles:
    """Colours and markers by the order of the methods, no two alike: beyond the palette, its colours get paler."""
    found = {}
    for i, method in enumerate(dict.fromkeys(methods)):
        turn, place = divmod(i, len(PALETTE))
        found[method] = _paler(PALETTE[place], 1 - 0.6**turn), MARKERS[i % len(MARKERS)]
    return found


def _paler(color: str, share: float) -> str:
    """A colour mixed with white."""
    parts = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(part + share * (255 - part)):02x}" for part in parts)


def legend_below(figure: Figure, axes: Axes) -> None:
    """One legend under the figure, from the artists of `axes`, in as many columns as its words leave room for."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = 3 if max(map(len, labels)) <= 17 else 2
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)


@styled
def png(figure: Figure, dpi: int = 160) -> bytes:
    """The figure as PNG on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


@styled
def svg(figure: Figure, title: str) -> str:
    """The figure as an SVG element for the page: its text is text, its colours follow the page."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box, "matplotlib writes a viewBox"
    unique = f"f{zlib.crc32(title.encode()):08x}"  # ids must not meet those of other figures on the page
    body = re.sub(r'\bid="([^"]+)"', rf'id="{unique}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{unique}-\1)", body)
    body = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{unique}-\1"', body)
    for color, variable in CSS_VARIABLES.items():
        body = body.replace(color, variable)
    return f'<svg {box.group()} role="img" aria-label="{html.escape(title)}">{body}'
