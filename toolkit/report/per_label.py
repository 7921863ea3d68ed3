"""Genre by genre: the table of the page and of per-genre.csv, and which of them another run does better."""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.metrics.bootstrap import Draws, genre_differences, genre_intervals
from toolkit.metrics.calibration_error import genre_calibration_errors
from toolkit.metrics.table import per_genre_table
from toolkit.metrics.weighted import Outcome
from toolkit.report.inputs import ReportInputs
from toolkit.report.summary import MODEL, OTHER, in_words

#: With fewer positives a genre's figures are mostly luck.
FEW_POSITIVES = 10
#: With one positive the interval holds the truth in half of the cases instead of 95%: no verdict is drawn from so few.
TOO_FEW = "too few posters"
#: Genres that a note names.
MAX_LISTED = 8


def genre_rows(inputs: ReportInputs, draws: dict[str, Draws]) -> list[dict[str, Any]]:
    """One row per genre in the model's order; None where undefined (see `per_genre_table`)."""
    model, plain = inputs.model, draws[MODEL]
    outcome = Outcome(inputs.targets, scores=model.probabilities)
    table = per_genre_table(outcome, model.decisions.thresholds, inputs.genres)
    rows: list[dict[Any, Any]] = table.to_dict("records")
    uncalibrated = genre_calibration_errors(inputs.targets, model.uncalibrated)
    ap, f1 = genre_intervals(plain, "ap"), genre_intervals(plain, "f1")
    for column, row in enumerate(rows):
        row["train_prevalence"] = float(inputs.train_prevalence[column])
        row["named"] = int(model.named[:, column].sum())
        row["ap_low"], row["ap_high"] = ap[column].low, ap[column].high
        row["f1_low"], row["f1_high"] = f1[column].low, f1[column].high
        row["ece"] = float(plain.plain.per_genre["ece"][0, column])
        row["ece_before"] = float(uncalibrated[column])
    return rows


def genre_comparison(inputs: ReportInputs, draws: dict[str, Draws]) -> list[dict[str, Any]]:
    """Per genre: AP and F1 of the model less those of the other run; empty without one."""
    if inputs.other is None:
        return []
    support = inputs.targets.sum(axis=0)
    rows: list[dict[str, Any]] = [
        {"genre": genre, "support": int(count)} for genre, count in zip(inputs.genres, support, strict=True)
    ]
    for metric in ("ap", "f1"):
        mine, theirs = (draws[who].plain.per_genre[metric][0] for who in (MODEL, OTHER))
        for column, difference in enumerate(genre_differences(draws[MODEL], draws[OTHER], metric)):
            rows[column][metric] = {
                "mine": float(mine[column]),
                "theirs": float(theirs[column]),
                "difference": difference.value,
                "low": difference.low,
                "high": difference.high,
                "words": in_words(difference, "higher") if support[column] >= FEW_POSITIVES else TOO_FEW,
            }
    return rows


def notes(inputs: ReportInputs, rows: list[dict[str, Any]]) -> list[str]:
    """What must be known to read the figures rightly."""
    found = [
        f"{said.name} was trained on another shard set: if {inputs.split} posters of this one were among its "
        "training posters, its figures here are too good"
        + (", and the comparison with it is not fair." if beside else ".")
        for said, beside in ((inputs.model, False), (inputs.other, True))
        if said is not None and inputs.may_have_seen(said)
    ]
    found += _duplicates(inputs)
    none = [row["genre"] for row in rows if not row["support"]]
    few = [row["genre"] for row in rows if 0 < row["support"] < FEW_POSITIVES]
    if none:
        found.append(f"No poster of this split is {_listed(none, last='or')}: such genres count in no mean.")
    if few:
        found.append(
            f"Fewer than {FEW_POSITIVES} posters each: {_listed(few)}. Their AP and F1 are mostly luck, yet count in "
            "mAP and macro-F1 as much as any other genre's, and the AP of few positives is flattering: compare mAP on "
            "equal posters only."
        )
    if inputs.split == "val":
        found.append("Thresholds and calibration were chosen on this split: its figures are optimistic.")
    if inputs.split == "train":
        found.append("The model was trained on this split: its figures say nothing about new posters.")
    unnamed = [row["genre"] for row in rows if row["support"] and not row["named"]]
    if unnamed:
        found.append(f"Never named on this split: {_listed(unnamed)}.")
    return found


def _duplicates(inputs: ReportInputs) -> list[str]:
    """What the intervals make of near-duplicates."""
    if inputs.units is None:
        return [
            "The shard set does not say which posters are near-duplicates (it was built by an earlier version, or "
            "indexed): each counts as a poster of its own, and the intervals are too narrow if there are many."
        ]
    sizes = np.bincount(inputs.units)
    if (sizes < 2).all():
        return []
    return [
        f"{sizes[sizes > 1].sum()} posters are near-duplicates of others, in {(sizes > 1).sum()} groups: the intervals "
        "take each group for one poster."
    ]


def _listed(names: list[str], last: str = "and") -> str:
    """``A, B and C``; beyond `LISTED` ``A, B and 6 more``."""
    shown = names if len(names) <= MAX_LISTED else [*names[:MAX_LISTED], f"{len(names) - MAX_LISTED} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} {last} {shown[-1]}"
