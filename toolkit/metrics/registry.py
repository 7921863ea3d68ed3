"""The table of all metrics. All code that computes, writes or shows metrics uses this table.

To add a metric, write a function of `Weighed`, add an entry to `_METRICS`, and add its key to each output of `_PLACES`
that must show it. The group of a metric is its section in metrics-SPLIT.json. The report computes bootstrap intervals
for all metrics except counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from toolkit.metrics.helpers import BoolArray, FloatArray, f_beta, ratio
from toolkit.metrics.weighted import Counts, Outcome, Weighed

Rate = Callable[[Counts], FloatArray]
Better = Literal["higher", "lower"] | None


@dataclass(frozen=True)
class Metric:
    """One metric of the table."""

    key: str
    """Name in files."""
    label: str
    """Name for users."""
    of: Callable[[Weighed], FloatArray]
    """Function that returns the (B,) values. Undefined values are NaN."""
    group: Literal["decisions", "ranking", "calibration", "own"] = "decisions"
    """Metrics of group "decisions" need thresholds. "ranking" and "calibration" measure probabilities. "own" are
    metrics of the user (toolkit/evaluation/results.py), which are not in METRICS."""
    heading: str = ""
    """Shorter name for tables. If it is empty, tables show the label."""
    better: Better = "higher"
    """Whether higher or lower values are better. None if neither direction is better."""
    top: float = 1.0
    """Upper end of the range of values. The range begins at 0."""
    count: bool = False
    """Whether the metric is a count: the number of labels in the mean of another metric. A count has no interval."""

    @property
    def column(self) -> str:
        return self.heading or self.label

    @property
    def word(self) -> str:
        """The label without the part in brackets."""
        return self.label.partition(" (")[0]

    def value(self, weighed: Weighed) -> float | None:
        """Return the value under the first weighting of the samples, as a JSON type. None if it is undefined."""
        found = self.of(weighed)[0]
        return int(found) if self.count else None if np.isnan(found) else float(found)


def precision(counts: Counts) -> FloatArray:
    return ratio(counts.hits, counts.predicted)


def recall(counts: Counts) -> FloatArray:
    return ratio(counts.hits, counts.support)


def f(beta: float) -> Rate:
    return lambda counts: f_beta(counts.hits, counts.predicted, counts.support, beta)


def micro(rate: Rate) -> Callable[[Weighed], FloatArray]:
    """Return a function that adds up the counts of all labels and computes a rate from the sums."""
    return lambda weighed: rate(weighed.pooled)


def macro(rate: Rate) -> Callable[[Weighed], FloatArray]:
    """Return a function that computes the mean rate of the labels with positives, or 0 if there are no such labels."""
    return lambda weighed: mean_over(rate(weighed.each), weighed.each.support > 0, 0.0)


def mean_over(values: FloatArray, counted: BoolArray, empty: float = math.nan) -> FloatArray:
    """Return the (B,) means of the (B, G) values for which ``counted`` is true, or ``empty`` if there are none."""
    return np.array([v[kept].mean() if kept.any() else empty for v, kept in zip(values, counted, strict=True)])


def mean_defined(values: FloatArray) -> FloatArray:
    """Return the (B,) means of the (B, G) values that are not NaN. The mean is NaN if all values are NaN."""
    return mean_over(values, ~np.isnan(values))


def defined(values: FloatArray) -> FloatArray:
    """Return the (B,) counts of the (B, G) values that are not NaN."""
    return np.count_nonzero(~np.isnan(values), axis=1)


def subset_accuracy(weighed: Weighed) -> FloatArray:
    """Return the (B,) shares of samples for which all labels are right."""
    return weighed.mean((weighed.outcome.truth == weighed.outcome.named).all(axis=1))


def label_calibration(weighed: Weighed) -> FloatArray:
    """Return the (B, G) calibration errors of the labels."""
    return np.abs(weighed.gaps).sum(axis=2) / weighed.total[:, None]


def pooled_calibration(weighed: Weighed) -> FloatArray:
    """Return the (B,) calibration errors over all pairs of sample and label."""
    return np.abs(weighed.gaps.sum(axis=1)).sum(axis=1) / (weighed.total * weighed.outcome.truth.shape[1])


_METRICS = (
    Metric("subset_accuracy", "subset accuracy", subset_accuracy),
    Metric("predicted_per_sample", "genres named per poster", lambda w: w.pooled.predicted / w.total, heading="named",
           better=None, top=math.inf),
    Metric("macro_genres", "genres with positives", lambda w: (w.each.support > 0).sum(axis=1), count=True),
    Metric("micro_precision", "precision (micro)", micro(precision), heading="precision"),
    Metric("macro_precision", "precision (macro)", macro(precision)),
    Metric("micro_recall", "recall (micro)", micro(recall), heading="recall"),
    Metric("macro_recall", "recall (macro)", macro(recall)),
    Metric("micro_f1", "micro-F1", micro(f(1.0))),
    Metric("macro_f1", "macro-F1", macro(f(1.0))),
    Metric("micro_f0.5", "micro-F0.5", micro(f(0.5)), heading="F0.5"),
    Metric("macro_f0.5", "macro-F0.5", macro(f(0.5))),
    Metric("mAP", "mAP", lambda w: mean_defined(w.ranking[0]), "ranking"),
    Metric("roc_auc", "ROC-AUC", lambda w: mean_defined(w.ranking[1]), "ranking"),
    Metric("num_genres_ap", "genres with positives", lambda w: defined(w.ranking[0]), "ranking", count=True),
    Metric("num_genres_roc_auc", "genres with both classes", lambda w: defined(w.ranking[1]), "ranking", count=True),
    Metric("loss", "loss (nats)", lambda w: w.mean(w.outcome.losses), "calibration", better="lower", top=math.inf),
    Metric("ece", "calibration error (pooled)", pooled_calibration, "calibration", "ECE", "lower"),
    Metric("ece_macro", "calibration error (mean of genres)", lambda w: label_calibration(w).mean(axis=1),
           "calibration", "ECE, mean of genres", "lower"),
)  # fmt: skip
METRICS = {metric.key: metric for metric in _METRICS}

_PLACES = {
    "epochs": "mAP micro_f1 macro_f1",
    "decisions": "subset_accuracy micro_precision micro_recall micro_f1 macro_f1 micro_f0.5 predicted_per_sample",
    "ranking": "mAP roc_auc loss",
    "calibration": "loss ece ece_macro",
    "card": "micro_precision micro_recall micro_f1 macro_f1 micro_f0.5 subset_accuracy",
    "audit": "mAP roc_auc micro_f1 macro_f1",
    "report": "mAP roc_auc loss micro_f1 macro_f1 micro_f0.5 macro_f0.5 micro_precision micro_recall macro_precision "
              "macro_recall subset_accuracy predicted_per_sample ece ece_macro",
    "report, calibration": "ece ece_macro loss",
    "report, baselines": "mAP roc_auc loss ece micro_f1 macro_f1 micro_f0.5 macro_f0.5 subset_accuracy",
    "report, in short": "mAP loss micro_f1 macro_f1",
    "report, sweep": "micro_f1 macro_f1 micro_precision micro_recall",
}  # fmt: skip
#: Output → the metrics that it shows, in order. "epochs" is epochs.csv and its curves. "decisions", "ranking" and
#: "calibration" are tables in the terminal. "card" is the model card, which also shows the metrics of "ranking".
PLACES = {place: tuple(METRICS[key] for key in keys.split()) for place, keys in _PLACES.items()}


def format_number(value: float | None, spec: str = ".3f") -> str:
    """Format a number for a table or a text. Integers get commas. None and NaN become "-"."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:{spec}}"


