"""Style of the plots: colours that colour-blind readers can distinguish, and letters that are readable on a phone.

Figures are drawn without pyplot, which has global state. For sharp pictures, a PNG file has twice the width and height
of the plot on the page. On a phone, the letters of a plot are about ten pixels high.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from shards.visuals.fonts import find_fonts, warn_of_missing

#: Colours that colour-blind readers can distinguish. The first three are from Okabe and Ito (2008).
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#AA4499"
INK, GREY, FAINT = "#222428", "#686a70", "#dcdcd6"
#: Width and height on the page in inches of 96 pixels: of an ordinary plot, and of a plot of one genre.
WIDE, SMALL = (4.8, 3.4), (2.4, 2.15)
DENSITY = 192
#: Largest SVG on a page, in characters. The page shows a PNG instead of a larger SVG.
MAX_INLINE = 100_000
#: Families of fonts for the names in the plots, see `fonts_for`.
FAMILIES: ContextVar[tuple[str, ...]] = ContextVar("FAMILIES", default=("DejaVu Sans",))

_STYLE: Any = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10.5,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "text.color": INK,
    "svg.fonttype": "none",  # letters stay letters, so a browser can find and select them
    "svg.hashsalt": "posters",  # the same ids on every run
    "text.parse_math": False,  # show a name such as $x_1$ unchanged
    "lines.linewidth": 1.9,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "figure.constrained_layout.use": True,
}

_P = ParamSpec("_P")


@dataclass(frozen=True)
class Plot:
    """A finished plot."""

    name: str
    """Name of the file without its ending."""
    png: bytes
    svg: str
    alt: str
    """Description of the plot in words, for readers who cannot see the plot."""
    width: int
    """Width on the page in CSS pixels."""

    @property
    def inline(self) -> str:
        """The SVG element for a page, or an empty string if the SVG is too large for a page."""
        if len(self.svg) > MAX_INLINE:
            return ""
        element = self.svg[self.svg.index("<svg") :]
        element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
        element = re.sub(r' xmlns(:xlink)?="[^"]*"', "", element)
        element = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", element, count=1)  # the page sets the size
        # An id must be unique on the page. Names of genres stay as they are, because they are not in tags.
        ids = re.compile(r'( id="|url\(#|xlink:href="#)')
        return re.sub(r"<[^>]*>", lambda tag: ids.sub(rf"\1{self.name}-", tag[0]), element)


def styled(draw: Callable[_P, Plot]) -> Callable[_P, Plot]:
    """Return a function that draws and renders a plot in the style of this file."""

    @wraps(draw)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> Plot:
        with mpl.rc_context(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # such a letter is drawn as a box
            mpl.rcdefaults()  # ignore the matplotlibrc of the user
            mpl.rcParams.update(_STYLE | {"font.family": list(FAMILIES.get())})
            return draw(*args, **kwargs)

    return wrapper


@contextmanager
def fonts_for(names: Sequence[str], what: str) -> Iterator[None]:
    """During ``with``, draw plots with fonts that have the characters of ``names``.

    Log a warning before the plots are drawn if this machine has no such fonts. ``what``: the plots, for the warning.
    """
    fonts = find_fonts(names)
    warn_of_missing(fonts, what)
    token = FAMILIES.set(fonts.families)
    try:
        yield
    finally:
        FAMILIES.reset(token)


def new_figure(size: tuple[float, float] = WIDE, **subplots: Any) -> tuple[Figure, Any]:
    """Return a figure and its axes. ``subplots`` are the arguments of `Figure.subplots`."""
    figure = Figure(figsize=size, dpi=DENSITY)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**subplots)


def finish(figure: Figure, name: str, alt: str) -> Plot:
    """Render a figure to a Plot. The bytes are the same on every run."""
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format="png", dpi=DENSITY, metadata={"Software": None})
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return Plot(name, png.getvalue(), svg.getvalue(), alt, round(figure.get_figwidth() * 96))


def unit_axis(axes: Axes, which: str = "y") -> None:
    """Show the range from 0 to 1 on an axis, with a small margin at both ends."""
    axes.set(**{f"{which}lim": (-0.02, 1.02)})
    set_ticks = axes.set_xticks if which == "x" else axes.set_yticks
    set_ticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])


def label_points(axes: Axes, xs: Sequence[float], ys: Sequence[float], labels: Sequence[str]) -> None:
    """Write a label beside each point, without overlap with other labels or points.

    A label is nearer to its own point than to any other point. A label is left out if there is no free place near its
    point. Points are labelled in the given order, so pass the important points first.
    """
    figure: Any = axes.figure
    figure.draw_without_rendering()  # text can be measured only after the layout is computed
    points: Any = axes.transData.transform(list(zip(xs, ys, strict=True))) if len(xs) else []
    dot = 5 * DENSITY / 96
    taken = [Bbox.from_bounds(x - dot / 2, y - dot / 2, dot, dot) for x, y in points]
    inside = axes.get_window_extent()
    renderer = figure.canvas.get_renderer()
    offsets = [
        (x * far, y * far, align)
        for far in (1.0, 1.9, 2.8)
        for x, y, align in ((6, 0, "left"), (-6, 0, "right"), (0, 8, "center"), (0, -8, "center"),
                            (5, 6, "left"), (5, -6, "left"), (-5, 6, "right"), (-5, -6, "right"))
    ]  # fmt: skip
    for own, (x, y, label) in enumerate(zip(xs, ys, labels, strict=True)):
        for right, up, align in offsets:
            note = axes.annotate(
                label, (x, y), (right, up), textcoords="offset points", ha=align, va="center", fontsize=9.5,
                color=GREY,
            )  # fmt: skip
            box = note.get_window_extent(renderer)
            nearest = np.clip(points, (box.x0, box.y0), (box.x1, box.y1))
            away = np.hypot(*(points - nearest).T)
            free = not any(box.overlaps(other) for other in taken) and away[own] <= away.min() + 0.5
            if free and inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1:
                taken.append(box)
                break
            note.remove()
