"""The audit on the screen."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from toolkit.audit.effects import posters
from toolkit.evaluation.tables import add_number_columns, plain_table, report_console
from toolkit.metrics.table import PLACES, format_number

EFFECT_COLUMNS = {
    "probability": "mean change",
    "largest": "largest genre",
    "logit": "of the logit",
    "flipped_decisions": "flipped decisions",
    "posters_with_a_flip": "posters with a flip",
}
GENRE_COLUMNS = {
    "title_adds": "title adds",
    "text": "text",
    "control": "control",
    "reencoding": "re-encoding",
    "gained": "named only with text",
    "lost": "only without",
}
EFFECT_NAMES = {"text": "text painted over", "control": "same area elsewhere", "reencoding": "re-encoding alone"}
METRIC_NAMES = {
    "raw": "posters as they are",
    "reencoded": "re-encoded",
    "cleaned": "text painted over",
    "control": "same area elsewhere",
}


def render_report(report: dict[str, Any]) -> None:
    """Print the sentence, what must be known about it, and the tables."""
    out = report_console()
    out.print(Text(report["sentence"], style="bold"))
    out.print()
    table = plain_table(f"how far predictions move, {posters(report['counts']['compared'])}")
    add_number_columns(table, "", EFFECT_COLUMNS.values())
    for name, words in EFFECT_NAMES.items():
        means = report["effects"][name]
        cells = [format_number(means[key], ".1%" if "flip" in key else ".4f") for key in EFFECT_COLUMNS]
        table.add_row(words, *cells)
    out.print(table)
    out.print()
    if report["genres"]:
        table = plain_table("per genre, most moved by text first")
        add_number_columns(table, "genre", GENRE_COLUMNS.values())
        for record in sorted(report["genres"], key=lambda r: -r["text"]):
            values = [format_number(record["title_adds"], "+.4f")]
            values += [format_number(record[key], ".4f") for key in list(GENRE_COLUMNS)[1:]]
            table.add_row(Text(record["genre"]), *values)
        table.caption = Text("title adds: mean probability with the text minus without")
        out.print(table)
        out.print()
    if report["metrics"]:
        table = plain_table(f"metrics, on these {posters(report['metrics']['posters'])} only")
        add_number_columns(table, "", [metric.column for metric in PLACES["audit"]])
        for name, words in METRIC_NAMES.items():
            values = report["metrics"][name]
            table.add_row(words, *(format_number(values[metric.key]) for metric in PLACES["audit"]))
        out.print(table)
        out.print()
    for note in report["notes"]:
        out.print(Text(f"- {note}"))
    out.print()
