"""Main metrics of a report with intervals, and comparisons with baselines and with another run.

All models and baselines are measured on the same bootstrap resamples (toolkit/metrics/bootstrap.py), so each difference
between two of them has an interval.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from shards.errors import UserError
from shards.visuals.templates import signed
from toolkit.evaluation.results import TOP_K
from toolkit.metrics.baselines import always_top_k
from toolkit.metrics.bootstrap import (
    COVERAGE,
    OWN_ROUNDS,
    Difference,
    Draws,
    Interval,
    bootstrap,
    confidence_intervals,
    interval_of,
    paired_difference,
)
from toolkit.metrics.judgement import SEEN, judged
from toolkit.metrics.registry import METRICS, PLACES, Better
from toolkit.metrics.weighted import Weighed
from toolkit.report.inputs import ReportInputs

log = logging.getLogger(__name__)

#: Metrics of the comparison with baselines: metrics of decisions, and metrics of probabilities.
DECISION_METRICS = [metric.key for metric in PLACES["report, baselines"] if metric.group == "decisions"]
PROBABILITY_METRICS = [metric.key for metric in PLACES["report, baselines"] if metric.group != "decisions"]

MODEL, OTHER, PREVALENCE, SINGLE = "model", "other", "prevalence", "single threshold"


def resampled(inputs: ReportInputs, rounds: int) -> dict[str, Draws]:
    """Measure the model and its references (baselines, one threshold, --compare) on the same bootstrap resamples."""
    model, truth = inputs.model, inputs.targets
    outcomes = {MODEL: inputs.outcome(model.named, model.probabilities)}
    if inputs.other is not None:
        outcomes[OTHER] = inputs.outcome(inputs.other.named, inputs.other.probabilities)
    # Only probabilities of the prevalence baseline are used. Its decisions would equal the decisions of always-top-k.
    constant = np.broadcast_to(inputs.train_prevalence, truth.shape)
    outcomes[PREVALENCE] = inputs.outcome(np.zeros_like(truth), constant)
    for k in TOP_K:
        if k <= truth.shape[1]:
            outcomes[f"top-{k}"] = inputs.outcome(always_top_k(truth.shape, inputs.train_prevalence, k))
    if model.decisions.per_label:
        outcomes[SINGLE] = inputs.outcome(scores=model.probabilities).at(model.decisions.global_threshold)
    return bootstrap(outcomes, rounds, inputs.units)


def headline(draws: dict[str, Draws]) -> list[dict[str, Any]]:
    """Return one row per metric with the value and the interval of the model."""
    intervals = confidence_intervals(draws[MODEL])
    return [
        {"metric": metric.key, "name": metric.label, **intervals[metric.key]._asdict()} for metric in PLACES["report"]
    ]


def own_rows(inputs: ReportInputs, rounds: int) -> list[dict[str, Any]]:
    """Return one row like those of `headline` for each metric of the user. A row without an interval has no bounds."""
    outcome, found = inputs.outcome(inputs.model.named, inputs.model.probabilities), []
    for metric in inputs.own:
        interval = Interval(metric.value(Weighed(outcome)), None, None)
        try:
            interval = interval_of(metric, outcome, min(rounds, OWN_ROUNDS), inputs.units)
        except UserError as error:  # the user's code may need, for example, both classes of each genre
            log.warning("%s has no interval in the report, because it fails on a resample: %s", metric.label, error)
        found.append({"metric": metric.key, "name": metric.label, **interval._asdict()})
    return found


def comparisons(inputs: ReportInputs, draws: dict[str, Draws]) -> list[dict[str, Any]]:
    """Compare the model with baselines, with one threshold for all genres, and with the --compare model."""
    strongest = {metric: _strongest(draws, metric) for metric in DECISION_METRICS}
    baseline = [_row(draws, PREVALENCE, metric, "label prevalence") for metric in PROBABILITY_METRICS]
    baseline += [_row(draws, key, metric, f"always {key}") for metric, key in strongest.items()]
    tables = [("baselines", "baselines", baseline)]
    if SINGLE in draws:
        rows = [_row(draws, SINGLE, metric, "") for metric in DECISION_METRICS]
        tables.append(("single", "one threshold for all genres", rows))
    if inputs.other is not None:
        rows = [_row(draws, OTHER, metric.key, "") for metric in PLACES["report"]]
        tables.append(("run", inputs.other.name, rows))
    return [
        {"kind": kind, "name": name, "rows": with_words(rows, [METRICS[row["metric"]].better for row in rows])}
        for kind, name, rows in tables
    ]


def _strongest(draws: dict[str, Draws], metric: str) -> str:
    keys = [key for key in draws if key.startswith("top-")]
    return max(keys, key=lambda key: draws[key].plain.metrics[metric][0])


def _row(draws: dict[str, Draws], key: str, metric: str, beside: str) -> dict[str, Any]:
    """Return one row of a comparison table. ``beside`` is the name of the baseline, or an empty string."""
    difference = paired_difference(draws[MODEL], draws[key])[metric]
    return {
        "metric": metric,
        "name": METRICS[metric].label,
        "beside": beside,
        "mine": float(draws[MODEL].plain.metrics[metric][0]),
        "theirs": float(draws[key].plain.metrics[metric][0]),
        "difference": difference.value,
        "low": difference.low,
        "high": difference.high,
        "p": difference.p,
    }


def with_words(rows: list[dict[str, Any]], better: Sequence[Better]) -> list[dict[str, Any]]:
    """Add the keys ``words`` and ``p_holm`` to all rows of one table of differences. Return the rows."""
    differences = [Difference(row["difference"], row["low"], row["high"], row["p"]) for row in rows]
    for row, judgement in zip(rows, judged(differences, better), strict=True):
        row["words"], row["p_holm"] = judgement
    return rows


def verdict(inputs: ReportInputs, rows: Iterable[dict[str, Any]], compared: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the main result in one sentence, and sentences with details."""
    values = {row["metric"]: row for row in rows}
    beside = {row["metric"]: row for row in compared[0]["rows"]}
    m_ap, chance = values["mAP"], beside["mAP"]
    posters = f"{len(inputs.targets):,} {inputs.split} posters"
    if m_ap["value"] is None:
        sentence = f"None of {posters} has a genre of this model, so no metric can be computed."
        return {"sentence": sentence, "details": []}
    times = f"{m_ap['value'] / chance['theirs']:.1f} times the mAP" if chance["theirs"] > 0 else "against 0"
    ranked = f"mAP {m_ap['value']:.3f} on {posters}, {times} of the label-prevalence baseline"
    sentence = f"{ranked}. Compared with always naming the most common genres, {_decided(beside)}."
    details = [
        f"{COVERAGE:.0%} intervals: mAP {_span(m_ap)}; micro-F1 ({values['micro_f1']['value']:.3f}) "
        f"{_span(values['micro_f1'])}; macro-F1 ({values['macro_f1']['value']:.3f}) {_span(values['macro_f1'])}."
    ]
    return {"sentence": sentence, "details": details + [_in_short(comparison) for comparison in compared[1:]]}


def _decided(beside: dict[str, dict[str, Any]]) -> str:
    """Return text such as ``micro-F1 (0.614 against 0.593) is better and macro-F1 (0.081 against 0.102) is worse``."""
    parts = []
    for metric in ("micro_f1", "macro_f1"):
        row = beside[metric]
        result = f"is {row['words']}" if row["words"] in SEEN else f"has {row['words']}"
        parts.append(f"{row['name']} ({row['mine']:.3f} against {row['theirs']:.3f}) {result}")
    return " and ".join(parts)


def _in_short(comparison: dict[str, Any]) -> str:
    """Return one sentence about a comparison, with the result for each main metric."""
    groups: dict[str, list[str]] = {}
    for row in comparison["rows"]:
        metric = METRICS[row["metric"]]
        if metric in PLACES["report, in short"]:
            by = "undefined" if row["difference"] is None else signed(row["difference"])
            groups.setdefault(row["words"], []).append(f"{metric.word} ({by})")
    parts = [f"{words}: {', '.join(names)}" for words, names in groups.items()]
    return f"Compared with {comparison['name']}, {'; '.join(parts)}."


def _span(row: dict[str, Any]) -> str:
    return f"{row['low']:.3f} to {row['high']:.3f}"
