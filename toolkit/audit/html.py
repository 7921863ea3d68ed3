"""The audit as one HTML page that needs nothing but itself: pictures as data URIs, the chart as SVG, no script.

Ids and genres come from users: every word goes through ``html.escape``.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from shards.visuals.page_style import PAGE_STYLE
from toolkit.audit.effects import posters
from toolkit.metrics.table import PLACES

if TYPE_CHECKING:
    from toolkit.audit.contact_sheet import Example

SHOWN_CONTROL = "Of the controls the first is shown; the number beside the id is the mean of all."
#: What this page has beside the common style.
STYLE = """
.t{color:var(--text);font-weight:600}.c{color:var(--control);font-weight:600}
.bar{display:inline-block;width:6rem;height:.6rem;position:relative;border-left:1px solid var(--grey);
transform:translateX(3rem)}
.bar i{position:absolute;top:0;height:100%;border-radius:2px}
.bar .up{left:0;background:var(--text)}.bar .down{right:100%;background:var(--control)}
.three{display:grid;grid-template-columns:repeat(3,1fr);gap:.5rem}
.grid table{font-size:.85rem;margin-top:.5rem}.grid th,.grid td{padding:.2rem .3rem}
.grid th:first-child,.grid td:first-child{min-width:0}
.flip td{color:var(--text);font-weight:600}
svg{display:block;width:100%;max-width:42rem;height:auto}svg text{fill:var(--grey);font-size:14px}
"""


def page(report: dict[str, Any], examples: Sequence[Example]) -> str:
    """The whole page."""
    parts = [
        f'<p class="over">How much does the model read?</p><h1>{escape(report["sentence"])}</h1>',
        f'<div class="card scroll">{_effects(report)}</div>',
        _section("How the effects are spread", _chart(report["histogram"])),
        _section("What the titles say for each genre", _genres(report["genres"])),
        _section("Metrics with and without text", _metrics(report["metrics"])),
        _section("To be read with it", _list(report["notes"])),
    ]
    if examples:
        cards = "".join(_example(example) for example in examples)
        parts.append(f'<h2>The posters with the largest effect</h2><p class="note">{SHOWN_CONTROL}</p>')
        parts.append(f'<div class="grid">{cards}</div>')
    parts.append(_section("The command", _facts(report)))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>How much does the model read?</title><style>{PAGE_STYLE}{STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f'<h2>{title}</h2><div class="card scroll">{content}</div>' if content else ""


def _table(head: Iterable[str], rows: Iterable[str]) -> str:
    cells = "".join(f"<th>{escape(word)}</th>" for word in head)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _row(first: str, cells: Iterable[str], kind: str = "") -> str:
    """A table row; ``first`` and the cells are HTML."""
    inner = "".join(f"<td>{cell}</td>" for cell in cells)
    return f"<tr{f' class={kind}' if kind else ''}><td>{first}</td>{inner}</tr>"


def _number(value: float | None, digits: int = 4) -> str:
    return "&ndash;" if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return "&ndash;" if value is None else f"{value:.1%}"


def _effects(report: dict[str, Any]) -> str:
    names = {
        "text": '<span class="t">text painted over</span>',
        "control": '<span class="c">same area elsewhere</span>',
        "reencoding": "re-encoding alone",
    }
    rows = []
    for key, name in names.items():
        means = report["effects"][key]
        cells = [_number(means["probability"]), _number(means["largest"]), _number(means["logit"], 3)]
        cells += [_share(means["flipped_decisions"]), _share(means["posters_with_a_flip"])]
        rows.append(_row(name, cells))
    head = ("", "mean change", "largest genre", "of the logit", "flipped decisions", "posters with a flip")
    count = posters(report["counts"]["compared"])
    return (
        _table(head, rows)
        + f'<p class="note">{count}; changes of a probability, mean over genres and posters.'
        " The control is the mean of its draws.</p>"
    )


def _chart(histogram: dict[str, Any]) -> str:
    """Two bars a bin: the text's and the control's."""
    edges, text, control = histogram["edges"], histogram["text"], histogram["control"]
    if not edges:
        return ""
    width, height, left, bottom = 480, 220, 40, 30
    most = max(*text, *control, 1)
    step = (width - left - 6) / len(text)
    bars = []
    for number, pair in enumerate(zip(text, control, strict=True)):
        for side, count in enumerate(pair):
            tall = count / most * (height - bottom - 24)
            x, y = left + step * number + side * step * 0.44 + 1, height - bottom - tall
            color = ("--text", "--control")[side]
            bars.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{step * 0.42:.1f}" height="{tall:.1f}" fill="var({color})"/>'
            )
    base = height - bottom
    ticks = "".join(
        f'<text x="{left + (width - left - 6) * at / 4:.0f}" y="{base + 18}" '
        f'text-anchor="{("start", "middle", "middle", "middle", "end")[at]}">{edges[-1] * at / 4:.3f}</text>'
        for at in range(5)
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Posters by the size of the effect">'
        f'<text x="{left - 6}" y="30" text-anchor="end">{most:,}</text><text x="{left - 6}" y="{base}" '
        f'text-anchor="end">0</text>{"".join(bars)}<line x1="{left}" x2="{width - 6}" y1="{base}" y2="{base}" '
        f'stroke="var(--grey)"/>{ticks}</svg><p class="note">Posters by mean change of probability: '
        '<span class="t">text painted over</span>, <span class="c">same area elsewhere</span>. '
        "The last bin holds all beyond.</p>"
    )


def _genres(records: Sequence[dict[str, Any]]) -> str:
    if not records:
        return ""
    most = max(max(abs(record["title_adds"]) for record in records), 1e-9)
    rows = []
    for record in sorted(records, key=lambda record: -record["text"]):
        share = abs(record["title_adds"]) / most * 50
        side = "up" if record["title_adds"] >= 0 else "down"
        bar = f'<span class="bar"><i class="{side}" style="width:{share:.0f}%"></i></span>'
        cells = [bar, f"{record['title_adds']:+.4f}", _number(record["text"]), _number(record["control"])]
        cells += [_number(record["reencoding"]), str(record["gained"]), str(record["lost"])]
        rows.append(_row(escape(record["genre"]), cells))
    head = (
        "genre",
        "",
        "title adds",
        "text",
        "control",
        "re-encoding",
        "named only with text",
        "only without",
    )
    return _table(head, rows) + (
        '<p class="note">Title adds: mean probability with the text minus without; above 0 the titles speak for '
        "the genre. Text, control, re-encoding: mean change, either way.</p>"
    )


def _metrics(metrics: dict[str, Any] | None) -> str:
    if not metrics:
        return ""
    names = {
        "raw": "posters as they are",
        "reencoded": "re-encoded",
        "cleaned": '<span class="t">text painted over</span>',
        "control": '<span class="c">same area elsewhere</span>',
    }
    shown = PLACES["audit"]
    rows = [_row(name, [_number(metrics[key][m.key], 3) for m in shown]) for key, name in names.items()]
    note = (
        f"Only the {posters(metrics['posters'])} that were compared and have known genres; genres without "
        f"positives among them count in no mean (mAP over {metrics['raw']['num_genres_ap']} genres)."
    )
    return _table(["", *(metric.column for metric in shown)], rows) + f'<p class="note">{note}</p>'


def _list(notes: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<ul>{items}</ul>" if items else ""


def _example(example: Example) -> str:
    facts = example.facts
    pictures = zip(
        ("as it is", "text painted over", "same area elsewhere"),
        (example.raw, example.cleaned, example.control),
        strict=True,
    )
    figures = "".join(
        f'<figure><img loading="lazy" alt="{words}" src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">'
        f"<figcaption>{words}</figcaption></figure>"
        for words, data in pictures
    )
    rows = [
        _row(
            escape(change["genre"]) + (" (flips)" if change["flipped"] else ""),
            [_number(change[key], 2) for key in ("raw", "cleaned", "control")],
            "flip" if change["flipped"] else "",
        )
        for change in facts["changes"]
    ]
    table = _table(("genre", "as it is", "painted", "elsewhere"), rows)
    summary = (
        f"text {facts['text']:.3f}, control {facts['control']:.3f}, {facts['area']:.0%} of the poster painted"
    )
    return (
        f'<div class="card"><div class="id">{escape(facts["id"])}</div><small>{summary}</small>'
        f'<div class="three">{figures}</div>{table}</div>'
    )


def _facts(report: dict[str, Any]) -> str:
    command, counts = report["command"], report["counts"]
    shown = {key: command[key] for key in command if key not in ("genres", "thresholds")}
    shown |= {key: value for key, value in counts.items() if value}
    items = "".join(f"<dt>{escape(_words(key))}</dt><dd>{escape(_plain(v))}</dd>" for key, v in shown.items())
    return f"<dl>{items}</dl>"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {count}" for key, count in value.items())
    return "none" if value is None else str(value)
