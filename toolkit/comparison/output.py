"""Check the folder of `posters compare`, and write the page, compare.json and compare.csv.

compare.json is written first and marks the folder. index.html is written last, so a folder with index.html is complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from shards.storage.files import write_json
from shards.visuals.links import page_of, write_page
from shards.visuals.templates import render
from toolkit.comparison.build import CHOSEN_BY, JUDGED, Comparison
from toolkit.evaluation.tables import write_table
from toolkit.metrics.judgement import SEEN
from toolkit.metrics.registry import METRICS
from toolkit.report.glossary import GLOSSARY
from toolkit.report.page_folder import check_page_folder
from toolkit.report.per_label import listed

PAGE, NUMBERS, TABLE = "index.html", "compare.json", "compare.csv"
MADE_BY = "posters compare"
#: Section of the page → title.
TITLES = {
    "cost": "Quality, speed and size",
    "posters": "Posters on which the models disagree most",
    "metrics": "All metrics",
    "facts": "Models and data",
}


def check_folder(folder: Path) -> None:
    """Raise UserError if ``folder`` is a file, or contains files that `posters compare` did not write."""
    check_page_folder(folder, "--out", "comparison", NUMBERS, MADE_BY, _foreign_entry)


def _foreign_entry(entries: Sequence[Path]) -> str:
    """Return the name of an entry that is not part of a comparison, or an empty string."""
    return next((entry.name for entry in entries if entry.name not in (PAGE, NUMBERS, TABLE)), "")


def write_comparison(folder: Path, comparison: Comparison) -> Path:
    """Check the folder, write all files, and replace those of an older comparison. Return the path of the page."""
    check_folder(folder)
    page = render_page(comparison)
    (folder / PAGE).unlink(missing_ok=True)
    write_json(folder / NUMBERS, {"made_by": MADE_BY, **comparison.numbers})
    write_table(folder / TABLE, pd.DataFrame(table_rows(comparison.numbers["models"])))
    write_page(folder / PAGE, page)
    return folder / PAGE


def table_rows(models: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of compare.csv: one for each model and metric."""
    keys = ("value", "low", "high", "difference", "difference_low", "difference_high", "p_holm", "words")
    return [
        {"model": model["name"], "metric": metric, **{key: row[key] for key in keys}}
        for model in models
        for metric, row in model["metrics"].items()
    ]


def render_page(comparison: Comparison) -> str:
    """Return the HTML page. Pictures and the plot are data URIs in the page."""
    numbers = comparison.numbers
    return render(
        "toolkit.comparison/compare.html",
        page_of=page_of("Comparison", *(model["weights_sha256"] for model in numbers["models"])),
        numbers=numbers,
        models=numbers["models"],
        choice=sentences(numbers),
        plot=comparison.plot,
        disputed=comparison.disputed,
        judged=[(METRICS[key], GLOSSARY.get(key, "")) for key in JUDGED],
        seen=SEEN,
        glossary=GLOSSARY,
        titles=TITLES,
        by=CHOSEN_BY,
        all_seen=all(model["may_have_seen"] for model in numbers["models"]),
    )


def sentences(numbers: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of the first screen: a ``title``, and sentences with the reasons and with warnings."""
    models, choice = numbers["models"], numbers["choice"]
    if choice["best"] is None:
        return {"title": "No model can be chosen", "reasons": ["No poster of this split has a genre."], "warnings": []}
    best, take = models[choice["best"]], models[choice["take"]]
    label, row = METRICS[CHOSEN_BY].label, best["metrics"][CHOSEN_BY]
    span = f"95% interval {row['low']:.3f} to {row['high']:.3f}"
    reasons = [f"{best['name']} has the highest {label}: {row['value']:.3f} ({span})."]
    if choice["better_than"]:
        reasons.append(f"It is better than {listed([models[at]['name'] for at in choice['better_than']])}.")
    if choice["equal"]:
        reasons.append(
            f"No difference was seen between it and {listed([models[at]['name'] for at in choice['equal']])}."
        )
        times = take["images_per_s"] / best["images_per_s"]
        if take is not best:
            reasons.append(f"Of these, {take['name']} is the fastest: {times:.1f} times as fast as {best['name']}.")
        else:
            reasons.append("None of them is clearly faster.")
    return {"title": f"Take {take['name']}", "reasons": reasons, "warnings": warnings(numbers)}


def warnings(numbers: dict[str, Any]) -> list[str]:
    """Return sentences about models whose metrics can be too good."""
    models, split, found = numbers["models"], numbers["split"], []
    seen = [model["name"] for model in models if model["may_have_seen"]]
    if len(seen) == len(models):
        found.append(
            "No model was trained on this shard set. All may have seen these posters, so all metrics can be too good. "
            "Compare the models on posters that none of them has seen."
        )
    elif seen:
        one = len(seen) == 1
        found.append(
            f"{listed(seen)} {'was' if one else 'were'} not trained on this shard set, and may have seen these "
            f"posters. {'Its' if one else 'Their'} metrics can be too good, so {'it is' if one else 'they are'} not "
            "chosen."
        )
    if split == "train":
        found.append("The models were trained on this split, so all metrics are too good. Compare them on test.")
    elif tuned := [model["name"] for model in models if model["tuned_here"]]:
        found.append(f"The thresholds of {listed(tuned)} were chosen on {split}, so the metrics are too good.")
    return found
