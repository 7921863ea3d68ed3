"""Reliability diagrams before and after calibration, for all genres together and for each genre."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from toolkit.metrics.helpers import BoolArray, FloatArray
from toolkit.report.plots.common import BLUE, GREY, ORANGE, SMALL, WIDE, Plot, finish, new_figure, styled, unit_axis

#: Minimum number of positives for the diagram of a genre, and number of positives per dot on average.
MIN_POSITIVES, POSITIVES_PER_DOT = 20, 5
MAX_DOTS = 8


@styled
def reliability_plot(before: dict[str, Any], after: dict[str, Any] | None) -> Plot:
    """Plot the observed share of true genres against the predicted probability, over all genres together.

    ``before`` and ``after`` are entries of `toolkit.report.build.calibration`. ``after`` is None without calibration.
    """
    figure, (axes, below) = new_figure((WIDE[0], 4.2), nrows=2, height_ratios=[4, 1], sharex=True)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1.0, linestyle=":")
    summaries = [("before calibration" if after else "not calibrated", before, ORANGE, "s--")]
    if after:
        summaries.append(("after calibration", after, BLUE, "o-"))
    for name, summary, color, look in summaries:
        bins = [row for row in summary["curve"] if row["count"]]
        predicted, observed, count = (np.array([b[k] for b in bins]) for k in ("predicted", "observed", "count"))
        axes.vlines(predicted, *_wilson(observed, count), color=color, linewidth=1.0, alpha=0.55)
        axes.plot(predicted, observed, look, color=color, markersize=4.5, linewidth=1.4,
                  label=f"{name}: error {summary['ece']:.3f}")  # fmt: skip
    shown = (after or before)["curve"]
    below.bar([b["centre"] for b in shown], [b["count"] for b in shown], width=0.8 / len(shown), color=GREY)
    below.set_yscale("log")
    below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    below.yaxis.set_minor_locator(NullLocator())
    below.set_ylabel("count")
    unit_axis(axes)
    unit_axis(below, "x")
    axes.set_ylabel("observed share")
    below.set_xlabel("probability, all genres pooled")
    figure.legend(loc="outside upper left", ncols=1, handlelength=2.2)
    alt = "; ".join(f"calibration error {s['ece']:.4f} ({name})" for name, s, *_ in summaries)
    return finish(figure, "reliability", f"{alt.capitalize()}.")


def _wilson(share: FloatArray, count: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the lower and upper ends of the 95% interval of each share (Wilson 1927)."""
    z = 1.96
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return middle - half, middle + half


def genre_bins(truth: BoolArray, before: FloatArray, after: FloatArray) -> list[dict[str, Any]]:
    """Sort the samples by the probability of one genre, and return bins with equal numbers of samples.

    With bins of equal width, nearly all samples of a rare genre are in the first bin.
    Calibration keeps the order of the samples, so a bin has the same samples before and after calibration.
    Keys: ``count``, ``observed`` (share of positives), ``before`` and ``after`` (mean probabilities).
    """
    dots = int(np.clip(truth.sum() // POSITIVES_PER_DOT, 1, MAX_DOTS))
    order = np.argsort(before, kind="stable")
    return [
        {
            "count": len(members),
            "observed": float(truth[members].mean()),
            "before": float(before[members].mean()),
            "after": float(after[members].mean()),
        }
        for members in np.array_split(order, dots)
        if len(members)
    ]


@styled
def genre_reliability_plot(name: str, genre: str, bins: list[dict[str, Any]], *, calibrated: bool) -> Plot:
    """Plot the `genre_bins` of one genre. Both axes end slightly above the highest probability or share."""
    figure, axes = new_figure(SMALL)
    observed, count, before, after = (
        np.array([row[key] for row in bins], dtype=np.float64) for key in ("observed", "count", "before", "after")
    )
    low, high = _wilson(observed, count)
    top = 1.04 * max(*before, *after, *observed, 0.05)
    axes.plot([0, top], [0, top], color=GREY, linewidth=1.0, linestyle=":")
    axes.vlines(after, low, np.minimum(high, top), color=BLUE if calibrated else ORANGE, linewidth=1.0, alpha=0.55)
    axes.plot(before, observed, "s--", color=ORANGE, markersize=4, linewidth=1.2)
    if calibrated:
        axes.plot(after, observed, "o-", color=BLUE, markersize=4, linewidth=1.2)
    for axis, limit in ((axes.xaxis, axes.set_xlim), (axes.yaxis, axes.set_ylim)):
        limit(-0.02 * top, top)
        axis.set_major_locator(MaxNLocator(nbins=3))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("probability", labelpad=1)
    axes.set_ylabel("observed share", labelpad=1)
    alt = f"Reliability diagram of {genre}. In the highest bin, the mean probability is {before[-1]:.2f}"
    alt += f" before and {after[-1]:.2f} after calibration" if calibrated else ""
    return finish(figure, name, f"{alt}. In this bin, the share of posters with the genre is {observed[-1]:.2f}.")
