"""Compute the results of an evaluation from arrays, convert them to JSON types, and print them as tables.

All text except the borders of the tables is ASCII, so that it can be written to any log file. On an ASCII stream, rich
draws the borders with ASCII characters.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shards.dataset.manifest import Manifest
from shards.errors import UserError
from toolkit.config.extensions import explained, make
from toolkit.decisions.decisions import Decisions
from toolkit.evaluation.tables import json_types, number_table, report_console
from toolkit.metrics.baselines import BaselineRow, baselines, threshold_label
from toolkit.metrics.calibration_error import reliability
from toolkit.metrics.helpers import BoolArray, FloatArray, cross_entropy, mean_element, sigmoid
from toolkit.metrics.registry import METRICS, PLACES, Metric, format_number, per_label_table, values
from toolkit.metrics.weighted import Outcome, Weighed

TOP_K = (1, 2, 3)
FIXED_THRESHOLDS = (0.3, 0.5, 0.7)
#: End of the label of a row with one threshold per genre. A note replaces it in the table.
PER_GENRE = " (per genre)"

#: Heading of a column → a shorter one, so that the rows fit into a terminal of 80 columns.
SHORT = {"subset accuracy": "subset\nacc", "precision": "prec.", "micro-F1": "micro\nF1", "macro-F1": "macro\nF1"}
#: Columns of the genre table → headings. The JSON file also has the prevalence.
GENRE_COLUMNS = {
    "support": "support", "ap": "AP", "roc_auc": "ROC-AUC", "threshold": "threshold", "precision": "prec.",
    "recall": "recall", "f1": "F1",
}  # fmt: skip


@dataclass(frozen=True)
class ThresholdRow:
    """Metrics of group "decisions" (toolkit/metrics/registry.py) at one threshold, or at one threshold per genre."""

    label: str
    threshold: float | list[float]
    metrics: dict[str, float]


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """All results of one model on one split. Thresholds apply to calibrated probabilities.

    ``figures`` has the metrics over all genres. ``per_genre`` is a table with one row per genre.
    """

    split: str
    shard_set: str
    """Fingerprint of the split's shard set."""
    num_samples: int
    genres: list[str]
    decisions: str
    """Fingerprint of the applied calibration and thresholds."""
    loss: float
    """Mean binary cross-entropy of the uncalibrated logits, in nats."""
    ranking: dict[str, Any]
    """Metrics of group "ranking" (toolkit/metrics/registry.py)."""
    calibration: dict[str, Any]
    """Keys ``method``, ``before`` and ``after``. The last two contain the ``loss`` and the keys of `reliability`."""
    thresholds: list[ThresholdRow]
    baselines: list[BaselineRow]
    per_genre: pd.DataFrame
    """Table of `per_label_table` at the chosen thresholds."""
    own: dict[str, float | None] = field(default_factory=dict)
    """Metrics of the user at the chosen thresholds."""
    weighted: bool = False
    """Whether the metrics use sample weights."""

    @property
    def figures(self) -> dict[str, Any]:
        """Metrics at the chosen thresholds, by their keys: mAP, roc_auc, loss, micro_f1, macro_f1 and others."""
        return figures_of(self.to_dict())

    def __repr__(self) -> str:
        figures = ", ".join(f"{m.key} {format_number(self.figures[m.key])}" for m in PLACES["report, in short"])
        return f"Evaluation({self.split}, {self.num_samples:,} samples: {figures})"

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON types. Undefined values (NaN) become None. ``own`` and ``weighted`` are left out if empty."""
        found = json_types(asdict(self) | {"per_genre": self.per_genre.to_dict("records")})
        return {key: value for key, value in found.items() if value or key not in ("own", "weighted")}

    def render(self, console: Console | None = None) -> None:
        """Print the tables, by default on standard output with `REPORT_WIDTH` columns."""
        out = console or report_console()
        for table in (self.headline_table(), self.ranking_table(), self.calibration_table(), self.genre_table()):
            out.print(table)
            out.print()

    def headline_table(self) -> Table:
        """Return a table with one row per threshold of the model, then one row per baseline."""
        shown = PLACES["decisions"]
        title = f"{self.split}: {self.num_samples:,} samples, {len(self.genres)} genres"
        table = number_table(title, "", [SHORT.get(metric.column, metric.column) for metric in shown])
        named = [(f"model @ {row.label}", row.metrics) for row in self.thresholds]
        named += [(row.label, row.metrics) for row in self.baselines]
        for name, metrics in named:
            cells = [format_number(metrics[metric.key]) for metric in shown]
            table.add_row(
                Text(name.removesuffix(PER_GENRE)), *cells, style="bold" if name.startswith("model @ chosen") else None
            )
        table.rows[len(self.thresholds) - 1].end_section = True
        covered = self.thresholds[0].metrics["macro_genres"]
        pooled = ", ".join(
            SHORT.get(metric.heading, metric.heading)
            for metric in shown
            if metric.key.startswith("micro_") and metric.heading
        )
        notes = [
            f"{pooled}: micro (pooled over genres)",
            "named: predicted genres per sample",
            f"macro-F1: mean over the {covered} of {len(self.genres)} genres with positives in this split",
        ]
        if self.thresholds[-1].label.endswith(PER_GENRE):
            notes.append("chosen: the thresholds of the model, one per genre")
        if any(row.label.startswith("single of") for row in self.thresholds):
            notes.append("single of val: the best single threshold for all genres, chosen on val, not on this split")
        top = max((row.genre_indices or [] for row in self.baselines), key=len, default=[])
        if top:
            notes.append("always top-k names the first k of: " + ", ".join(self.genres[i] for i in top))
        notes += ["metrics use the sample weights of the shard set; counts do not"] if self.weighted else []
        notes += [f"{name}: {format_number(value)} at the chosen threshold" for name, value in self.own.items()]
        table.caption = Text("\n".join(notes))
        return table

    def ranking_table(self) -> Table:
        """Return a table of mAP, ROC-AUC and loss of the model and of the prevalence baseline."""
        shown = PLACES["ranking"]
        table = number_table("without a threshold", "", [metric.column for metric in shown])
        rankings: list[tuple[str, Mapping[str, Any]]] = [("model", {**self.ranking, "loss": self.loss})]
        rankings += [("prevalence baseline", row.ranking) for row in self.baselines if row.ranking][:1]
        for name, ranking in rankings:
            table.add_row(name, *(format_number(ranking[metric.key], ".4f") for metric in shown))
        total = len(self.genres)
        table.caption = Text(
            f"mAP over the {self.ranking['num_genres_ap']} of {total} genres with positives;\n"
            f"ROC-AUC over the {self.ranking['num_genres_roc_auc']} of {total} with both classes"
        )
        return table

    def calibration_table(self) -> Table:
        """Return a table of loss and calibration errors before and after calibration."""
        shown = PLACES["calibration"]
        table = number_table("calibration of the probabilities", "", [metric.column for metric in shown])
        rows = {"as trained": self.calibration["before"]}
        if self.calibration["method"] != "none":
            rows[f"calibrated ({self.calibration['method']})"] = self.calibration["after"]
        for name, figures in rows.items():
            table.add_row(name, *(format_number(figures[metric.key], ".4f") for metric in shown))
        if len(rows) == 1:
            table.caption = Text("not calibrated: calibration did not clearly help on held-out samples, or is disabled")
        return table

    def genre_table(self) -> Table:
        """Return a table with one row per genre at its chosen threshold, sorted by falling support, then by name."""
        table = number_table("per genre, at the chosen threshold", "genre", GENRE_COLUMNS.values())
        frame = self.per_genre.sort_values(["support", "genre"], ascending=[False, True])
        for record in frame.to_dict("records"):
            table.add_row(Text(record["genre"]), *(format_number(record[column]) for column in GENRE_COLUMNS))
        return table


def figures_of(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics at the chosen thresholds, from the result of `Evaluation.to_dict`."""
    chosen: dict[str, Any] = evaluation["thresholds"][-1]["metrics"]
    return {"loss": evaluation["loss"], **evaluation["ranking"], **chosen, **evaluation.get("own", {})}


