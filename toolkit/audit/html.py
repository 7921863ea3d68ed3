"""The audit as one HTML page that needs nothing but itself: pictures as data URIs, the chart as SVG, no script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shards.visuals.templates import render
from toolkit.audit.contact_sheet import Example
from toolkit.audit.effects import posters
from toolkit.audit.tables import EFFECT_COLUMNS, EFFECT_NAMES, GENRE_COLUMNS, METRIC_NAMES
from toolkit.metrics.table import PLACES


def page(report: dict[str, Any], examples: Sequence[Example]) -> str:
    """The whole page."""
    return render(
        "toolkit.audit/audit.html",
        report=report,
        examples=examples,
        posters=posters,
        columns={
            "effects": EFFECT_COLUMNS,
            "genres": GENRE_COLUMNS,
            "metrics": {metric.key: metric.column for metric in PLACES["audit"]},
        },
        names={"effects": EFFECT_NAMES, "metrics": METRIC_NAMES},
    )
