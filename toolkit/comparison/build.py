"""Compute the contents of a comparison page: metrics with differences, the choice of a model, and disputed posters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from toolkit.comparison.choice import Choice, choose
from toolkit.comparison.disagreement import most_disputed
from toolkit.comparison.plots import cost_plot
from toolkit.comparison.speed import Cost
from toolkit.evaluation.tables import json_types
from toolkit.metrics.bootstrap import (
    ROUNDS,
    SEED,
    Difference,
    Draws,
    bootstrap,
    confidence_intervals,
    paired_difference,
)
from toolkit.metrics.judgement import Judgement, judged
from toolkit.metrics.registry import METRICS, PLACES
from toolkit.report.examples import Example, example_of
from toolkit.report.inputs import ReportInputs
from toolkit.report.plots.common import Plot

#: Maximum number of disputed posters on the page.
POSTERS = 12
#: Metrics whose differences are judged. A correction for more differences would hide small ones.
JUDGED = [metric.key for metric in PLACES["report, in short"]]
#: Metric that chooses the model. It depends neither on thresholds nor on calibration.
CHOSEN_BY = "mAP"


@dataclass(frozen=True)
class Disputed:
    """A poster on which the models disagree."""

    value: float
    """Disagreement, see disagreement.py."""
    said: list[Example]
    """The poster with the genres of each model, in the order of the models."""


@dataclass(frozen=True)
class Comparison:
    """All contents of the page."""

    numbers: dict[str, Any]
    """The contents of compare.json."""
    plot: Plot
    disputed: list[Disputed]


def build_comparison(
    each: Sequence[ReportInputs], costs: Sequence[Cost], measured: dict[str, Any], rounds: int = ROUNDS
) -> Comparison:
    """Compute all contents.

    each: for each model, the inputs of a report. All have the same samples. The first model is the reference.
    measured: see `toolkit.comparison.speed.measured_on`.
    """
    first = each[0]
    outcomes = {
        str(at): inputs.outcome(inputs.model.named, inputs.model.probabilities) for at, inputs in enumerate(each)
    }
    draws = list(bootstrap(outcomes, rounds, first.units).values())
    tables, choice = _judge(draws, [inputs.may_have_seen(inputs.model) for inputs in each], costs)
    models = [_model(inputs, cost, table) for inputs, cost, table in zip(each, costs, tables, strict=True)]
    named, probabilities = ([getattr(i.model, name) for i in each] for name in ("named", "probabilities"))
    disputed = [
        Disputed(value, [example_of(inputs, row, set()) for inputs in each])
        for row, value in most_disputed(named, probabilities, first.units, POSTERS)
    ]
    numbers = {
        "split": first.split,
        "num_samples": len(first.targets),
        "genres": first.genres,
        "rounds": rounds,
        "seed": SEED,
        "models": models,
        "choice": asdict(choice),
        "measured": measured,
        "posters": [
            {"id": poster.said[0].id, "true": poster.said[0].true, "disagreement": poster.value}
            | {"named": {i.model.name: e.facts()["named"] for i, e in zip(each, poster.said, strict=True)}}
            for poster in disputed
        ],
        "shard_set": first.shard_set,
        "command": first.command,
        "made": first.made,
    }
    return Comparison(json_types(numbers), cost_plot(models, CHOSEN_BY, METRICS[CHOSEN_BY].label), disputed)


def _judge(
    draws: Sequence[Draws], seen: Sequence[bool], costs: Sequence[Cost]
) -> tuple[list[list[dict[str, Any]]], Choice]:
    """Return the rows of metrics of each model, and the choice.

    One correction covers all differences of JUDGED to the first model, and the differences that the choice needs.
    """
    intervals = [confidence_intervals(one) for one in draws]
    usable = [at for at, values in enumerate(intervals) if values[CHOSEN_BY].value is not None]
    fair = [at for at in usable if not seen[at]] or usable
    best = max(fair, key=lambda at: intervals[at][CHOSEN_BY].value or 0.0, default=None)
    to_first = [paired_difference(one, draws[0]) for one in draws]
    wanted = [(at, key, to_first[at][key]) for at in range(1, len(draws)) for key in JUDGED]
    # If the best model is the first one, or is compared with the first one, the table has the difference already.
    others = [at for at in fair if best is not None and best != 0 and at not in (0, best)]
    wanted += [(at, "best", paired_difference(draws[best], draws[at])[CHOSEN_BY]) for at in others if best is not None]
    directions = [METRICS[CHOSEN_BY if key == "best" else key].better for _, key, _ in wanted]
    words = judged([difference for _, _, difference in wanted], directions)
    found = {(at, key): judgement for (at, key, _), judgement in zip(wanted, words, strict=True)}
    tables = [
        [_row(metric.key, values[metric.key]._asdict(), to_first[at][metric.key], found.get((at, metric.key)), at)
         for metric in PLACES["report"]]
        for at, values in enumerate(intervals)
    ]  # fmt: skip
    against = {at: found[at, "best"].words for at in others}
    if best == 0:
        against = {at: found[at, CHOSEN_BY].words for at in fair if at != 0}
    elif best is not None and 0 in fair:
        against[0] = found[best, CHOSEN_BY].words
    return tables, choose(best, against, [cost.images_per_s for cost in costs])


def _row(
    key: str, value: dict[str, Any], difference: Difference, judgement: Judgement | None, at: int
) -> dict[str, Any]:
    """Return a metric of a model. Differences are None for the first model, and words are empty if not judged."""
    row = {"metric": key, "name": METRICS[key].label, **value}
    if at == 0:
        return {**row, "difference": None, "difference_low": None, "difference_high": None, "words": "", "p_holm": None}
    words, p = judgement or ("", None)
    span = {"difference": difference.value, "difference_low": difference.low, "difference_high": difference.high}
    return {**row, **span, "words": words, "p_holm": p}


def _model(inputs: ReportInputs, cost: Cost, rows: list[dict[str, Any]]) -> dict[str, Any]:
    folder, ours = inputs.model.folder, inputs.model.ours
    return {
        "name": inputs.model.name,
        "path": str(folder.path),
        "architecture": folder.config["architecture"],
        "image_size": folder.preprocessing.image_size,
        "weights_sha256": ours["weights_sha256"],
        "trained_on": ours.get("shard_set"),
        "may_have_seen": inputs.may_have_seen(inputs.model),
        "tuned_here": inputs.model.decisions.chosen_on.get("split", "val") == inputs.split,
        **asdict(cost),
        "metrics": {row["metric"]: row for row in rows},
    }
