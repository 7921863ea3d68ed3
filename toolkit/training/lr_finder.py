"""``posters train --find-lr``: a learning-rate range test, which writes one curve with two suggestions.

The learning rate rises exponentially from LOW to HIGH, by one step per update. The training loss falls at useful rates,
becomes flat, and then diverges (Smith 2017, "Cyclical learning rates for training neural networks", section 3.3). The
updates are the same as in training, but without warm-up and schedule. The learning rates of layers and head are scaled
as in training. The test writes OUT/find-lr.csv and OUT/find-lr.png. A later training can use the cached features.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter1d

from shards.errors import UserError
from shards.progress import progress
from shards.storage.files import atomic_write
from toolkit.distributed.collectives import by_main, sum_over_ranks
from toolkit.distributed.votes import Vote
from toolkit.metrics.helpers import FloatArray
from toolkit.training.setup import TrainingSetup
from toolkit.training.train_step import TrainStep

log = logging.getLogger(__name__)

LOW, HIGH = 1e-6, 10.0
#: Number of updates of a test: one epoch, but at least 40 (to resolve seven decades) and at most 100.
MIN_UPDATES, MAX_UPDATES = 40, 100
#: The test ends when the loss, smoothed with DECAY, is more than DIVERGED times its lowest value. fastai uses a factor
#: of 4. But a loss over many labels starts near its minimum and hardly halves in 100 updates.
DECAY, DIVERGED = 0.8, 2.0
#: Standard deviation of the curve's smoothing in decades, and its least value in updates. The smoothing is centred,
#: because a mean over earlier values suggests rates that are too high.
BLUR, BLUR_UPDATES = 0.2, 2.0


@dataclass(frozen=True)
class LrCurve:
    """Result of a range test."""

    rates: FloatArray
    """(n,) rising learning rates."""
    losses: FloatArray
    """(n,) training losses (means over genres). Each loss is measured before the update that uses its learning rate."""
    smoothed: FloatArray
    """(n,) smoothed losses."""

    @property
    def lowest(self) -> float:
        """The rate at which the smoothed loss is lowest."""
        return float(self.rates[np.argmin(self.smoothed)])

    @property
    def steepest(self) -> float:
        """The rate at which the smoothed loss falls fastest, as a function of log(rate)."""
        slope = np.gradient(self.smoothed, np.log(self.rates))
        return float(self.rates[np.argmin(slope[: np.argmin(self.smoothed) + 1])])

    @classmethod
    def of(cls, rates: FloatArray, losses: FloatArray) -> LrCurve:
        """Return the curve of ``rates`` and ``losses``. Raises UserError if the loss did not fall."""
        if len(losses) < 3:
            raise UserError("not-finite", "the loss diverged at the lowest rate: check the data and the weights")
        decades = np.log10(rates[-1] / rates[0]) / (len(rates) - 1)
        width = max(BLUR / decades, BLUR_UPDATES)
        capped = np.minimum(losses, DIVERGED * losses[0])  # high losses at the end must not raise the curve before them
        curve = cls(rates, losses, gaussian_filter1d(capped, width, mode="nearest"))
        if np.argmin(curve.smoothed) == 0:
            tried = f"rate from {rates[0]:g} to {rates[-1]:g}"
            raise UserError(
                "nothing-to-train", f"the loss did not fall at any {tried}: check labels and --model.freeze"
            )
        return curve


def find_lr(setup: TrainingSetup) -> None:
    """Run the test and write its curve to ``setup.out``. Called by every rank. Afterwards the weights are unusable."""
    rates, losses = _run(setup)
    by_main(setup.accelerator, lambda: _suggest(LrCurve.of(rates, losses), setup))


def _suggest(curve: LrCurve, setup: TrainingSetup) -> None:
    save_curve(curve, setup.out)
    text = "suggested: --optim.lr %.2g, where the loss fell fastest; %.2g is a tenth of the rate with the lowest loss "
    log.info(text + "(see %s)", curve.steepest, curve.lowest / 10, setup.out / "find-lr.png")


def _run(setup: TrainingSetup) -> tuple[FloatArray, FloatArray]:
    """Make updates until the loss diverges. Return the learning rates and the losses, which are equal on all ranks."""
    accelerator, feed = setup.accelerator, setup.inputs.feed(setup)
    train_step = TrainStep(setup, lost=Vote(accelerator))
    steps = setup.plan.steps_per_epoch
    rates = np.geomspace(LOW, HIGH, min(MAX_UPDATES, max(MIN_UPDATES, steps)))
    losses: list[float] = []
    epoch = 0
    setup.freezing.training_mode(setup.model, 0)
    with contextlib.closing(feed), progress(len(rates), "find-lr", disable=not accelerator.is_main_process) as bar:
        while len(losses) < len(rates):
            with contextlib.closing(feed.batches(epoch, 0)) as batches:
                for step in range(steps):
                    if len(losses) == len(rates):
                        break
                    rate = float(rates[len(losses)])
                    own, made = train_step(batches, epoch, step, len(losses) + 1, rate)
                    loss, rows = sum_over_ranks(accelerator, own).tolist()
                    if not rows:
                        raise UserError(
                            "too-many-bad", "no sample of an update could be decoded: check the images in the shards"
                        )
                    if not made and np.isfinite(loss):
                        continue  # the fp16 gradient scale is still too high: try the same rate with the next samples
                    losses.append(loss / rows)
                    bar.update(1)
                    if diverged(losses):
                        kept = np.isfinite(losses)
                        return rates[: len(losses)][kept], np.array(losses)[kept]
            epoch += 1
    return rates, np.array(losses)


def diverged(losses: list[float]) -> bool:
    """Return whether the last loss is not finite, or the last smoothed loss exceeds DIVERGED times the lowest one."""
    if not np.isfinite(losses[-1]):
        return True
    smoothed = pd.Series(losses).ewm(alpha=1 - DECAY).mean()
    return bool(smoothed.iloc[-1] > DIVERGED * smoothed.min())


def save_curve(curve: LrCurve, out: Path) -> None:
    """Write find-lr.csv and find-lr.png into ``out``."""
    with atomic_write(out / "find-lr.csv", "w") as stream:
        table = pd.DataFrame({"lr": curve.rates, "loss": curve.losses, "smoothed": curve.smoothed})
        table.index += 1
        table.to_csv(stream, index_label="update", float_format="%.6g", lineterminator="\r\n")
    with atomic_write(out / "find-lr.png") as stream:
        _draw(curve).savefig(stream, format="png", dpi=144)


def _draw(curve: LrCurve) -> Figure:
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.plot(curve.rates, curve.losses, color="#9aa5b1", linewidth=1, label="loss of each update")
    axes.plot(curve.rates, curve.smoothed, color="#1f4e79", linewidth=2.2, label="smoothed")
    useful = slice(0, int(np.argmin(curve.smoothed)) + 1)  # later losses may be too high for the plot
    high = max(np.quantile(curve.losses[useful], 0.95), curve.smoothed[useful].max())
    low = min(np.quantile(curve.losses, 0.05), curve.smoothed.min())
    axes.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
    marks = (
        (curve.steepest, "#b5460f", "-", f"suggested, falls fastest: {curve.steepest:.2g}"),
        (curve.lowest / 10, "#5b7a1f", "--", f"a tenth of the rate with the lowest loss: {curve.lowest / 10:.2g}"),
    )
    for rate, colour, style, name in marks:
        axes.axvline(rate, color=colour, linestyle=style, linewidth=1.6, label=name)
    axes.set_xlabel("learning rate (optim.lr)")
    axes.set_ylabel("training loss")
    axes.set_title("Learning-rate range test", loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    return figure