def values(outcome: Outcome, group: str) -> dict[str, Any]:
    """Return key → value for every metric of a group. An undefined value is None."""
    weighed = Weighed(outcome)
    return {metric.key: metric.value(weighed) for metric in _METRICS if metric.group == group}


def label_rates(weighed: Weighed) -> dict[str, FloatArray]:
    """Return the (B, G) precision, recall and F1. Undefined values are NaN, as in `per_label_table`."""
    counts = weighed.each
    return {
        "precision": np.where(counts.predicted > 0, precision(counts), np.nan),
        "recall": np.where(counts.support > 0, recall(counts), np.nan),
        "f1": np.where(counts.support > 0, f(1.0)(counts), np.nan),
    }


def per_label_table(outcome: Outcome, thresholds: ArrayLike, genres: Sequence[str]) -> pd.DataFrame:
    """Return a table with one row per label, in the given order. ``thresholds``: one number or a (G,) array.

    Columns: genre, support (positives), prevalence (support / N), ap, roc_auc, threshold, precision, recall, f1. Sample
    weights have no effect on support and prevalence. For a label without positives, ap, recall and f1 are NaN. For a
    label that is never predicted, precision is NaN. If all samples have the same target, roc_auc is NaN.
    """
    named = Weighed(outcome.at(thresholds))
    support = outcome.truth.sum(axis=0)
    ap, roc_auc = outcome.ranking
    return pd.DataFrame(
        {
            "genre": list(genres),
            "support": support.astype(np.int64),
            "prevalence": support / len(outcome.truth),
            "ap": ap,
            "roc_auc": roc_auc,
            "threshold": np.broadcast_to(np.asarray(thresholds, dtype=np.float64), support.shape),
            **{name: rates[0] for name, rates in label_rates(named).items()},
        }
    )
