"""The report as one HTML page that needs nothing but itself: pictures and plots as data URIs, no script.

Ids and genres come from users: jinja2 escapes everything that is not marked as safe here, and only numbers are.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from shards.visuals.page_style import PAGE_STYLE
from toolkit.metrics.table import METRICS, PLACES
from toolkit.report.build import MOST_CURVES, MOST_DIAGRAMS, Report
from toolkit.report.label_errors import INSTALL
from toolkit.report.per_label import FEW
from toolkit.report.plots.common import Plot
from toolkit.report.plots.reliability_plots import ENOUGH
from toolkit.report.summary import SURE

NONE = "\N{EN DASH}"
MARKS = {"right": "✓", "wrong": "✗", "missed": "○", "neither": "?"}
TITLES = {
    "baselines": "Beside baselines that look at no picture",
    "single": "Beside the same model with one threshold for all genres",
    "run": "Beside ",
}
WHYS = {
    "baselines": "Label prevalence gives every poster the same probabilities, those of the training set. Always "
    "top-k names the k commonest genres of the training set for every poster; for each metric the strongest of "
    "k = 1, 2, 3 is shown.",
    "single": "The one threshold that is best on validation: what deciding genre by genre changes.",
    "run": "The same posters, its own preprocessing, calibration and thresholds; both measured on the same resamples.",
}
WEIGHTS = {"raw": "as trained (raw)", "ema": "moving average of the trained ones (EMA)"}


def render_page(report: Report) -> str:
    """The whole page."""
    environment = Environment(
        loader=PackageLoader("toolkit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number,
        signed=signed,
        percent=percent,
        count=count,
        between=between,
        p_value=p_value,
        worded=worded,
        meter=meter,
        span=span,
        most_difference=most_difference,
        mark=lambda line: MARKS[line.verdict],
        uri=uri,
        unbroken=unbroken,
    )
    style, _, _ = environment.loader.get_source(environment, "report.css")  # type: ignore[union-attr]
    numbers = report.numbers
    html: str = environment.get_template("report.html").render(
        style=Markup(PAGE_STYLE + style),
        report=numbers,
        plots=report.plots,
        small_plots=report.curves,
        capped=numbers["macro_genres"] > MOST_CURVES,
        diagrams=report.diagrams,
        diagrams_why=_diagrams_why(report),
        calibrated=numbers["calibration"]["method"] != "none",
        groups=report.groups,
        errors=report.errors,
        no_errors=_no_errors(numbers["split"]),
        course=report.course,
        facts=list(_facts(numbers)),
        config=report.config,
        sections=_sections(report),
        comparison_titles=TITLES,
        comparison_whys=WHYS,
        calibration_rows=[(metric.key, metric.label) for metric in PLACES["report, calibration"]],
        sweep_caption=_sweep_caption(numbers),
        unbounded=[metric.key for metric in PLACES["report"] if metric.top > 1],
        few=FEW,
    )
    return html + "\n"


def _sections(report: Report) -> list[tuple[str, str]]:
    names = [
        ("headline", "Figures"),
        ("baselines", "Worth"),
        ("genres", "Genres"),
        ("calibration", "Calibration"),
    ]
    names += [("together", "Together and instead"), ("posters", "Posters"), ("label-errors", "Label errors")]
    return [*names, *([("training", "Training")] if report.course else []), ("facts", "Facts")]


def _no_errors(split: str) -> str:
    if split == "train":
        return "Not looked for: the model has learnt the labels of this split by heart, right and wrong ones."
    return f"Not looked for: this needs cleanlab ({INSTALL}), and that --no-label-errors is not given."


def _diagrams_why(report: Report) -> str:
    """What the diagrams per genre show, and of which genres there are some."""
    numbers = report.numbers
    enough = sum(row["support"] >= ENOUGH for row in numbers["per_genre"])
    if not enough:
        return f"No genre has {ENOUGH} posters here, which a diagram of its own would need."
    dots = "Each dot is an equal share of the posters, the least probable first"
    if numbers["calibration"]["method"] != "none":
        dots += "; orange is before, blue after calibration, which keeps the order"
    shown = (
        f"The {len(report.diagrams)} commonest of the {enough} genres"
        if enough > MOST_DIAGRAMS
        else "The genres"
    )
    return (
        f"{dots}. On the dotted line probabilities are frequencies; vertical lines are 95% intervals, and the axes end "
        f"at each genre's highest value. {shown} with at least {ENOUGH} posters: {len(report.diagrams)} of "
        f"{len(numbers['genres'])}."
    )


def _sweep_caption(numbers: dict[str, Any]) -> str:
    caption = (
        "One threshold for all genres: micro precision and recall, and both F1. The line is validation's."
    )
    if any(comparison["kind"] == "single" for comparison in numbers["comparisons"]):
        caption += " The dotted lines are what the genres' own thresholds reach."
    return caption


def _facts(numbers: dict[str, Any]) -> Iterable[tuple[str, str]]:
    known = numbers["facts"]
    yield from _model_facts(known, "")
    if known["other"]:
        yield from _model_facts(known["other"], "beside it: ")
    yield from known["shard_set"].items()
    yield "command", known["command"]
    yield "versions", ", ".join(f"{name} {value}" for name, value in known["versions"].items())


def _model_facts(known: dict[str, Any], before: str) -> Iterable[tuple[str, str]]:
    epoch = f", epoch {known['epoch']}" if known["epoch"] else ""
    yield f"{before}model", f"{known['path']} ({known['architecture']}{epoch})"
    # models of older versions do not say whose weights they kept
    kept = f"{WEIGHTS.get(known['saved'], known['saved'])}; " if known["saved"] else ""
    yield f"{before}weights", f"{kept}sha256 {known['weights']}"
    if known["trained_on"]:
        another = ", not the one of this page" if known["trained_elsewhere"] else ""
        yield f"{before}trained on", f"shard set {known['trained_on']}{another}"
    yield f"{before}thresholds", f"{known['thresholds']} ({known['decisions']})"


# --- filters: values to words, and to the small charts in tables ------------------------------------------------


def number(value: float | None, digits: int = 3) -> str:
    """``0.123``; a dash for none."""
    return NONE if value is None else f"{value:.{digits}f}"


def signed(value: float | None) -> str:
    """``+0.012`` or ``−0.012``."""
    return NONE if value is None else f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def percent(value: float | None) -> str:
    """``12%``; below 10%, ``3.4%``."""
    return NONE if value is None else f"{value:.0%}" if value >= 0.0995 else f"{value:.1%}"


def count(value: int) -> str:
    """``1,234``."""
    return f"{value:,}"


def p_value(value: float | None) -> str:
    """``0.12``, ``0.003``."""
    return NONE if value is None else f"{value:.2f}" if value >= 0.095 else f"{value:.3f}"


def between(row: dict[str, Any], low: str = "low", high: str = "high", signs: bool = False) -> str:
    """``0.12 to 0.34`` of two keys of a row."""
    shown = signed if signs else number
    return NONE if row[low] is None else f"{shown(row[low])} to {shown(row[high])}"


def unbroken(text: str) -> Markup:
    """A sentence whose names of metrics stay on one line: browsers break after any hyphen."""
    return Markup(
        re.sub(r"(?:micro|macro)-F[\d.]*\d", r'<span class="whole">\g<0></span>', str(escape(text)))
    )


def worded(words: str) -> Markup:
    """The words of a difference, marked where it is real."""
    if not words.startswith(SURE):
        return Markup("{}").format(words)
    kind = words.partition(": ")[2]
    return Markup('<span class="yes {}">{}</span>').format(kind, words)


def meter(row: dict[str, Any], value: str, low: str, high: str) -> Markup:
    """A bar from 0 to 1 with its interval."""
    if row[value] is None:
        return Markup("")
    bar = Markup('<i style="left:0;width:{}%"></i>').format(_percentage(row[value]))
    if row[low] is not None:
        left, right = _percentage(row[low]), _percentage(row[high])
        bar += Markup('<b style="left:{}%;width:{}%"></b>').format(left, round(right - left, 1))
    return Markup('<span class="meter">{}</span>').format(bar)


def span(row: dict[str, Any], most: float) -> Markup:
    """A difference as a dot with its interval, on an axis from -most to most with 0 in the middle."""
    if row["difference"] is None or row["low"] is None:
        return Markup("")
    low, at, high = (_percentage(0.5 + row[key] / (2.0 * most)) for key in ("low", "difference", "high"))
    real = " real" if row["words"].startswith(SURE) else ""
    return Markup(
        '<span class="span{}"><b style="left:{}%;width:{}%"></b><i style="left:{}%"></i></span>'
    ).format(real, low, round(high - low, 1), at)


def most_difference(rows: Iterable[dict[str, Any]]) -> float:
    """The axis for `span` that all rows of a table share; counts of genres would dwarf the rest."""
    ends = [abs(row[key]) for row in rows for key in ("low", "high")
            if row[key] is not None and METRICS[row["metric"]].better]  # fmt: skip
    return max(ends, default=0.0) or 1.0


def _percentage(share: float) -> float:
    return round(100.0 * min(max(share, 0.0), 1.0), 1)


def uri(plot: Plot) -> str:
    """A plot as a data URI."""
    return "data:image/png;base64," + base64.b64encode(plot.png).decode()
