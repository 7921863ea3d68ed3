"""Confidence intervals of metrics by the bootstrap over samples (Efron 1979).

A resample consists of N samples that are drawn with replacement. Each metric is computed on every resample. The
interval contains the middle 95% of these values (the percentile interval of Efron & Tibshirani 1993, chapter 13).
Near-duplicates are drawn together as one unit (the cluster bootstrap, Davison & Hinkley 1997, section 3.8). Two models,
or a model and a baseline, are compared on the same resamples.

Repeated samples raise mAP and calibration errors. The resampled values of a metric over all labels are therefore
shifted: their mean becomes the observed value (bias correction, Efron & Tibshirani, chapter 10). Metrics of single
labels are not shifted, because their distributions are skewed and a shifted interval could reach below 0. The intervals
do not include the variance between training runs. docs/results/recipes.md has the measured coverage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from toolkit.metrics.helpers import FloatArray, IntArray
from toolkit.metrics.registry import METRICS, Metric, label_calibration, label_rates
from toolkit.metrics.weighted import Outcome, Weighed

#: So many resamples that a p-value can stay below 5% after Holm's correction in a table of 100 labels.
ROUNDS = 4000
#: Number of resamples for a metric of the user, which can be slow.
OWN_ROUNDS = 1000
SEED, COVERAGE = 0, 0.95
#: Largest number of weights in memory. 4 million weights have 32 MB.
CHUNK = 4_000_000


class Interval(NamedTuple):
    """The value of a metric and the bounds of its interval. All three are None if the metric is undefined."""

    value: float | None
    low: float | None
    high: float | None


class Difference(NamedTuple):
    """A difference of two metrics, its interval, and its two-sided p-value (null hypothesis: no difference)."""

    value: float | None
    low: float | None
    high: float | None
    p: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 is outside of the interval."""
        return self.low is not None and self.high is not None and (self.low > 0.0 or self.high < 0.0)


@dataclass(frozen=True, eq=False)
class Measured:
    """Metrics under B weightings. A weighting is one weight for each sample. Undefined values are NaN."""

    metrics: dict[str, FloatArray]
    """Metric → (B,) values. Without probabilities, only the metrics of group "decisions" are present."""
    per_label: dict[str, FloatArray]
    """``precision``, ``recall`` and ``f1`` → (B, G) values. With probabilities, ``ap`` and ``ece`` are added."""


def measured(outcome: Outcome, weights: FloatArray) -> Measured:
    """Compute every metric under (B, N) weights. All weights are at least 0, and each row has a positive sum."""
    weighed, ranked = Weighed(outcome, weights), outcome.scores.size > 0
    metrics = {
        metric.key: metric.of(weighed)
        for metric in METRICS.values()
        if not metric.count and (ranked or metric.group == "decisions")
    }
    per_label = label_rates(weighed)
    if ranked:
        per_label |= {"ap": weighed.ranking[0], "ece": label_calibration(weighed)}
    return Measured(metrics, per_label)


@dataclass(frozen=True, eq=False)
class Draws:
    """Metrics of one model on the original samples and on every resample."""

    plain: Measured
    """Metrics on the original samples. B is 1."""
    resampled: Measured


