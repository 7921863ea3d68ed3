"""The words of `posters app` as HTML: genres against their thresholds, heat maps, what is left without the text.

File names and genres come from users: every word goes through ``html.escape``. Pictures are data URIs.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from toolkit.app.decoder import Refused
from toolkit.app.overlays import data_uri, heat_picture, outlined, scale_colours, seen_box
from toolkit.app.service import Answers, Line, Painted, Poster
from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.metrics.multilabel import FloatArray

#: Genres in a table, at most, besides those that are named.
MOST_LINES = 40
#: A difference of probabilities, in percentage points, from which it is worth an arrow's colour.
TELLING = 1.0

STYLE = """
.gradio-container{max-width:80rem!important;margin:0 auto!important;padding:0 clamp(.6rem,2vw,1.5rem) 3rem!important;
box-sizing:border-box}
.gradio-container>.app{padding:0!important}
.gradio-container .html-container{padding:0!important}
#gallery .grid-wrap{height:auto!important;min-height:0!important;max-height:16rem}
#gallery .grid-container{grid-template-columns:repeat(auto-fill,minmax(6.5rem,1fr))!important;grid-template-rows:none}
.posters{--mark:#be4a14;--cool:#4d7396;color:var(--body-text-color);font-size:.95rem;line-height:1.45;min-width:0}
.dark .posters{--mark:#f0864f;--cool:#86aed2}
.posters h1{font-size:clamp(1.35rem,4vw,1.9rem);line-height:1.2;margin:1.2rem 0 .3rem;font-weight:650}
.posters h2{font-size:1.08rem;margin:0 0 .15rem;font-weight:600;overflow-wrap:anywhere}
.posters p{margin:.1rem 0 .6rem}
.posters .soft,.posters figcaption{color:var(--body-text-color-subdued);font-size:.85rem}
.posters .card{background:var(--block-background-fill);border:1px solid var(--border-color-primary);
border-radius:.7rem;padding:1rem;min-width:0}
.posters .bad{border-left:4px solid var(--mark);padding:.5rem .8rem;margin:0 0 .4rem;overflow-wrap:anywhere}
.posters table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
.posters th,.posters td{padding:.34rem .45rem;text-align:right;white-space:nowrap}
.posters tr{border-bottom:1px solid var(--border-color-primary)}
.posters tbody tr:last-child{border-bottom:0}
.posters thead th{color:var(--body-text-color-subdued);font-weight:500;font-size:.8rem}
.posters th:first-child{text-align:left;font-weight:400;padding-left:0;white-space:normal;
overflow-wrap:break-word}
.posters td:last-child,.posters thead th:last-child{padding-right:0}
.posters .named th,.posters .named .p{font-weight:650}.posters .named th::after{content:"\\00a0✓";color:var(--mark)}
.posters .under{color:var(--body-text-color-subdued)}
.posters .bars .b{width:42%;padding:.3rem .2rem}
.posters .bar{display:block;position:relative;height:.95rem;border-radius:3px;background:var(--border-color-primary)}
.posters .bar i{position:absolute;inset:0 auto 0 0;border-radius:3px;background:var(--cool);opacity:.75}
.posters .named .bar i{background:var(--mark);opacity:1}
.posters .bar b{position:absolute;top:-.2rem;bottom:-.2rem;width:2px;margin-left:-1px;background:var(--body-text-color)}
.posters .two,.posters .three{display:grid;grid-template-columns:1fr 1fr;gap:1rem;align-items:start}
.posters .three{grid-template-columns:1fr 1fr 1.6fr;gap:1.2rem}
.posters figure{margin:0;min-width:0}
.posters figure img{display:block;width:100%;max-height:32rem;object-fit:contain;object-position:top;
border-radius:.35rem}
.posters figcaption{margin:.4rem 0 0}
.posters .scale{height:.7rem;border-radius:3px;margin:.5rem 0 .15rem}
.posters .ends{display:flex;justify-content:space-between;gap:1rem;font-size:.8rem}
.posters .up{color:var(--mark)}.posters .down{color:var(--cool)}
.posters .key{display:inline-block;width:1.1rem;height:.2rem;vertical-align:middle;margin-right:.3rem}
@media(max-width:52rem){.posters .three{grid-template-columns:1fr 1fr}.posters .three>:last-child{grid-column:1/-1}}
@media(max-width:36rem){.posters .card{padding:.75rem}.posters .two,.posters .three{gap:.7rem}
.posters .bars tr{display:grid;grid-template-columns:1fr 5.2rem 4.6rem 3.4rem}.posters .bars .b{order:9;
grid-column:1/-1;width:auto;padding:.1rem 0 .6rem}
.posters .bars thead .b{display:none}.posters .bars tr>:not(.b){padding-bottom:.1rem}}
"""


def header(answers: Answers) -> str:
    """What the page is, and which model answers."""
    folder, ours = answers.folder, answers.folder.preprocessing
    sees = "whole posters" if ours.fit == "stretch" else "the central square of posters"
    said = (
        f"The model ({folder.config['architecture']}, {len(folder.labels)} genres) sees {sees} at "
        f"{ours.image_size} x {ours.image_size} pixels. What is uploaded stays on the "
        f"machine that runs this page; the files go within an hour."
    )
    return _posters(f'<h1>Which genres does a poster show?</h1><p class="soft">{escape(said)}</p>')


def refusals(refused: Sequence[Refused]) -> str:
    """A line for every file that is no poster."""
    lines = (
        f'<div class="card bad"><b>{escape(file.name)}</b>: {escape(file.message)}</div>' for file in refused
    )
    return _posters("".join(lines)) if refused else ""


def genres_card(poster: Poster, lines: Sequence[Line], answers: Answers) -> str:
    """All genres with probability, threshold and how they compare, most probable first."""
    shown = [line for rank, line in enumerate(lines) if line.named or rank < MOST_LINES]
    rows = "".join(map(_genre_row, shown))
    more = f"And {len(lines) - len(shown)} less probable genres. " if len(shown) < len(lines) else ""
    decisions = answers.folder.decisions
    said = (
        f"{more}The upright line in a bar is the genre's threshold, from which on it is named (✓); the last column is "
        f"probability over threshold. Calibration: {decisions.calibration}. Thresholds: {decisions.source}."
    )
    return _posters(
        f'<div class="card" id="genres"><h2>{escape(poster.name)}</h2><p>{_verdict(lines)}</p>'
        f'<table class="bars"><thead><tr><th>genre</th><th class="b"></th><th>probability</th>'
        f"<th>threshold</th><th>ratio</th></tr></thead><tbody>{rows}</tbody></table>"
        f'<p class="soft" style="margin:.7rem 0 0">{escape(said)}</p></div>'
    )


def _verdict(lines: Sequence[Line]) -> str:
    named = [f"<b>{escape(line.genre)}</b> ({line.probability:.0%})" for line in lines if line.named]
    return f"Named: {', '.join(named)}" if named else "No genre reaches its threshold."


def _genre_row(line: Line) -> str:
    return (
        f'<tr class="{"named" if line.named else "under"}" data-genre="{escape(line.genre)}" '
        f'data-probability="{line.probability:.6f}"><th scope="row">{escape(line.genre)}</th>'
        f'<td class="b"><span class="bar"><i style="width:{line.probability:.2%}"></i>'
        f'<b style="left:{line.threshold:.2%}"></b></span></td>'
        f'<td class="p">{line.probability:.1%}</td><td>{line.threshold:.1%}</td><td>{_ratio(line)}</td></tr>'
    )


def _ratio(line: Line) -> str:
    return (
        "> 99 x" if line.ratio > 99 else f"{line.ratio:.2f} x" if line.ratio < 10 else f"{line.ratio:.0f} x"
    )


def heat_card(poster: Poster, genre: str, heat: FloatArray | None, answers: Answers) -> str:
    """The heat map of one genre, or why there is none."""
    if heat is None:
        return _posters(
            f'<div class="card" id="heat"><div class="two"><figure><img src="{data_uri(poster.jpeg)}" '
            f'alt="the poster"></figure><p>{escape(answers.no_heat)}</p></div></div>'
        )
    ours = answers.folder.preprocessing
    image = poster.image
    picture = heat_picture(image, heat, seen_box(image.size, ours))
    if heat.max() > 0:
        said = f"The brighter a place, the more it speaks for {genre}."
    else:
        said = f"No place in this picture speaks for {genre}."
    colours = ",".join(scale_colours())
    return _posters(
        f'<div class="card" id="heat" data-genre="{escape(genre)}"><div class="two">'
        f'<figure><img src="{data_uri(poster.jpeg)}" alt="the poster"></figure>'
        f'<figure><img src="{data_uri(picture)}" alt="heat map of {escape(genre)}"></figure></div>'
        f'<div class="scale" style="background:linear-gradient(90deg,{colours})"></div>'
        f'<div class="ends"><span>nothing for it</span><span>most for it</span></div>'
        f'<p class="soft" style="margin:.5rem 0 0">{escape(said)} {_seen(image.size, ours)}Grad-CAM on the '
        f"last stage, which has {answers.grid[1]} x {answers.grid[0]} places; the scale ends at this map's maximum: "
        f"maps compare in shape, not in strength.</p></div>"
    )


def _seen(size: tuple[int, int], ours: Preprocessing) -> str:
    whole = seen_box(size, ours) == (0, 0, *size)
    return "" if whole else "What is pale lies outside of what the model is shown. "


def waiting_card() -> str:
    """Until text has been looked for."""
    return _posters('<div class="card" id="text"><h2>Without the text</h2><p>Looking for text ...</p></div>')


def no_text_card(reason: str) -> str:
    """Why text is not looked for."""
    return _posters(f'<div class="card" id="text"><h2>Without the text</h2><p>{escape(reason)}</p></div>')


def text_card(poster: Poster, painted: Painted, with_text: Sequence[Line], without: Sequence[Line]) -> str:
    """The poster with its text outlined, painted over, and both answers side by side."""
    after = {line.genre: line for line in without}
    listed = [line for rank, line in enumerate(with_text) if rank < MOST_LINES or line.named]
    rows = "".join(_change_row(line, after[line.genre]) for line in listed)
    return _posters(
        f'<div class="card" id="text"><h2>Without the text</h2><p>{_what_was_found(painted)}</p>'
        f'<div class="three">'
        f'<figure><img src="{data_uri(outlined(poster.image, painted.polygons, painted.doubted))}" '
        f'alt="the poster with its text outlined"><figcaption>{_legend(painted)}</figcaption></figure>'
        f'<figure><img src="{data_uri(painted.jpeg)}" alt="the poster without its text">'
        f"<figcaption>Painted over with what surrounds it</figcaption></figure>"
        f"<table><thead><tr><th>genre</th><th>with text</th><th>without</th><th>difference</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div></div>"
    )


def _what_was_found(painted: Painted) -> str:
    if not painted.polygons:
        return "No text was found: the answer is the same."
    return f"{painted.share:.0%} of the poster was taken for text and painted over."


def _legend(painted: Painted) -> str:
    parts = ['<span class="key" style="background:rgb(255,92,32)"></span>text']
    if painted.doubted:
        reasons = escape("; ".join(sorted(set(painted.reasons))))
        parts.append(f'<span class="key" style="background:rgb(64,156,255)"></span>left as it is: {reasons}')
    return "<br>".join(parts)


def _change_row(before: Line, after: Line) -> str:
    points = 100.0 * (after.probability - before.probability)
    tone = "" if abs(points) < TELLING else " class=up" if points > 0 else " class=down"
    return (
        f'<tr data-genre="{escape(before.genre)}" data-without="{after.probability:.6f}">'
        f'<th scope="row">{escape(before.genre)}</th><td>{_tick(before)}</td><td>{_tick(after)}</td>'
        f"<td{tone}>{points:+.1f}</td></tr>".replace("+0.0", "0.0").replace("-0.0", "0.0")
    )


def _tick(line: Line) -> str:
    return f"<b>{line.probability:.1%} ✓</b>" if line.named else f"{line.probability:.1%}"


def _posters(content: str) -> str:
    return f'<div class="posters">{content}</div>'
