"""Advice of a report: sentences that say what to do next, each with the metrics that support it.

Each rule reads the tables of the report (the contents of metrics.json), so the advice cannot contradict the page. The
rules are in order of importance, and the first screen shows the first sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from toolkit.metrics.judgement import BETTER, WORSE
from toolkit.report.per_label import FEW_POSITIVES, listed

Numbers = dict[str, Any]
#: Smaller shares of posters with suspected labels are usual for models that are not perfect.
MANY_ERRORS = 0.1
NOTHING = {
    "words": "Nothing on this page speaks against the use of the model: predict the genres of new posters",
    "command": "posters predict",
}


def advice(numbers: Numbers) -> list[dict[str, str]]:
    """Return all sentences that apply, or `NOTHING`. Each has ``words`` and a ``command`` that can be empty."""
    found = [{"words": words, "command": command} for rule in RULES for words, command in rule(numbers)]
    return found or [NOTHING]


def _split(numbers: Numbers) -> Iterator[tuple[str, str]]:
    if numbers["split"] in ("train", "val"):
        used = "trained" if numbers["split"] == "train" else "tuned"
        yield (
            f"The model was {used} on these posters, so the metrics are too good: measure it on the test split",
            "posters evaluate --split test",
        )


def _seen(numbers: Numbers) -> Iterator[tuple[str, str]]:
    if numbers["facts"]["trained_elsewhere"]:
        yield (
            "The training of this model can have contained these posters: measure the model on posters that it has not "
            "seen",
            "",
        )


def _no_better_than_guessing(numbers: Numbers) -> Iterator[tuple[str, str]]:
    rows = {row["metric"]: row for row in numbers["comparisons"][0]["rows"]}
    row = rows["mAP"]
    if row["words"] != BETTER and row["mine"] is not None:
        yield (
            f"No difference to guessing was seen (mAP {row['mine']:.3f}, prevalence {row['theirs']:.3f}): check that "
            "the labels belong to the posters, and train longer or on more posters",
            "",
        )
    elif rows["micro_f1"]["words"] == WORSE:
        by = rows["micro_f1"]
        yield (
            f"Always naming the most common genres has a higher micro-F1 ({by['theirs']:.3f}) than the model "
            f"({by['mine']:.3f}): choose thresholds again",
            "posters tune",
        )


def _single_threshold(numbers: Numbers) -> Iterator[tuple[str, str]]:
    for table in numbers["comparisons"]:
        rows = {row["metric"]: row for row in table["rows"]}
        if table["kind"] == "single" and rows["micro_f1"]["words"] == WORSE and rows["macro_f1"]["words"] != BETTER:
            yield (
                f"Thresholds per genre cost {-rows['micro_f1']['difference']:.3f} micro-F1 here, and no gain in "
                "macro-F1 was seen: use one threshold",
                "posters tune --thresholds global",
            )


def _calibration(numbers: Numbers) -> Iterator[tuple[str, str]]:
    before, after = (numbers["calibration"][key]["loss"] for key in ("before", "after"))
    if numbers["calibration"]["method"] != "none" and before is not None and after > before:
        yield (
            f"The calibration makes the probabilities worse here (loss {after:.4f}, without it {before:.4f})",
            "posters tune --calibration none",
        )


def _few_posters(numbers: Numbers) -> Iterator[tuple[str, str]]:
    enough = [row["genre"] for row in numbers["per_genre"] if row["support"] >= FEW_POSITIVES]
    few = len(numbers["per_genre"]) - len(enough)
    if few:
        rest = (
            f"judge the model by the other {len(enough)} ({listed(enough)}), or test on more posters"
            if enough
            else "use more test posters"
        )
        genres = "1 genre has" if few == 1 else f"{few} genres have"
        yield f"{genres} fewer than {FEW_POSITIVES} posters in this split: {rest}", ""


def _label_errors(numbers: Numbers) -> Iterator[tuple[str, str]]:
    found = numbers["label_errors"]
    if found and found["samples"] > MANY_ERRORS * numbers["num_samples"]:
        yield (
            f"{found['samples']:,} of {numbers['num_samples']:,} posters have labels that are probably wrong: look at "
            "label-errors.csv, and correct the labels",
            "posters shards build --corrections FILE",
        )


RULES: tuple[Callable[[Numbers], Iterator[tuple[str, str]]], ...] = (
    _split, _seen, _no_better_than_guessing, _single_threshold, _calibration, _few_posters, _label_errors,
)  # fmt: skip