def resample_weights(
    num_samples: int, rounds: int = ROUNDS, seed: int = SEED, units: IntArray | None = None
) -> Iterator[FloatArray]:
    """Yield (b, N) weights of b resamples, ``rounds`` resamples in total. A weight is how often a sample was drawn.

    units (N,): integers 0 to U - 1. Samples of the same unit are drawn together. By default each sample is a unit.
    """
    if units is not None:
        for weights in resample_weights(int(np.max(units, initial=-1)) + 1, rounds, seed):
            yield weights[:, units]
        return
    rng = np.random.default_rng(seed)
    at_once = max(1, CHUNK // num_samples)
    for start in range(0, rounds, at_once):
        count = min(at_once, rounds - start)
        drawn = rng.integers(num_samples, size=(count, num_samples))
        drawn += np.arange(count)[:, None] * num_samples
        counts = np.bincount(drawn.ravel(), minlength=count * num_samples)
        yield counts.reshape(count, num_samples).astype(np.float64)


def bootstrap(outcomes: Mapping[str, Outcome], rounds: int = ROUNDS, units: IntArray | None = None) -> dict[str, Draws]:
    """Measure all outcomes (predictions of models or baselines) on the same resamples of their N samples.

    units (N,): see `resample_weights`. For a shard set, `shards.dataset.manifest.Manifest.units_of` returns the units.
    """
    found: dict[str, list[Measured]] = {name: [] for name in outcomes}
    (num_samples,) = {len(outcome.truth) for outcome in outcomes.values()}
    for weights in resample_weights(num_samples, rounds, units=units):
        for name, outcome in outcomes.items():
            found[name].append(measured(outcome, weights))
    ones = np.ones((1, num_samples))
    return {name: Draws(measured(one, ones), _concatenated(found[name])) for name, one in outcomes.items()}


def confidence_intervals(draws: Draws) -> dict[str, Interval]:
    """Return the value and the interval of each metric."""
    found = {}
    for name, values in draws.resampled.metrics.items():
        plain = draws.plain.metrics[name]
        value, low, high = _interval(plain, _centred(plain, values))
        if low is not None and high is not None:
            low, high = max(low, 0.0), min(high, METRICS[name].top)
        found[name] = Interval(value, low, high)
    return found


def interval_of(metric: Metric, outcome: Outcome, rounds: int = ROUNDS, units: IntArray | None = None) -> Interval:
    """Return the value and the interval of one metric that is not in METRICS. Its range of values is not known."""
    weights = resample_weights(len(outcome.truth), rounds, units=units)
    plain = metric.of(Weighed(outcome))
    return _interval(plain, _centred(plain, np.concatenate([metric.of(Weighed(outcome, part)) for part in weights])))


def label_intervals(draws: Draws, metric: str) -> list[Interval]:
    """Return one interval for each label. ``metric``: a key of `Measured.per_label`. Undefined values are left out."""
    plain, values = draws.plain.per_label[metric], draws.resampled.per_label[metric]
    return [_interval(plain[:, label], values[:, label]) for label in range(values.shape[1])]


def paired_difference(first: Draws, second: Draws) -> dict[str, Difference]:
    """Return ``first`` minus ``second`` for each metric that both have. Use two results of one call of `bootstrap`."""
    found = {}
    for name in (name for name in first.resampled.metrics if name in second.resampled.metrics):
        plain = first.plain.metrics[name] - second.plain.metrics[name]
        values = first.resampled.metrics[name] - second.resampled.metrics[name]
        found[name] = _difference(plain, _centred(plain, values))
    return found


def label_differences(first: Draws, second: Draws, metric: str) -> list[Difference]:
    """Return ``first`` minus ``second`` for each label. ``metric``: a key of `Measured.per_label`."""
    plain = first.plain.per_label[metric] - second.plain.per_label[metric]
    values = first.resampled.per_label[metric] - second.resampled.per_label[metric]
    return [_difference(plain[:, label], values[:, label]) for label in range(values.shape[1])]


def label_differences_to(draws: Draws, metric: str, values: FloatArray) -> list[Difference]:
    """Return the metric of each label minus the fixed (G,) ``values``. ``metric``: a key of `Measured.per_label`."""
    plain, resampled = draws.plain.per_label[metric] - values, draws.resampled.per_label[metric] - values
    return [_difference(plain[:, label], resampled[:, label]) for label in range(len(values))]


def _concatenated(parts: list[Measured]) -> Measured:
    return Measured(
        {name: np.concatenate([part.metrics[name] for part in parts]) for name in parts[0].metrics},
        {name: np.concatenate([part.per_label[name] for part in parts]) for name in parts[0].per_label},
    )


def _centred(plain: FloatArray, values: FloatArray) -> FloatArray:
    """Shift the (B,) resampled values so that their mean is the (1,) value on the original samples."""
    defined = values[~np.isnan(values)]
    return values + (plain[0] - defined.mean()) if defined.size else values


def _interval(plain: FloatArray, values: FloatArray) -> Interval:
    value, defined = float(plain[0]), values[~np.isnan(values)]
    if np.isnan(value) or not defined.size:
        return Interval(None, None, None)
    tail = (1.0 - COVERAGE) / 2.0
    low, high = np.quantile(defined, [tail, 1.0 - tail])
    return Interval(value, float(low), float(high))


def _difference(plain: FloatArray, values: FloatArray) -> Difference:
    interval = _interval(plain, values)
    if interval.value is None:
        return Difference(None, None, None, None)
    defined = values[~np.isnan(values)]
    # Add one to both counts: resamples cannot show a probability of 0 (Davison & Hinkley 1997, 4.2).
    sides = ((defined <= 0.0).sum() + 1, (defined >= 0.0).sum() + 1)
    return Difference(*interval, float(min(1.0, 2.0 * min(sides) / (len(defined) + 1))))
