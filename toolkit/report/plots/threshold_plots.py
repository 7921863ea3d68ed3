"""Plots of metrics against the threshold, precision-recall curves per genre, and a plot of F1 against support."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.ticker import NullLocator
from sklearn.metrics import precision_recall_curve

from toolkit.decisions.decisions import Decisions
from toolkit.metrics.helpers import BoolArray, FloatArray, sigmoid
from toolkit.metrics.registry import PLACES, values
from toolkit.metrics.weighted import Outcome
from toolkit.report.plots.common import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SMALL,
    Plot,
    finish,
    label_points,
    new_figure,
    styled,
    unit_axis,
)

#: Number of thresholds of the sweep, lowest threshold, highest threshold. The logits of thresholds are evenly spaced.
STEPS, LOWEST, HIGHEST = 121, 0.002, 0.998
SWEPT = {metric.key: metric.column for metric in PLACES["report, sweep"]}
_LOOKS = dict(zip(SWEPT, cycle(((BLUE, "-"), (ORANGE, "-"), (GREEN, "--"), (PURPLE, ":"))), strict=False))


def sweep(outcome: Outcome) -> dict[str, list[float]]:
    """Return the metrics of ``outcome.scores`` for a series of thresholds. Each threshold is used for all genres."""
    low, high = (float(np.log(end / (1.0 - end))) for end in (LOWEST, HIGHEST))
    thresholds = sigmoid(np.linspace(low, high, STEPS))
    found = [values(outcome.at(threshold), "decisions") for threshold in thresholds]
    swept: dict[str, list[float]] = {key: [row[key] for row in found] for key in SWEPT}
    # Precision is undefined if no genre is predicted. Use NaN, since 0 would look like a sudden drop in the plot.
    swept["micro_precision"] = [row["micro_precision"] if row["predicted_per_sample"] else math.nan for row in found]
    return {"threshold": thresholds.tolist(), **swept}


def validation_sweep(outcome: Outcome, decisions: Decisions) -> Plot:
    """Plot the sweep of a validation split with calibrated probabilities."""
    return sweep_plot(sweep(outcome), decisions, values(outcome.at(decisions.thresholds), "decisions"))


@styled
def sweep_plot(swept: dict[str, list[float]], decisions: Decisions, chosen: dict[str, float]) -> Plot:
    """Plot the result of `sweep`. Ticks show each genre's threshold. Dotted lines show F1 with these thresholds."""
    thresholds, single, per_label = decisions.thresholds, decisions.global_threshold, decisions.per_label
    figure, axes = new_figure()
    for key, name in SWEPT.items():
        color, line = _LOOKS[key]
        axes.plot(swept["threshold"], swept[key], line, color=color, label=name)
    axes.set_xscale("logit")
    axes.set_xlim(LOWEST, HIGHEST)
    marks = [0.003, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99]
    axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
    axes.xaxis.set_minor_locator(NullLocator())
    unit_axis(axes)
    axes.axvline(single, color=GREY, linewidth=1.2)
    axes.annotate(
        f"{single:.2g}", (single, 1.02), (0, 4), textcoords="offset points", ha="center", va="bottom",
        fontsize=10, color=GREY,
    )  # fmt: skip
    if per_label:
        inside = np.clip(thresholds, LOWEST * 1.05, 1 - (1 - HIGHEST) * 1.05)
        axes.plot(inside, np.full(len(inside), -0.02), "|", color=INK, markersize=9, clip_on=False)
        for key in ("micro_f1", "macro_f1"):
            axes.axhline(chosen[key], color=_LOOKS[key][0], linewidth=1.0, dashes=(1, 2))
    axes.set_xlabel("threshold" + (" (ticks on the axis: thresholds per genre)" if per_label else ""))
    figure.legend(loc="outside upper left", ncols=2, handlelength=1.8, columnspacing=1.4)
    best = {key: max(zip(swept[key], swept["threshold"], strict=True)) for key in ("micro_f1", "macro_f1")}
    alt = "; ".join(
        f"{SWEPT[key]} is highest, {value:.3f}, at a threshold of {at:.3g}" for key, (value, at) in best.items()
    )
    if per_label:
        alt += f"; with thresholds per genre, F1 is {chosen['micro_f1']:.3f} and {chosen['macro_f1']:.3f}"
    return finish(figure, "threshold-sweep", f"{alt}.")


def precision_recall_steps(truth: BoolArray, scores: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the recall and the precision of a step curve, from recall 1 to 0. The area under the steps is AP."""
    precision, recall, _ = precision_recall_curve(truth, scores)
    # scikit-learn adds a point with recall 0 and precision 1. AP does not use this point, so its precision is replaced.
    kept = recall > 0
    precision, recall = precision[kept], recall[kept]
    return np.append(recall, 0.0), np.append(precision, precision[-1])


@styled
def precision_recall_plot(
    name: str, genre: str, truth: BoolArray, scores: FloatArray, point: tuple[float, float] | None, ap: float
) -> Plot:
    """Plot one genre. ``point`` is (recall, precision) at its threshold, or None if the genre is never predicted."""
    figure, axes = new_figure(SMALL)
    recall, precision = precision_recall_steps(truth, scores)
    axes.axhline(truth.mean(), color=GREY, linewidth=1.0, linestyle=":")
    axes.plot(recall, precision, color=BLUE, drawstyle="steps-post", linewidth=1.6)
    if point is not None:
        axes.plot(*point, "o", color=ORANGE, markersize=6, markeredgecolor="white")
    unit_axis(axes, "x")
    unit_axis(axes)
    axes.set_xlabel("recall", labelpad=1)
    axes.set_ylabel("precision", labelpad=1)
    at = f"precision {point[1]:.2f} and recall {point[0]:.2f} at its threshold" if point else "never named"
    return finish(figure, name, f"Precision-recall curve of {genre}: AP {ap:.3f}, {at}.")


@styled
def support_plot(rows: Sequence[dict[str, Any]]) -> Plot:
    """Plot F1 with intervals against support (log scale), from the rows of `toolkit.report.per_label.genre_rows`."""
    shown = sorted((row for row in rows if row["support"]), key=lambda row: -row["support"])
    figure, axes = new_figure((4.8, 4.0))
    xs, ys = [row["support"] for row in shown], [row["f1"] for row in shown]
    axes.vlines(xs, [row["f1_low"] for row in shown], [row["f1_high"] for row in shown], color=GREY, linewidth=1.2)
    axes.plot(xs, ys, "o", color=BLUE, markersize=5.5, markeredgecolor="white")
    axes.set_xscale("log")
    low, high = min(xs, default=1), max(xs, default=10)
    axes.set_xlim(low / 1.6, high * 2.2)
    marks = [m for m in (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000) if low / 1.6 <= m <= high * 2.2]
    axes.set_xticks(marks, [f"{mark:,}" for mark in marks])
    axes.xaxis.set_minor_locator(NullLocator())
    unit_axis(axes)
    axes.set_xlabel("support (posters of the genre in this split)")
    axes.set_ylabel("F1")
    label_points(axes, xs, ys, [row["genre"] for row in shown])
    alt = ", ".join(f"{row['genre']} {row['f1']:.2f} ({row['support']})" for row in shown)
    return finish(figure, "support-f1", f"F1 (and support) per genre: {alt}.")
