"""The audit on the screen."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from toolkit.audit.effects import posters
from toolkit.evaluation.tables import number_table, report_console
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
    title = f"how far predictions move, {posters(report['counts']['compared'])}"
    effects = number_table(title, "", EFFECT_COLUMNS.values())
    for name, words in EFFECT_NAMES.items():
        means = report["effects"][name]
        effects.add_row(words, *(format_number(means[k], ".1%" if "flip" in k else ".4f") for k in EFFECT_COLUMNS))
    shown: list[Text | Table] = [Text(report["sentence"], style="bold"), effects]
    if report["genres"]:
        table = number_table("per genre, most moved by text first", "genre", GENRE_COLUMNS.values())
        for row in sorted(report["genres"], key=lambda row: -row["text"]):
            numbers = (format_number(row[k], "+.4f" if k == "title_adds" else ".4f") for k in GENRE_COLUMNS)
            table.add_row(Text(row["genre"]), *numbers)
        table.caption = Text("title adds: mean probability with the text minus without")
        shown.append(table)
    if metrics := report["metrics"]:
        title = f"metrics, on these {posters(metrics['posters'])} only"
        table = number_table(title, "", [metric.column for metric in PLACES["audit"]])
        for name, words in METRIC_NAMES.items():
            table.add_row(words, *(format_number(metrics[name][metric.key]) for metric in PLACES["audit"]))
        shown.append(table)
    out = report_console()
    for part in [*shown, Text("\n".join(f"- {note}" for note in report["notes"]))]:
        out.print(part)
        out.print()
