"""Plot of the quality of models against their speed and size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from toolkit.report.plots.common import BLUE, GREY, Plot, finish, label_points, new_figure, styled

#: Longest name of a model in the plot.
NAME = 28


@styled
def cost_plot(models: Sequence[dict[str, Any]], metric: str, label: str) -> Plot:
    """Plot a metric with its interval against the images per second. The area of a dot is the number of parameters."""
    shown = [model for model in models if model["metrics"][metric]["value"] is not None]
    figure, axes = new_figure((6.4, 3.8))
    xs = [model["images_per_s"] for model in shown]
    rows = [model["metrics"][metric] for model in shown]
    largest = max((model["parameters"] for model in shown), default=1)
    areas = [15 + 75 * model["parameters"] / largest for model in shown]
    axes.vlines(xs, [row["low"] for row in rows], [row["high"] for row in rows], color=GREY, linewidth=1.2)
    axes.scatter(xs, [row["value"] for row in rows], s=areas, color=BLUE, edgecolor="white", alpha=0.85, zorder=3)
    axes.set_xscale("log")
    if xs:
        low, high = min(xs) / 1.8, max(xs) * 1.8
        axes.set_xlim(low, high)
        marks = [m * 10**e for e in range(-2, 7) for m in (1, 2, 5) if low <= m * 10**e <= high]
        axes.set_xticks(marks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("images per second of the forward pass (log scale)")
    axes.set_ylabel(label)
    names = [model["name"] if len(model["name"]) <= NAME else f"{model['name'][: NAME - 1]}…" for model in shown]
    label_points(axes, xs, [row["value"] for row in rows], names)
    alt = "; ".join(
        f"{model['name']}: {label} {row['value']:.3f}, {model['images_per_s']:,.0f} images per second, "
        f"{model['parameters'] / 1e6:.1f} million parameters"
        for model, row in zip(shown, rows, strict=True)
    )
    return finish(figure, "quality-cost", f"{label} against speed and size. {alt}.")
