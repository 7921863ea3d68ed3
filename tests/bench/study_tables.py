"""What the study shows: a table of figures with intervals, and each recipe beside the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from toolkit.metrics.bootstrap import Draws, confidence_intervals, paired_difference
from toolkit.metrics.calibration_error import reliability
from toolkit.metrics.registry import METRICS as ALL
from toolkit.metrics.weighted import Outcome

METRICS = {key: ALL[key].label for key in ("mAP", "macro_f1", "micro_f1", "micro_f0.5", "macro_f0.5")}
METRICS["ece"] = ALL["ece"].column
#: Shown beside them: the ECE that the same probabilities would have if they were exactly right.
CHANCE = "ECE by chance"

#: Metric -> {"value", "low", "high", "difference": [value, low, high] or None} of one recipe on one split.
Row = dict[str, Any]


def figures(drawn: Draws, answers: Outcome, reference: Draws | None) -> Row:
    """Values, intervals, and the paired difference to the reference; ``drawn`` is the bootstrap of ``answers``."""
    intervals = confidence_intervals(drawn)
    differences = paired_difference(drawn, reference) if reference is not None else {}
    row: Row = {
        metric: {
            "value": intervals[metric].value,
            "low": intervals[metric].low,
            "high": intervals[metric].high,
            "difference": list(differences[metric][:3]) if metric in differences else None,
        }
        for metric in METRICS
        if metric in intervals
    }
    if answers.scores.size:
        mean, low, high = calibration_error_by_chance(answers.scores)
        row[CHANCE] = {"value": mean, "low": low, "high": high, "difference": None}
    return row


def calibration_error_by_chance(
    probabilities: np.ndarray, rounds: int = 200, seed: int = 0
) -> tuple[float, float, float]:
    """(mean, 2.5th, 97.5th percentile) of the ECE that (N, G) probabilities have where they are exactly right.

    Targets are drawn from the probabilities themselves. An ECE within the two ends tells nothing against a model's
    calibration, and none can be expected below them (Vaicenavicius et al. 2019, "consistency resampling").
    """
    scores = np.asarray(probabilities, dtype=np.float64)
    rng = np.random.default_rng(seed)
    found = [reliability(rng.random(scores.shape) < scores, scores)["ece"] for _ in range(rounds)]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(np.mean(found)), float(low), float(high)


def table(rows: dict[str, list[Row]]) -> str:
    """Markdown: one row per recipe, value and interval; over several splits means of values and of interval ends."""
    titles = {**METRICS, CHANCE: CHANCE}
    lines = ["| recipe | " + " | ".join(titles.values()) + " |", "| --- |" + " --- |" * len(titles)]
    for name, splits in rows.items():
        cells = [cell([split.get(metric) for split in splits]) for metric in titles]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(found: Sequence[Row | None]) -> str:
    """``0.231 (0.210 to 0.255)``."""
    known = [one for one in found if one is not None and one["value"] is not None]
    if not known:
        return "-"
    value, low, high = (float(np.mean([one[key] for one in known])) for key in ("value", "low", "high"))
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def against_reference(rows: dict[str, list[Row]]) -> str:
    """Markdown: each recipe's figures divided by the reference's, and the paired difference with its interval.

    Over several splits ratios are of means, differences and their ends are means. A difference whose interval leaves
    out 0 is in bold: chance in the test posters does not explain it.
    """
    if "reference" not in rows:
        return ""
    lines = ["| recipe ÷ reference | " + " | ".join(METRICS.values()) + " |", "| --- |" + " --- |" * len(METRICS)]
    for name, splits in rows.items():
        if name != "reference":
            cells = [_ratio(splits, rows["reference"], metric) for metric in METRICS]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _ratio(splits: Sequence[Row], reference: Sequence[Row], metric: str) -> str:
    if any(metric not in split or split[metric]["difference"] is None for split in splits):
        return "-"
    mine = float(np.mean([split[metric]["value"] for split in splits]))
    theirs = float(np.mean([split[metric]["value"] for split in reference]))
    difference, low, high = np.mean([split[metric]["difference"] for split in splits], axis=0)
    text = f"{difference:+.3f} ({low:+.3f} to {high:+.3f})"
    if low > 0 or high < 0:
        text = f"**{text}**"
    return f"x {mine / theirs:.2f}; {text}" if theirs > 0 else text
