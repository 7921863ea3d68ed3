"""The report as one HTML page that needs nothing but itself: pictures and plots as data URIs, no script.

The words are in templates/report.html.
"""

from __future__ import annotations

import re

from shards.visuals.templates import render
from toolkit.metrics.table import METRICS, PLACES
from toolkit.report.build import MOST_CURVES, Report
from toolkit.report.label_errors import INSTALL
from toolkit.report.per_label import FEW
from toolkit.report.plots.reliability_plots import ENOUGH
from toolkit.report.summary import SURE


def render_page(report: Report) -> str:
    """The whole page."""
    numbers = report.numbers
    return render(
        "toolkit.report/report.html",
        report=numbers,
        plots=report.plots,
        curves=report.curves,
        capped=numbers["macro_genres"] > MOST_CURVES,
        diagrams=report.diagrams,
        with_enough=sum(row["support"] >= ENOUGH for row in numbers["per_genre"]),
        enough=ENOUGH,
        calibrated=numbers["calibration"]["method"] != "none",
        groups=report.groups,
        errors=report.errors,
        course=report.course,
        config=report.config,
        install=INSTALL,
        split_at_metrics=re.compile(r"((?:micro|macro)-F[\d.]*\d)").split,
        sure=SURE,
        unbounded=[metric.key for metric in PLACES["report"] if metric.top > 1],
        without_direction=[metric.key for metric in METRICS.values() if not metric.better],
        calibration_rows=PLACES["report, calibration"],
        few=FEW,
    )
