"""Heat maps of matrices that have one row and one column per genre."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.ticker import PercentFormatter

from toolkit.metrics.helpers import BoolArray, FloatArray
from toolkit.report.plots.common import BLUE, GREY, INK, ORANGE, Plot, finish, new_figure, styled

SHARES = LinearSegmentedColormap.from_list("shares", ["#ffffff", "#8fc1e0", BLUE, "#00334f"])
TIMES = LinearSegmentedColormap.from_list("times", [BLUE, "#ffffff", ORANGE])
#: Factor at the upper end of the colour scale. The lower end is the inverse of this factor.
MAX_FACTOR = 4.0


@styled
def cooccurrence_plot(shares: FloatArray, genres: Sequence[str]) -> Plot:
    """Plot the shares of `toolkit.report.cooccurrence.cooccurrence`, without the diagonal."""
    shown = shares.copy()
    np.fill_diagonal(shown, np.nan)
    figure, axes = new_figure(_size(genres))
    top = float(np.nanmax(shown)) if np.isfinite(shown).any() else 1.0
    image = axes.imshow(shown, cmap=SHARES, vmin=0.0, vmax=max(top, 0.01))
    _frame(axes, genres, "posters with this genre", "share that also has this genre")
    _write(axes, shown, lambda value: f"{100 * value:.0f}" if value >= 0.005 else "", shown > 0.55 * top)
    figure.colorbar(image, ax=axes, shrink=0.6, format=PercentFormatter(1.0, 0))
    alt = "Share of the posters of one genre that also have another genre, in percent. The table lists common pairs."
    return finish(figure, "together", alt)


@styled
def substitution_plot(times: FloatArray, genres: Sequence[str]) -> Plot:
    """Plot `toolkit.report.cooccurrence.Substitutions.times_usual` on a log scale around 1."""
    figure, axes = new_figure(_size(genres))
    with np.errstate(divide="ignore"):
        shown = np.clip(np.log2(times), -np.log2(MAX_FACTOR), np.log2(MAX_FACTOR))
    norm = TwoSlopeNorm(0.0, -np.log2(MAX_FACTOR), np.log2(MAX_FACTOR))
    image = axes.imshow(np.ma.masked_invalid(shown), cmap=TIMES, norm=norm)
    _frame(axes, genres, "missed genre", "wrongly named genre")
    _write(axes, times, lambda value: f"{value:.1f}" if value < 9.95 else f"{value:.0f}", np.abs(shown) > 1.5)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, ticks=[-2, -1, 0, 1, 2])
    bar.ax.set_yticklabels(["1/4", "1/2", "1", "2", "4"])
    alt = (
        "Rate at which a genre is wrongly named on posters where another genre is missed, divided by the rate on all "
        "posters. The table has the largest rates. Blank cells have too few posters."
    )
    return finish(figure, "says-instead", alt)


def _size(genres: Sequence[str]) -> tuple[float, float]:
    longest = max(len(genre) for genre in genres)
    side = 0.36 * len(genres) + 0.09 * min(longest, 24) + 0.5
    return max(4.4, side + 0.9), max(3.6, side)


def _frame(axes: Axes, genres: Sequence[str], rows: str, columns: str) -> None:
    names = [genre if len(genre) <= 24 else genre[:23] + "…" for genre in genres]
    axes.set_xticks(range(len(genres)), names, rotation=90)
    axes.set_yticks(range(len(genres)), names)
    axes.set(xlabel=columns, ylabel=rows)
    axes.grid(False)
    edges = np.arange(len(names) + 1) - 0.5
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.grid(True, which="minor", linewidth=0.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)


def _write(axes: Axes, values: FloatArray, text: Callable[[float], str], dark: BoolArray) -> None:
    for row, column in np.argwhere(np.isfinite(values)).tolist():
        value = float(values[row, column])
        color = "white" if dark[row, column] else INK
        axes.text(column, row, text(value), ha="center", va="center", fontsize=8, color=color)
    middle = (len(values) - 1) / 2
    for row in np.flatnonzero(~np.isfinite(values).any(axis=1)).tolist():
        axes.text(middle, row, "no data", ha="center", va="center", fontsize=8.5, color=GREY)