def own_metrics(place: str | None, options: Mapping[str, Any], where: str = "metric.options") -> list[Metric]:
    """Return the metric of the user at ``place`` (MODULE:CLASS) as a list. Empty if ``place`` is None.

    The object is called with (N, G) bool targets, (N, G) bool predicted labels and (N, G) float64 probabilities, and
    returns a number. NaN means undefined. If it has an argument ``weights``, it gets the (N,) sample weights, or None.
    For a bootstrap resample, each sample is repeated as often as it was drawn. Raises UserError if the call fails or
    returns something else, or if a known metric has the same name.
    """
    if place is None:
        return []
    own = make("metric", place, options, where)
    name = place.rpartition(":")[2]
    if name in METRICS:
        raise UserError(
            "option-value", f"the metric {place} has the name of a known metric: give the class another name"
        )

    weighted = explained(f"the metric {place}", lambda: "weights" in inspect.signature(own).parameters)

    def one(outcome: Outcome) -> float:
        arrays, weights = (
            (outcome.truth, outcome.named, outcome.scores),
            {"weights": outcome.weights} if weighted else {},
        )
        found: float = explained(f"the metric {place}", lambda: float(own(*arrays, **weights)))
        if math.isinf(found):
            raise UserError("option-value", f"the metric {place} returned {found}: it must return a number, or NaN")
        return found

    def value(weighed: Weighed) -> FloatArray:
        if weighed.weightings is None:
            return np.array([one(weighed.outcome)])
        resamples = (np.repeat(np.arange(len(counts)), counts) for counts in weighed.weightings.astype(np.int64))
        return np.array([one(weighed.outcome.rows(rows)) for rows in resamples])

    return [Metric(name, name, value, "own", better=getattr(type(own), "better", None), top=math.inf)]


