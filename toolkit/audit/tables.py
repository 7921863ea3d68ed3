"""Tables of the audit for the screen."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from toolkit.audit.effects import posters
from toolkit.evaluation.tables import number_table, report_console
from toolkit.metrics.registry import PLACES, format_number

EFFECT_COLUMNS = {
    "probability": "mean change",
    "largest": "largest genre",
    "logit": "mean change (logit)",
    "flipped_decisions": "flipped decisions",
    "posters_with_a_flip": "posters with a flip",
}
GENRE_COLUMNS = {
    "title_adds": "effect of titles",
    "text": "text",
    "control": "control",
    "reencoding": "re-encoding",
    "gained": "named only with text",
    "lost": "named only without",
}
EFFECT_NAMES = {"text": "text painted over", "control": "same area elsewhere", "reencoding": "re-encoding alone"}
METRIC_NAMES = {
    "raw": "raw posters",
    "reencoded": "re-encoded",
    "cleaned": "text painted over",
    "control": "same area elsewhere",
}


def render_report(report: dict[str, Any]) -> None:
    """Print the sentence, the tables and the notes."""
    title = f"changes of the predictions, {posters(report['counts']['compared'])}"
    effects = number_table(title, "", EFFECT_COLUMNS.values())
    for name, words in EFFECT_NAMES.items():
        means = report["effects"][name]
        effects.add_row(words, *(format_number(means[k], ".1%" if "flip" in k else ".4f") for k in EFFECT_COLUMNS))
    shown: list[Text | Table] = [Text(report["sentence"], style="bold"), effects]
    if report["genres"]:
        table = number_table("per genre, largest effect of the text first", "genre", GENRE_COLUMNS.values())
        for row in sorted(report["genres"], key=lambda row: -row["text"]):
            numbers = (format_number(row[k], "+.4f" if k == "title_adds" else ".4f") for k in GENRE_COLUMNS)
            table.add_row(Text(row["genre"]), *numbers)
        table.caption = Text("effect of titles: mean probability with text minus without")
        shown.append(table)
    if metrics := report["metrics"]:
        title = f"metrics on {posters(metrics['posters'])}"
        table = number_table(title, "", [metric.column for metric in PLACES["audit"]])
        for name, words in METRIC_NAMES.items():
            table.add_row(words, *(format_number(metrics[name][metric.key]) for metric in PLACES["audit"]))
        shown.append(table)
    out = report_console()
    for part in [*shown, Text("\n".join(f"- {note}" for note in report["notes"]))]:
        out.print(part)
        out.print()
