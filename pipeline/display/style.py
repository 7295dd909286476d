"""Style of figures, reproducible SVG and PDF files, and the figure of images in every version.

That figure shows the versions side by side, one row for each image.

Files have plain colours on white, so that they fit papers and any viewer. The page replaces each
colour of `THEME` by a CSS variable, so that the same figure is readable in light and dark mode.
"""

import contextlib
import dataclasses
import io
import re
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import Locator, MultipleLocator, PercentFormatter
from numpy.typing import NDArray

from pipeline.display.table import shorten
from pipeline.errors import shown_bytes

INK = "#1b1f24"
SOFT = "#5a626e"
LINE = "#dcdad5"
PAGE = "#fefefe"
HEAT = "#0d5fbe"
ON_HEAT = "#fffffe"
MODELS = (
    "#0b62c4",
    "#c44a14",
    "#0b7f61",
    "#8540b3",
    "#94700a",
    "#b92a76",
    "#4a5a6c",
    "#06788d",
)
"""Colours of models, in order; `MARKERS` tell the models apart without colour."""
MARKERS = "osD^vPX*"

THEME = {
    INK: "ink",
    SOFT: "soft",
    LINE: "line",
    PAGE: "page",
    HEAT: "heat",
    ON_HEAT: "on-heat",
    **{colour: f"model-{number}" for number, colour in enumerate(MODELS)},
}
"""Name of each colour's CSS variable, without the leading dashes."""

WIDTH = 356
"""Width of most figures in units. On a phone's screen a unit is a pixel, so that no text there is
smaller than `TEXT` pixels. On wider screens a figure grows with its frame."""
POINT = 3.25 * 72 / WIDTH
"""Points in a unit: `WIDTH` is a column of a paper, 3.25 inches."""
WIDE = 5.5 * 72 / POINT
"""Width of figures that are as wide as the text of a paper, 5.5 inches."""
TEXT = 11
"""Smallest text size, in units."""
TITLE = 12 * POINT
"""Text size of titles, in points."""

_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
"""Characters that names of classes may have, but no XML file."""

_SETTINGS: dict[Any, Any] = {
    "backend": "svg",
    "svg.hashsalt": "in9",
    # Keep text as text, which is small, searchable, and takes the page's font.
    "svg.fonttype": "none",
    # Embed TrueType, because publishers refuse Matplotlib's default, Type 3.
    "pdf.fonttype": 42,
    # The name of a model may contain dollar signs, which must not start a formula.
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": TEXT * POINT,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.labelcolor": SOFT,
    "axes.labelsize": TEXT * POINT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": TITLE,
    "axes.titleweight": "bold",
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "legend.fontsize": TEXT * POINT,
    "legend.frameon": False,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.2,
    "xtick.major.size": 2.3,
    "xtick.color": LINE,
    "xtick.labelcolor": SOFT,
    "xtick.labelsize": TEXT * POINT,
    "ytick.color": LINE,
    "ytick.labelcolor": INK,
    "ytick.labelsize": TEXT * POINT,
}


def styled() -> contextlib.AbstractContextManager[None]:
    """Returns a context with Matplotlib's defaults and `_SETTINGS`, but no user's settings."""
    return matplotlib.rc_context({**matplotlib.rcParamsDefault, **_SETTINGS})


def new_figure(
    width: float, height: float, layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    """Makes an empty figure; sizes are in units. Without a layout, plots stay where they are."""
    size = (width * POINT / 72, height * POINT / 72)
    return Figure(figsize=size, dpi=72, layout=layout, facecolor=PAGE)


def percent_axis(axes: Axes, axis: Literal["x", "y"], locator: Locator | None = None) -> None:
    """Shows fractions as percent along an axis, with ticks at quarters if there is no locator."""
    scale = axes.xaxis if axis == "x" else axes.yaxis
    (axes.set_xlim if axis == "x" else axes.set_ylim)(0, 1)
    scale.set_major_locator(locator or MultipleLocator(0.25))
    scale.set_major_formatter(PercentFormatter(1.0, 0, "", False))
    axes.grid(axis=axis)
    axes.set_axisbelow(True)


def titled_axes(
    title: str,
    height: int,
    axis: Literal["x", "y"],
    locator: Locator | None = None,
    width: float = WIDTH,
) -> tuple[Figure, Axes]:
    """Makes a figure with one plot, whose fractions lie along an axis.

    The other arguments are those of `new_figure` and `percent_axis`.
    """
    figure = new_figure(width, height)
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.spines["left"].set_visible(axis == "y")
    percent_axis(axes, axis, locator)
    return figure, axes


_HALF_WIDTH = 20
"""Number of characters that half a figure's width holds in a legend."""


def legend_below(figure: Figure, axes: Axes) -> None:
    """Adds a legend of the axes' labels below the figure, in columns as wide as the longest."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if len(labels) > 2 and max(map(len, labels)) <= _HALF_WIDTH else 1
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, handlelength=1.6)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A figure as files without date or version, so the same figure has the same bytes."""

    svg: bytes
    figure: Figure

    def pdf(self) -> bytes:
        """Returns a PDF, made on demand, because embedding fonts takes longer than drawing."""
        metadata = dict.fromkeys(("CreationDate", "Creator", "Producer"))
        with styled():
            return _saved(self.figure, "pdf", metadata=metadata)


def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=kind, **options)
    return file.getvalue()