def evaluate_arrays(
    truth: BoolArray,
    scores: FloatArray,
    genres: Sequence[str],
    train_prevalence: FloatArray,
    decisions: Decisions,
    thresholds: Sequence[float] = FIXED_THRESHOLDS,
    *,
    split: str,
    shard_set: str,
    own: Sequence[Metric] = (),
    weights: FloatArray | None = None,
) -> Evaluation:
    """Compute the metrics of (N, G) logits ``scores`` for (N, G) targets, and the metrics of the baselines.

    train_prevalence (G,): share of positives in the training set. The result has a row for each fixed threshold in
    ``thresholds``, then for the best single threshold of validation, and last for the thresholds of ``decisions``. The
    row of the single threshold is left out if all genres use it. The prevalence baseline never has this row. ``own``:
    metrics of the user, which do not get sample weights. ``weights`` (N,): sample weights, or None if all samples have
    the same weight.
    """
    outcome = Outcome(truth, scores=decisions.probabilities(scores), weights=weights)
    calibration = _calibration(truth, scores, decisions, weights)

    fixed: list[tuple[str, ArrayLike]] = [(threshold_label(value), value) for value in thresholds]
    single, chosen = _validation_thresholds(decisions)
    return Evaluation(
        split=split,
        shard_set=shard_set,
        num_samples=len(truth),
        genres=list(genres),
        decisions=decisions.fingerprint,
        loss=calibration["before"]["loss"],
        ranking=values(outcome, "ranking"),
        calibration=calibration,
        thresholds=[
            ThresholdRow(label, np.asarray(value).tolist(), values(outcome.at(value), "decisions"))
            for label, value in [*fixed, *single, chosen]
        ],
        baselines=baselines(train_prevalence, truth, [*fixed, chosen], [k for k in TOP_K if k <= len(genres)], weights),
        per_genre=per_label_table(outcome, decisions.thresholds, genres),
        own={metric.key: metric.value(Weighed(outcome.at(decisions.thresholds))) for metric in own},
        weighted=weights is not None,
    )


def _validation_thresholds(decisions: Decisions) -> tuple[list[tuple[str, ArrayLike]], tuple[str, ArrayLike]]:
    if not decisions.per_label:  # the single threshold is the chosen threshold, so it has no row of its own
        value = float(decisions.thresholds[0])
        return [], (f"chosen {threshold_label(value)}", value)
    # The label has the name of the split, because another threshold may be best on the evaluated split.
    split, value = decisions.chosen_on.get("split", "val"), decisions.global_threshold
    return [(f"single of {split} {threshold_label(value)}", value)], (f"chosen{PER_GENRE}", decisions.thresholds)


def _calibration(
    truth: BoolArray, scores: FloatArray, decisions: Decisions, weights: FloatArray | None
) -> dict[str, Any]:
    def results(logits: FloatArray) -> dict[str, Any]:
        loss = mean_element(cross_entropy(logits, truth), weights)
        return {"loss": loss, **reliability(truth, sigmoid(logits), weights)}

    return {"method": decisions.calibration, "before": results(scores), "after": results(decisions.logits(scores))}


def train_prevalence(manifest: Manifest) -> np.ndarray:
    """Return the (G,) shares of training samples with each genre, for the baselines."""
    summary = manifest.split_summary()["train"]
    return np.array([summary["genre_counts"][genre] for genre in manifest.genres]) / summary["samples"]
