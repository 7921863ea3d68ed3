"""Build all contents of a report from its inputs: numbers, plots and example posters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from shards.versions import library_versions
from toolkit.evaluation.tables import json_types
from toolkit.metrics.bootstrap import ROUNDS, SEED
from toolkit.metrics.calibration_error import reliability
from toolkit.metrics.helpers import clipped_cross_entropy, cross_entropy, mean_element
from toolkit.report.advice import advice
from toolkit.report.cooccurrence import Substitutions, cooccurrence, pairs
from toolkit.report.examples import Example, Group, choose_groups, error_group
from toolkit.report.inputs import ModelOutputs, ReportInputs
from toolkit.report.label_errors import LabelError, find_label_errors
from toolkit.report.overview import drawn_posters, strengths, tiles
from toolkit.report.per_label import FEW_POSITIVES, genre_comparison, genre_rows, notes
from toolkit.report.plots.common import Plot, fonts_for
from toolkit.report.plots.matrix_plots import cooccurrence_plot, substitution_plot
from toolkit.report.plots.reliability_plots import MIN_POSITIVES, genre_bins, genre_reliability_plot, reliability_plot
from toolkit.report.plots.threshold_plots import precision_recall_plot, support_plot, sweep, sweep_plot
from toolkit.report.plots.training_curves import read_training_curves, training_curve_plots
from toolkit.report.summary import MODEL, comparisons, headline, own_rows, resampled, verdict

#: Maximum numbers of genres: for precision-recall curves, for a matrix, and for reliability diagrams.
MAX_CURVES, MAX_MATRIX_GENRES, MAX_DIAGRAMS = 60, 40, 24
LIBRARIES = ("torch", "torchvision", "timm", "accelerate", "scikit-learn", "matplotlib", "cleanlab")


@dataclass(frozen=True)
class Report:
    """All contents of a report."""

    numbers: dict[str, Any]
    """The contents of metrics.json."""
    plots: dict[str, Plot]
    """Plots of all genres together, by the name of the plot, in the order of the page."""
    curves: list[tuple[Plot, dict[str, Any]]]
    """Precision-recall curves of some genres, each with the row of the genre in ``numbers["per_genre"]``."""
    diagrams: list[tuple[Plot, dict[str, Any]]]
    """Reliability diagrams of some genres, each with the row of the genre in ``numbers["per_genre"]``."""
    training_plots: list[Plot]
    drawn: list[Example]
    """The posters of the first screen."""
    groups: list[Group]
    errors: Group | None
    """None if label errors were not searched."""
    config: str
    """Configuration of the training run as YAML. Empty if unknown."""


def build_report(inputs: ReportInputs, *, label_errors: bool = True, rounds: int = ROUNDS) -> Report:
    """Compute all contents of a report. Raises UserError if ``label_errors`` is true and cleanlab is missing."""
    draws = resampled(inputs, rounds)
    rows, compared = headline(draws) + own_rows(inputs, rounds), comparisons(inputs, draws)
    genres = genre_rows(inputs, draws)
    substitutions = Substitutions(inputs.targets, inputs.model.named)
    swept = sweep(inputs.outcome(scores=inputs.model.probabilities))
    found = find_label_errors(inputs.targets, inputs.model.probabilities, inputs.genres) if label_errors else None
    groups = choose_groups(inputs)
    training = read_training_curves(inputs.model.folder.path)
    numbers = json_types(
        {
            "split": inputs.split,
            "num_samples": len(inputs.targets),
            "genres": inputs.genres,
            "macro_genres": int(inputs.targets.any(axis=0).sum()),
            "rounds": rounds,
            "seed": SEED,
            "verdict": verdict(inputs, rows, compared),
            "notes": notes(inputs, genres),
            "headline": rows,
            "comparisons": compared,
            "per_genre": genres,
            "genre_comparison": genre_comparison(inputs, draws),
            "threshold_sweep": swept,
            "calibration": {**calibration(inputs), "genres": genre_calibration(inputs)},
            "pairs": pairs(inputs.targets, inputs.model.named, inputs.genres),
            "together": cooccurrence(inputs.targets),
            "instead": substitutions.rows(inputs.genres),
            "times_usual": substitutions.times_usual,
            "label_errors": _error_numbers(inputs, found),
            "posters": {group.key: [example.facts() for example in group.examples] for group in groups},
            "training": training,
            "facts": facts(inputs),
            "made": inputs.made,
            "overview": {"tiles": tiles(inputs, draws, rounds), **strengths(genres, draws[MODEL])},
        }
    )
    numbers["overview"]["advice"] = advice(numbers)
    with fonts_for(inputs.genres, "the plots"):
        return Report(
            numbers,
            _plots(inputs, numbers, substitutions),
            _curves(inputs, numbers["per_genre"]),
            _diagrams(inputs, numbers),
            training_curve_plots(training, inputs.model.ours.get("epoch")) if training else [],
            drawn_posters(inputs),
            groups,
            None if found is None else error_group(inputs, found),
            _config(inputs.model),
        )


def calibration(inputs: ReportInputs) -> dict[str, Any]:
    """Return the loss, calibration errors and reliability curve of the model, before and after calibration."""
    model, targets, weights = inputs.model, inputs.targets, inputs.weights
    before = {"loss": mean_element(cross_entropy(model.logits, targets), weights)}
    after = {"loss": mean_element(clipped_cross_entropy(targets, model.probabilities), weights)}
    return {
        "method": model.decisions.calibration,
        "before": before | reliability(targets, model.uncalibrated, weights),
        "after": after | reliability(targets, model.probabilities, weights),
    }


def genre_calibration(inputs: ReportInputs) -> dict[str, list[dict[str, Any]]]:
    """Return the `genre_bins` of the most common genres. A genre needs `MIN_POSITIVES` positives."""
    model, targets = inputs.model, inputs.targets
    return {
        inputs.genres[g]: genre_bins(targets[:, g], model.uncalibrated[:, g], model.probabilities[:, g])
        for g in _most_common(inputs, MAX_DIAGRAMS)
        if targets[:, g].sum() >= MIN_POSITIVES
    }


def facts(inputs: ReportInputs) -> dict[str, Any]:
    """Return descriptions of the models, the shard set, the command and the library versions, for the page."""
    return {
        **_facts_of(inputs, inputs.model),
        "shard_set": inputs.shard_set,
        "command": inputs.command,
        "versions": library_versions(LIBRARIES),
        "other": None if inputs.other is None else _facts_of(inputs, inputs.other),
    }


def _facts_of(inputs: ReportInputs, outputs: ModelOutputs) -> dict[str, Any]:
    return {
        "model": outputs.name,
        "path": str(outputs.folder.path),
        "architecture": outputs.folder.config.get("architecture"),
        "weights": outputs.folder.fingerprint,
        "saved": outputs.ours.get("weights"),
        "epoch": outputs.ours.get("epoch"),
        "trained_on": outputs.ours.get("shard_set"),
        "trained_elsewhere": inputs.may_have_seen(outputs),
        "thresholds": outputs.decisions.source,
        "decisions": outputs.decisions.fingerprint,
    }


def _config(outputs: ModelOutputs) -> str:
    config = outputs.ours.get("training_config")
    return yaml.dump(config, Dumper=_ShortLists, sort_keys=False, allow_unicode=True) if config else ""


class _ShortLists(yaml.SafeDumper):
    """A YAML writer that puts each list on one line, as in the config files."""


_ShortLists.add_representer(
    list, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
)


def _error_numbers(inputs: ReportInputs, found: list[LabelError] | None) -> dict[str, Any] | None:
    if found is None:
        return None
    rows = [
        {"id": inputs.ids[error.sample], "score": error.score, **vars(flag), "genres": inputs.genres_of(error.sample)}
        for error in found
        for flag in error.flags
    ]
    return {"samples": len(found), "rows": rows}


def _plots(inputs: ReportInputs, numbers: dict[str, Any], substitutions: Substitutions) -> dict[str, Plot]:
    model, shown = inputs.model, _most_common(inputs, MAX_MATRIX_GENRES)
    block, names = np.ix_(shown, shown), [inputs.genres[column] for column in shown]
    reached = {row["metric"]: row["value"] for row in numbers["headline"]}
    calibrated = numbers["calibration"]["after"] if model.calibrated else None
    plots = [
        support_plot(numbers["per_genre"]),
        sweep_plot(numbers["threshold_sweep"], model.decisions, reached),
        reliability_plot(numbers["calibration"]["before"], calibrated),
        cooccurrence_plot(cooccurrence(inputs.targets)[block], names),
        substitution_plot(substitutions.times_usual[block], names),
    ]
    return {plot.name: plot for plot in plots}


def _curves(inputs: ReportInputs, rows: Sequence[dict[str, Any]]) -> list[tuple[Plot, dict[str, Any]]]:
    found = []
    for number, column in enumerate(_most_common(inputs, MAX_CURVES), start=1):
        row, genre = rows[column], inputs.genres[column]
        if row["support"] < FEW_POSITIVES:
            continue
        point = None if row["precision"] is None else (row["recall"], row["precision"])
        truth, scores = inputs.targets[:, column], inputs.model.probabilities[:, column]
        name = _plot_name("precision-recall", number, genre)
        found.append((precision_recall_plot(name, genre, truth, scores, point, row["ap"]), row))
    return found


def _diagrams(inputs: ReportInputs, numbers: dict[str, Any]) -> list[tuple[Plot, dict[str, Any]]]:
    rows = {row["genre"]: row for row in numbers["per_genre"]}
    found = []
    for number, (genre, bins) in enumerate(numbers["calibration"]["genres"].items(), start=1):
        name = _plot_name("reliability", number, genre)
        found.append((genre_reliability_plot(name, genre, bins, calibrated=inputs.model.calibrated), rows[genre]))
    return found


def _plot_name(kind: str, number: int, genre: str) -> str:
    letters = "".join(c if c.isascii() and c.isalnum() else "-" for c in genre)[:40].lower()
    return f"{kind}-{number:02d}-{letters}"


def _most_common(inputs: ReportInputs, limit: int) -> list[int]:
    """Return the columns of the most common genres. Genres with equal support are in alphabetical order."""
    support = inputs.targets.sum(axis=0)
    order = sorted(range(len(support)), key=lambda column: (-support[column], inputs.genres[column]))
    return order[:limit]
