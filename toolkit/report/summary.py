"""The figures of a report: the headline with its intervals, and what it means beside baselines and another run.

Everything is measured on the same bootstrap resamples (toolkit/metrics/bootstrap.py), so that each difference has an
interval.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from shards.visuals.templates import signed
from toolkit.evaluation.results import TOP_K
from toolkit.metrics.baselines import always_top_k
from toolkit.metrics.bootstrap import COVERAGE, Difference, Draws, bootstrap, confidence_intervals, paired_difference
from toolkit.metrics.table import METRICS, PLACES, Better
from toolkit.metrics.weighted import Outcome
from toolkit.report.inputs import ReportInputs

#: What baselines and runs are compared in, of probabilities and of decisions.
DECIDING = [metric.key for metric in PLACES["report, baselines"] if metric.group == "decisions"]
RANKING = [metric.key for metric in PLACES["report, baselines"] if metric.group != "decisions"]
CERTAIN_WORDS, UNCERTAIN_WORDS = "real", "not distinguishable"

MODEL, OTHER, PREVALENCE, SINGLE = "model", "other", "prevalence", "single threshold"


def resampled(inputs: ReportInputs, rounds: int) -> dict[str, Draws]:
    """Everyone on the same resamples: the model, the other run, the baselines, the model at a single threshold."""
    model, truth = inputs.model, inputs.targets
    everyone = {MODEL: Outcome(truth, model.named, model.probabilities)}
    if inputs.other is not None:
        everyone[OTHER] = Outcome(truth, inputs.other.named, inputs.other.probabilities)
    # Prevalence ranks and is scored; what it would name at some threshold is always-top-k for some k.
    constant = np.broadcast_to(inputs.train_prevalence, truth.shape)
    everyone[PREVALENCE] = Outcome(truth, np.zeros_like(truth), constant)
    for k in TOP_K:
        if k <= truth.shape[1]:
            everyone[f"top-{k}"] = Outcome(truth, always_top_k(truth.shape, inputs.train_prevalence, k))
    if model.decisions.per_genre:
        everyone[SINGLE] = Outcome(truth, scores=model.probabilities).at(model.decisions.global_threshold)
    return bootstrap(everyone, rounds, inputs.units)


def headline(draws: dict[str, Draws]) -> list[dict[str, Any]]:
    """One row per metric: the model's value and interval."""
    intervals = confidence_intervals(draws[MODEL])
    return [
        {"metric": metric.key, "name": metric.label, **intervals[metric.key]._asdict()} for metric in PLACES["report"]
    ]


def comparisons(inputs: ReportInputs, draws: dict[str, Draws]) -> list[dict[str, Any]]:
    """What the model is set beside: baselines, its own single threshold, another run."""
    strongest = {metric: _strongest(draws, metric) for metric in DECIDING}
    baseline = [_row(draws, PREVALENCE, metric, "label prevalence") for metric in RANKING]
    baseline += [_row(draws, key, metric, f"always {key}") for metric, key in strongest.items()]
    found = [{"kind": "baselines", "name": "baselines", "rows": baseline}]
    if SINGLE in draws:
        rows = [_row(draws, SINGLE, metric, "") for metric in DECIDING]
        found.append({"kind": "single", "name": "one threshold for all genres", "rows": rows})
    if inputs.other is not None:
        rows = [_row(draws, OTHER, metric.key, "") for metric in PLACES["report"]]
        found.append({"kind": "run", "name": inputs.other.name, "rows": rows})
    return found


def _strongest(draws: dict[str, Draws], metric: str) -> str:
    """The key of the always-top-k that does best."""
    keys = [key for key in draws if key.startswith("top-")]
    return max(keys, key=lambda key: draws[key].plain.metrics[metric][0])


def _row(draws: dict[str, Draws], key: str, metric: str, beside: str) -> dict[str, Any]:
    """``beside`` names who is meant where that is not the same for the whole table."""
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
        "words": in_words(difference, METRICS[metric].better),
    }


def in_words(difference: Difference, better: Better) -> str:
    """``real: better``, ``real: worse``, ``not distinguishable``; of a metric that has no better, ``real``."""
    if difference.value is None or not difference.real:
        return UNCERTAIN_WORDS
    if better is None:
        return CERTAIN_WORDS
    return f"{CERTAIN_WORDS}: {'better' if (difference.value > 0.0) == (better == 'higher') else 'worse'}"


def verdict(inputs: ReportInputs, rows: Iterable[dict[str, Any]], compared: list[dict[str, Any]]) -> dict[str, Any]:
    """The finding in one sentence, and the sentences that go with it."""
    values = {row["metric"]: row for row in rows}
    beside = {row["metric"]: row for row in compared[0]["rows"]}
    m_ap, chance = values["mAP"], beside["mAP"]
    posters = f"{len(inputs.targets):,} {inputs.split} posters"
    if m_ap["value"] is None:
        sentence = f"None of {posters} has a genre of this model, so nothing can be said of it."
        return {"sentence": sentence, "details": []}
    times = f"{m_ap['value'] / chance['theirs']:.1f} times what" if chance["theirs"] > 0 else "against the 0 that"
    ranked = f"mAP {m_ap['value']:.3f} on {posters}, {times} label prevalence gives"
    sentence = f"{ranked}; beside always naming the commonest genres, {_decided(beside)}."
    details = [
        f"The {COVERAGE:.0%} interval of mAP is {_span(m_ap)}; of micro-F1 ({values['micro_f1']['value']:.3f}) "
        f"{_span(values['micro_f1'])}; of macro-F1 ({values['macro_f1']['value']:.3f}) {_span(values['macro_f1'])}."
    ]
    return {"sentence": sentence, "details": details + [_in_short(comparison) for comparison in compared[1:]]}


def _decided(beside: dict[str, dict[str, Any]]) -> str:
    """``micro-F1 (0.61 against 0.59) is better and macro-F1 (0.10 against 0.08) is not distinguishable``."""
    parts = []
    for metric in ("micro_f1", "macro_f1"):
        row = beside[metric]
        words = row["words"].removeprefix(f"{CERTAIN_WORDS}: ")
        parts.append(f"{row['name']} ({row['mine']:.3f} against {row['theirs']:.3f}) is {words}")
    return " and ".join(parts)


def _in_short(comparison: dict[str, Any]) -> str:
    """One sentence about a comparison: which of the main metrics really differ."""
    groups: dict[str, list[str]] = {}
    for row in comparison["rows"]:
        metric = METRICS[row["metric"]]
        if metric in PLACES["report, in short"]:
            words = row["words"].removeprefix(f"{CERTAIN_WORDS}: ")
            by = "undefined" if row["difference"] is None else signed(row["difference"])
            groups.setdefault(words, []).append(f"{metric.word} ({by})")
    parts = [f"{words}: {', '.join(names)}" for words, names in groups.items()]
    return f"Beside {comparison['name']}, {'; '.join(parts)}."


def _span(row: dict[str, Any]) -> str:
    return f"{row['low']:.3f} to {row['high']:.3f}"