def drawn(figure: Figure) -> Drawn:
    """Saves a finished figure as SVG."""
    # The canvas chooses the renderer that measures texts.
    FigureCanvasSVG(figure)
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():
        # The file holds text as text, for which readers have their own fonts.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        if layout := figure.get_layout_engine():
            layout.execute(figure)
        # With a layout engine, Matplotlib would draw everything twice for each file.
        figure.set_layout_engine(None)
        svg = _saved(figure, "svg", metadata=metadata).decode()
    svg = _NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", svg)
    return Drawn(shown_bytes(svg), figure)


KINDS = ("pdf", "png", "jpg", "html")
"""File formats. PDF and HTML keep the pixels of the pictures; in the other formats, the figure has
300 pixels per inch."""

FIGURE_MARK = "in9 figure"
"""Text in the metadata of every figure, which tells it from foreign files."""
_WIDTH, _GAP, _HEADING = 396.0, 2.5, 12.0
"""Sizes in points (1/72 inch). The width is 5.5 inches, the width of the text in a paper."""
_PAGE = f"""<!doctype html>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="generator" content="{FIGURE_MARK}">
<title>{FIGURE_MARK}</title>
<style>body {{ background: white; margin: 1rem auto; max-width: 60rem }}
svg {{ height: auto; width: 100% }}</style>
"""


class Cell(NamedTuple):
    """A picture, with its name above it and lines of text below it."""

    head: str
    picture: NDArray[np.uint8]
    lines: Sequence[str]


def versions_figure(cells: Sequence[Cell], columns: int, models: Sequence[str], kind: str) -> bytes:
    """Draws pictures in rows, and the names of models below, as one of `KINDS`.

    Pictures of a row have the same size. The file has no date, so that the same content gives the
    same bytes.
    """
    side = (_WIDTH + _GAP) / columns - _GAP
    size = min(6.5, side / 11)
    note = textwrap.fill(
        f"answers of {', then '.join(models)}" if models else "", int(_WIDTH / size / 0.55)
    )
    step = _HEADING + side + _GAP + 1.3 * size * max(len(cell.lines) for cell in cells)
    below = 1.3 * size * len(note.splitlines())
    height = step * len(cells) / columns + below
    with styled():
        figure = Figure(figsize=(_WIDTH / 72, height / 72), dpi=300, facecolor="white")
        figure.text(0, 0, note, va="bottom", fontsize=size, color=SOFT)
        grid = figure.subplots(
            len(cells) // columns,
            columns,
            squeeze=False,
            gridspec_kw={
                "left": 0,
                "right": 1,
                "top": 1 - _HEADING / height,
                "bottom": (step - _HEADING - side + below) / height,
                "wspace": _GAP / side,
                "hspace": step / side - 1,
            },
        )
        for axes, (head, picture, lines) in zip(grid.flat, cells, strict=True):
            axes.set_axis_off()
            axes.imshow(picture, interpolation="lanczos" if kind in ("png", "jpg") else "none")
            axes.set_title(
                head, loc="center", pad=_GAP, fontsize=min(7.5, side / 6.5), fontweight="normal"
            )
            axes.text(
                *(0.5, -_GAP / side),
                "\n".join(shorten(line, int(side / size / 0.55)) for line in lines),
                transform=axes.transAxes,
                ha="center",
                va="top",
                fontsize=size,
            )
        options: dict[str, dict[str, Any]] = {
            "pdf": {"metadata": {"CreationDate": None, "Creator": FIGURE_MARK, "Producer": None}},
            "png": {"metadata": {"Software": FIGURE_MARK}},
            "jpg": {"pil_kwargs": {"quality": 85, "comment": shown_bytes(FIGURE_MARK)}},
        }
        if kind in options:
            return _saved(figure, kind, **options[kind])
        # In a page, the element stands without what a file of its own has before it.
        _, mark, element = drawn(figure).svg.partition(b"<svg")
    return shown_bytes(_PAGE) + mark + element
