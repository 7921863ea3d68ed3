"""Check the folder of `--report DIR`, and write the files of a report.

metrics.json is written first and marks the folder as the folder of a report. index.html is written last, so a report
that has index.html is complete. A folder that contains other files is refused, so that no other file is overwritten.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from shards.storage.files import PARTIAL, atomic_write, write_json
from shards.visuals.links import page_of, write_page
from shards.visuals.templates import render
from toolkit.evaluation.tables import write_table
from toolkit.metrics.judgement import RULE, SEEN
from toolkit.metrics.registry import METRICS, PLACES
from toolkit.report.build import MAX_CURVES, Report
from toolkit.report.glossary import GLOSSARY
from toolkit.report.label_errors import INSTALL
from toolkit.report.page_folder import check_page_folder
from toolkit.report.per_label import FEW_POSITIVES
from toolkit.report.plots.reliability_plots import MIN_POSITIVES

PAGE, NUMBERS, GENRES, ERRORS, PLOTS = ("index.html", "metrics.json", "per-genre.csv", "label-errors.csv", "plots")
MADE_BY = "posters evaluate --report"
#: Section of the page → title.
TITLES = {
    "headline": "Metrics",
    "baselines": "Comparisons",
    "genres": "Genres",
    "calibration": "Calibration",
    "together": "Genres together",
    "posters": "Posters",
    "label-errors": "Likely label errors",
    "training": "Training",
    "facts": "Model and data",
}


def check_report_folder(folder: Path) -> None:
    """Raise UserError if ``folder`` is a file, or contains files that are not part of a report."""
    check_page_folder(folder, "--report", "report", NUMBERS, MADE_BY, _foreign_entry)


def _foreign_entry(entries: Sequence[Path]) -> str:
    """Return the name of an entry that is not part of a report, or an empty string."""
    for entry in entries:
        if entry.name == PLOTS and entry.is_dir():
            for plot in entry.iterdir():
                if plot.suffix not in (".png", ".svg") and not plot.name.endswith(PARTIAL):
                    return f"{PLOTS}/{plot.name}"
        elif entry.name not in (PAGE, NUMBERS, GENRES, ERRORS) or not entry.is_file():
            return entry.name
    return ""


def write_report(folder: Path, report: Report) -> Path:
    """Check the folder, write all files of a report, and replace an older report. Return the path of the page."""
    check_report_folder(folder)
    page = render_page(report)
    (folder / PAGE).unlink(missing_ok=True)
    write_json(folder / NUMBERS, {"made_by": MADE_BY, **report.numbers})
    write_table(folder / GENRES, pd.DataFrame(report.numbers["per_genre"]))
    errors = report.numbers["label_errors"]
    if errors is None:
        (folder / ERRORS).unlink(missing_ok=True)
    else:
        columns = ["id", "score", "genre", "given", "probability", "genres"]
        rows = [row | {"genres": "|".join(row["genres"])} for row in errors["rows"]]
        write_table(folder / ERRORS, pd.DataFrame(rows, columns=columns))
    for old in [*(folder / PLOTS).glob("*.png"), *(folder / PLOTS).glob("*.svg")]:
        old.unlink()
    of_genres = (plot for plot, _ in [*report.curves, *report.diagrams])
    for plot in (*report.plots.values(), *of_genres, *report.training_plots):
        with atomic_write(folder / PLOTS / f"{plot.name}.png") as stream:
            stream.write(plot.png)
        with atomic_write(folder / PLOTS / f"{plot.name}.svg", "w") as stream:
            stream.write(plot.svg)
    write_page(folder / PAGE, page)
    return folder / PAGE


def render_page(report: Report) -> str:
    """Return the report as one HTML page. Pictures and plots are data URIs in the page."""
    numbers = report.numbers
    own = [row["metric"] for row in numbers["headline"] if row["metric"] not in METRICS]
    return render(
        "toolkit.report/report.html",
        page_of=page_of("Report", numbers["facts"]["weights"]),
        report=numbers,
        plots=report.plots,
        curves=report.curves,
        capped=numbers["macro_genres"] > MAX_CURVES,
        diagrams=report.diagrams,
        with_enough=sum(row["support"] >= MIN_POSITIVES for row in numbers["per_genre"]),
        enough=MIN_POSITIVES,
        calibrated=numbers["calibration"]["method"] != "none",
        groups=report.groups,
        errors=report.errors,
        training_plots=report.training_plots,
        config=report.config,
        install=INSTALL,
        split_at_metrics=re.compile(r"((?:micro|macro)-F[\d.]*\d)").split,
        seen=SEEN,
        rule=RULE,
        glossary=GLOSSARY,
        titles=TITLES,
        sections=[pair for pair in TITLES.items() if pair[0] != "training" or report.training_plots],
        drawn=report.drawn,
        own=own,
        unbounded=[*own, *(metric.key for metric in PLACES["report"] if metric.top > 1)],
        without_direction=[metric.key for metric in METRICS.values() if not metric.better],
        calibration_rows=PLACES["report, calibration"],
        few=FEW_POSITIVES,
    )
