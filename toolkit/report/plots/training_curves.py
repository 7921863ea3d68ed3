"""Training curves from RUN/epochs.csv, if the model folder is still in its run folder RUN."""

from __future__ import annotations

import csv
import logging
import math
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from shards.errors import one_line
from toolkit.metrics.registry import PLACES
from toolkit.report.plots.common import BLUE, GREEN, GREY, ORANGE, Plot, finish, new_figure, styled

log = logging.getLogger(__name__)

EPOCHS = "epochs.csv"
#: Column of epochs.csv → (name, colour, line style).
METRICS = {
    f"val_{metric.key}": (metric.label, *look)
    for metric, look in zip(PLACES["epochs"], cycle(((GREEN, "--"), (BLUE, "-"), (ORANGE, "-"))), strict=False)
}

TrainingCurves = dict[str, list[float | None]]


def read_training_curves(model: Path) -> TrainingCurves | None:
    """Return the columns of epochs.csv in the run folder of the model, with one value per epoch.

    Return None if the file is missing or has no epoch. Log a warning if the file cannot be read.
    """
    path = model.resolve().parent / EPOCHS
    if not path.is_file():
        return None
    try:
        with open(path, newline="", encoding="utf-8") as stream:  # a killed run leaves an incomplete last row
            rows = [row for row in csv.DictReader(stream) if None not in row.values()]
    except (OSError, ValueError, csv.Error) as error:
        log.warning("the report has no training curves, since %s is not a table of epochs (%s)", path, one_line(error))
        return None
    if not rows or "epoch" not in rows[0]:
        return None
    return {name: [_number(row[name]) for row in rows] for name in rows[0] if name}


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def training_curve_plots(history: TrainingCurves, saved: int | None) -> list[Plot]:
    """Plot losses and validation metrics over the epochs. Epoch ``saved``, counted from 1, has the saved weights."""
    losses = [_losses(history, saved)] if {"train_loss", "val_loss"} <= history.keys() else []
    return losses + ([_metrics(history, saved)] if METRICS.keys() & history.keys() else [])


@styled
def _losses(history: TrainingCurves, saved: int | None) -> Plot:
    """Plot both losses on separate axes. Loss functions can differ, and only training posters are augmented."""
    figure, both = new_figure((4.8, 4.0), nrows=2, sharex=True)
    curves = (("train_loss", GREY, "training"), ("val_loss", BLUE, "validation"))
    for axes, (key, color, name) in zip(both, curves, strict=True):
        axes.plot(*_line(history, key), "o-", color=color, markersize=3.5)
        axes.set_ylabel(f"{name} loss")
        axes.margins(y=0.15)
        _mark(axes, saved)
    _epochs(both[-1])
    last = [values[-1] for values in (_line(history, "train_loss")[1], _line(history, "val_loss")[1]) if values]
    alt = f"Losses over {len(history['epoch'])} epochs. The last values are " + " and ".join(f"{v:.4f}" for v in last)
    return finish(figure, "training-loss", f"{alt}.")


@styled
def _metrics(history: TrainingCurves, saved: int | None) -> Plot:
    figure, axes = new_figure((4.8, 4.0))
    parts = []
    for key, (name, color, look) in METRICS.items():
        if key in history:
            epochs, values = _line(history, key)
            axes.plot(epochs, values, look, marker="o", color=color, markersize=3.5, label=name)
            if values:
                parts.append(f"{name} from {values[0]:.3f} to {values[-1]:.3f}")
    _mark(axes, saved)
    _epochs(axes)
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside upper left", ncols=3, handlelength=1.8)
    return finish(figure, "training-metrics", f"On validation: {', '.join(parts)}.")


def _line(history: TrainingCurves, key: str) -> tuple[list[float], list[float]]:
    pairs = [(e + 1, v) for e, v in zip(history["epoch"], history[key], strict=True) if e is not None and v is not None]
    return [e for e, _ in pairs], [v for _, v in pairs]


def _mark(axes: Axes, saved: int | None) -> None:
    if saved:
        axes.axvline(saved, color=GREY, linewidth=1.0, linestyle=":")


def _epochs(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.set_xlabel("epoch (dotted line: saved epoch)")
