"""Effects of text and of controls on the predictions: changes per poster, their ratio, and the result in a sentence.

There are n posters, G genres and K controls per poster. A control is the poster with the same area painted elsewhere.
Logits are (n, 3 + K, G), in the order of the pictures: the raw poster, the poster encoded again as JPEG, the cleaned
poster (text painted over), and the controls. The effect of the control is the mean of the effects of the K controls.

The ratio is the mean effect of the text divided by the mean effect of the control. A ratio of means is stable even if
the control of one poster has no effect. The interval of the ratio comes from a bootstrap over posters (percentiles).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from toolkit.metrics.helpers import BoolArray, sigmoid
from toolkit.metrics.judgement import UNSEEN
from toolkit.metrics.registry import PLACES, values
from toolkit.metrics.weighted import Outcome

RAW, REENCODED, CLEANED, CONTROLS = 0, 1, 2, 3
#: Number of bootstrap samples, and coverage of the interval.
ROUNDS, COVERAGE = 2000, 0.95
#: With fewer posters, the interval is often too narrow, so no difference counts as seen.
FEW_POSTERS = 30
#: A larger ratio only says that the control has almost no effect, so its number is not printed.
LARGEST = 100
#: Results of the comparison of text and control, beside UNSEEN.
STRONGER, WEAKER = "stronger", "weaker"
#: Mean changes of probability below this number count as rounding errors.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Effect:
    """Changes of the predictions on n posters."""

    change: np.ndarray
    """(n,) mean over genres of the absolute change of probability."""
    logit_change: np.ndarray
    """(n,) mean over genres of the absolute change of the logit."""
    largest: np.ndarray
    """(n,) largest absolute change of probability over the genres."""
    genre: np.ndarray
    """(n,) index of the genre with the largest change. With several controls, only the first control is used."""
    flips: np.ndarray
    """(n,) share of genres for which the prediction (yes or no) changed, with the thresholds of the model."""
    any_flip: np.ndarray
    """(n,) numbers: 1 if the prediction (yes or no) of any genre changed, else 0. Several controls give their mean."""

    def take(self, rows: np.ndarray) -> Effect:
        return Effect(**{name: values[rows] for name, values in vars(self).items()})

    def means(self) -> dict[str, float | None]:
        """Return the means over posters. All are None if there are no posters."""
        names = {
            "probability": self.change,
            "logit": self.logit_change,
            "largest": self.largest,
            "flipped_decisions": self.flips,
            "posters_with_a_flip": self.any_flip,
        }
        return {name: float(values.mean()) if len(values) else None for name, values in names.items()}


def effect(before: np.ndarray, after: np.ndarray, thresholds: np.ndarray) -> Effect:
    """Return the changes between two (n, G) arrays of logits. ``thresholds`` is (G,)."""
    old, new = sigmoid(before), sigmoid(after)
    moved = np.abs(new - old)
    flipped = (old >= thresholds) != (new >= thresholds)
    return Effect(
        moved.mean(axis=1),
        np.abs(after.astype(np.float64) - before).mean(axis=1),
        moved.max(axis=1),
        moved.argmax(axis=1),
        flipped.mean(axis=1),
        flipped.any(axis=1).astype(np.float64),
    )


def control_effect(logits: np.ndarray, thresholds: np.ndarray) -> Effect:
    """Return the mean effect of the K controls of each poster. ``logits`` is (n, 3 + K, G)."""
    draws = [effect(logits[:, RAW], logits[:, k], thresholds) for k in range(CONTROLS, logits.shape[1])]
    means = {name: np.mean([vars(draw)[name] for draw in draws], axis=0) for name in vars(draws[0])}
    return Effect(**{**means, "genre": draws[0].genre})


@dataclass(frozen=True)
class Ratio:
    """The effect of the text divided by the effect of the control."""

    value: float | None
    """The ratio. None if there are no posters or both effects are 0. Infinite if only the control has no effect."""
    low: float | None
    """Lower end of the interval. ``low`` and ``high`` are None if ``value`` is None or there is only one poster."""
    high: float | None
    text: float | None
    control: float | None
    posters: int

    @property
    def word(self) -> str:
        """Return STRONGER or WEAKER if the text has another effect than the control, and UNSEEN if none was seen."""
        if self.low is None or self.high is None or self.posters < FEW_POSTERS or self.low <= 1.0 <= self.high:
            return UNSEEN
        return STRONGER if self.low > 1.0 else WEAKER

    @property
    def interval(self) -> str:
        """Return a text such as ``0.78 to 1.09`` or ``above 4.0``, or ``none``."""
        if self.low is None or self.high is None:
            return "none"
        if self.high > LARGEST:
            return f"above {times(min(self.low, float(LARGEST)))}"
        return f"{times(self.low)} to {times(self.high)}"


def ratio_of_means(text: np.ndarray, control: np.ndarray, seed: int = 0) -> Ratio:
    """Return mean ``text`` / mean ``control`` with an interval. Both arrays are (n,), with one value per poster."""
    count = len(text)
    if not count:
        return Ratio(None, None, None, None, None, 0)
    means = float(text.mean()), float(control.mean())
    value = _divide(*means)
    if value is None or count < 2:
        return Ratio(value, None, None, *means, count)
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(count, size=count) for _ in range(ROUNDS))
    ratios = (_divide(text[rows].mean(), control[rows].mean()) for rows in drawn)
    # If text and control have no effect on the drawn posters, there is no difference between them.
    found = [1.0 if ratio is None else ratio for ratio in ratios]
    tail = (1.0 - COVERAGE) / 2.0
    # Do not interpolate, since there is no value between a number and infinity.
    low, high = np.quantile(found, [tail, 1.0 - tail], method="nearest")
    return Ratio(value, float(low), float(high), *means, count)


def _divide(text: float, control: float) -> float | None:
    if control >= ROUNDING:
        return float(text / control)
    return math.inf if text >= ROUNDING else None


def sentence(ratio: Ratio) -> str:
    """Return the result of the audit as one sentence."""
    count, elsewhere, text = posters(ratio.posters), "the same area elsewhere", amount(ratio.text or 0.0)
    if ratio.posters == 0:
        return "No poster could be compared, so there is no result about titles."
    if ratio.value is None:
        return (
            "Titles do not move predictions: painting over titles changes no probability, and painting over "
            f"{elsewhere} changes no probability ({count})."
        )
    if ratio.posters < FEW_POSTERS:
        few = f"{count} {'is' if ratio.posters == 1 else 'are'} too few, a result needs at least {FEW_POSTERS}"
        return f"{UNSEEN.capitalize()} between titles and {elsewhere}: {few}."
    if ratio.word == UNSEEN:
        contains = f"the {COVERAGE:.0%} interval of the ratio, {ratio.interval}, contains 1"
        return f"{UNSEEN.capitalize()} between titles and {elsewhere}: {contains} ({count})."
    if not math.isfinite(ratio.value):
        alone = f"Titles move predictions by {text} on average."
        return f"{alone} The same area elsewhere does not move predictions ({count})."
    factor, basis = times(ratio.value), f"({COVERAGE:.0%} interval {ratio.interval}, {count})"
    if ratio.word == WEAKER:
        return f"Titles move predictions less than {elsewhere}: {factor} times as much {basis}."
    return f"Titles move predictions {factor} times as much as {elsewhere} {basis}."


def is_noise(text: float, reencoding: float) -> bool:
    """Return whether the effect of the text is hardly larger than the effect of saving the poster again as JPEG."""
    return 0.0 < text < 1.5 * reencoding


def posters(count: int) -> str:
    """Return a text such as ``1 poster`` or ``1,287 posters``."""
    return f"{count:,} poster" + ("" if count == 1 else "s")


def amount(value: float) -> str:
    """Format a change of probability, such as 0.123 or 0.00012."""
    return f"{value:.3f}" if value >= 0.01 or value == 0 else f"{value:.2g}"


def times(value: float) -> str:
    """Format a ratio with two or three digits, such as 0.62, 1.04, 3.1 or 12. A ratio over LARGEST gets no number."""
    if value > LARGEST:
        return f"more than {LARGEST}"
    return f"{value:.2f}" if value < 1.995 else f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def genre_table(logits: np.ndarray, thresholds: np.ndarray, genres: Sequence[str]) -> pd.DataFrame:
    """Return one row per genre with the effects of text, control and re-encoding. ``logits`` is (n, 3 + K, G).

    ``title_adds`` is the mean probability with text minus the mean probability without text. ``gained`` and ``lost``
    are numbers of posters: the genre is predicted only with text (gained), or only without text (lost).
    """
    probabilities = sigmoid(logits)
    raw, cleaned = probabilities[:, RAW], probabilities[:, CLEANED]
    before, after = raw >= thresholds, cleaned >= thresholds
    return pd.DataFrame(
        {
            "genre": list(genres),
            "title_adds": (raw - cleaned).mean(axis=0),
            "text": np.abs(cleaned - raw).mean(axis=0),
            "control": np.abs(probabilities[:, CONTROLS:] - raw[:, None]).mean(axis=(0, 1)),
            "reencoding": np.abs(probabilities[:, REENCODED] - raw).mean(axis=0),
            "gained": (before & ~after).sum(axis=0),
            "lost": (~before & after).sum(axis=0),
        }
    )


def label_metrics(targets: BoolArray, logits: np.ndarray, thresholds: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return metrics of the model on each kind of picture. For the controls, return means over all controls.

    ``targets`` is (n, G) and ``logits`` is (n, 3 + K, G). Means over genres leave out genres without positives.
    """
    raw, reencoded, cleaned, *draws = (
        _metrics(Outcome(targets, scores=sigmoid(logits[:, kind])), thresholds) for kind in range(logits.shape[1])
    )
    return {
        "raw": raw,
        "reencoded": reencoded,
        "cleaned": cleaned,
        "control": {
            # A metric is None for one control only if it is None for all controls, since all have the same support.
            key: None if value is None else type(value)(np.mean([draw[key] for draw in draws]))
            for key, value in draws[0].items()
        },
    }


def _metrics(outcome: Outcome, thresholds: np.ndarray) -> dict[str, Any]:
    decided = values(outcome.at(thresholds), "decisions")
    shown = {metric.key: decided[metric.key] for metric in PLACES["audit"] if metric.group == "decisions"}
    return values(outcome, "ranking") | shown
