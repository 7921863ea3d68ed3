"""Rows of the tables with metrics per genre, and the notes of a report."""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.metrics.bootstrap import Draws, label_differences, label_intervals
from toolkit.metrics.calibration_error import label_calibration_errors
from toolkit.metrics.registry import per_label_table
from toolkit.report.inputs import ReportInputs
from toolkit.report.summary import MODEL, OTHER, with_words

#: With fewer positive samples than this, the metrics of a genre are mostly chance.
FEW_POSITIVES = 10
#: Result for genres below `FEW_POSITIVES` positives. With one positive, half of the 95% intervals miss the true value.
TOO_FEW = "too few posters"
#: Maximum number of genres that a note lists.
MAX_LISTED = 8


def genre_rows(inputs: ReportInputs, draws: dict[str, Draws]) -> list[dict[str, Any]]:
    """Return one row of metrics per genre, in the order of the model. An undefined value is None."""
    model, plain = inputs.model, draws[MODEL]
    outcome = inputs.outcome(scores=model.probabilities)
    table = per_label_table(outcome, model.decisions.thresholds, inputs.genres)
    rows: list[dict[Any, Any]] = table.to_dict("records")
    uncalibrated = label_calibration_errors(inputs.targets, model.uncalibrated, inputs.weights)
    ap, f1 = label_intervals(plain, "ap"), label_intervals(plain, "f1")
    for column, row in enumerate(rows):
        row["train_prevalence"] = float(inputs.train_prevalence[column])
        row["named"] = int(model.named[:, column].sum())
        row["ap_low"], row["ap_high"] = ap[column].low, ap[column].high
        row["f1_low"], row["f1_high"] = f1[column].low, f1[column].high
        row["ece"] = float(plain.plain.per_label["ece"][0, column])
        row["ece_before"] = float(uncalibrated[column])
    return rows


def genre_comparison(inputs: ReportInputs, draws: dict[str, Draws]) -> list[dict[str, Any]]:
    """Return one row per genre with AP and F1 of the model and of the --compare model. No rows without --compare."""
    if inputs.other is None:
        return []
    support = inputs.targets.sum(axis=0)
    rows: list[dict[str, Any]] = [
        {"genre": genre, "support": int(count)} for genre, count in zip(inputs.genres, support, strict=True)
    ]
    for metric in ("ap", "f1"):
        model, other = (draws[key].plain.per_label[metric][0] for key in (MODEL, OTHER))
        for column, difference in enumerate(label_differences(draws[MODEL], draws[OTHER], metric)):
            values = {"mine": float(model[column]), "theirs": float(other[column])}
            value, low, high, p = difference
            rows[column][metric] = {**values, "difference": value, "low": low, "high": high, "p": p, "words": TOO_FEW}
    # One table: AP and F1 of the genres that have enough positives.
    enough = [row[metric] for row in rows for metric in ("ap", "f1") if row["support"] >= FEW_POSITIVES]
    with_words(enough, ["higher"] * len(enough))
    return rows


def notes(inputs: ReportInputs, rows: list[dict[str, Any]]) -> list[str]:
    """Return the notes of the page on how to interpret the metrics."""
    found = [
        f"{outputs.name} was trained on another shard set. If it was trained on posters of this {inputs.split} split, "
        f"the metrics of {outputs.name} are too high{' and the comparison is not fair' if compared else ''}."
        for outputs, compared in ((inputs.model, False), (inputs.other, True))
        if outputs is not None and inputs.may_have_seen(outputs)
    ]
    found += _duplicates(inputs)
    if inputs.weights is not None:
        found.append("The shard set has sample weights. Metrics use the weights, but counts of posters do not.")
    none = [row["genre"] for row in rows if not row["support"]]
    few = [row["genre"] for row in rows if 0 < row["support"] < FEW_POSITIVES]
    if none:
        names = listed(none, last="or")
        found.append(f"No poster of this split has the genre {names}. Means leave out genres without posters.")
    if few:
        found.append(
            f"Genres with fewer than {FEW_POSITIVES} posters: {listed(few)}. Their AP and F1 are mostly chance, "
            "but mAP and macro-F1 weigh all genres equally. AP from few posters is too high on average, so compare "
            "mAP only between models on the same posters."
        )
    if inputs.split == "val":
        found.append("Thresholds and calibration were chosen on this split, so its metrics are optimistic.")
    if inputs.split == "train":
        found.append("The model was trained on this split, so its metrics do not apply to new posters.")
    unnamed = [row["genre"] for row in rows if row["support"] and not row["named"]]
    if unnamed:
        found.append(f"The model never names these genres on this split: {listed(unnamed)}.")
    return found


def _duplicates(inputs: ReportInputs) -> list[str]:
    if inputs.units is None:
        return [
            "The shard set does not record near-duplicates, because `posters shards index` or an old version made it. "
            "Each poster counts separately, and the intervals are too narrow if there are many near-duplicates."
        ]
    sizes = np.bincount(inputs.units)
    if (sizes < 2).all():
        return []
    return [
        f"{sizes[sizes > 1].sum()} posters are near-duplicates of other posters. They form {(sizes > 1).sum()} groups, "
        "and the intervals count each group as one poster."
    ]


def listed(names: list[str], last: str = "and") -> str:
    """Return a text such as ``A, B and C``. With more than `MAX_LISTED` names, the text ends with ``and 6 more``."""
    shown = names if len(names) <= MAX_LISTED else [*names[:MAX_LISTED], f"{len(names) - MAX_LISTED} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} {last} {shown[-1]}"
