"""Draw a contact sheet: one PNG with a grid of posters and their true and predicted genres.

A mark (tick, cross, ring or dot) repeats the meaning of each colour, for readers who cannot tell red from green.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from shards.inputs.images import ANY, BadImage, decode
from shards.storage.files import atomic_write
from shards.visuals.fonts import characters_of, find_fonts, warn_of_missing

Color = tuple[int, int, int]

# Sizes in pixels. On a screen of double density, text of 26 pixels looks like text of 13 pixels.
MARGIN, GAP, PADDING = 48, 28, 14
COLUMNS, THUMB = 6, (320, 480)
CARD_WIDTH = THUMB[0] + 2 * PADDING
TEXT, TITLE, LINE = 26, 48, 36
MARK = 34  # width of the column of marks, which is left of the text

PAPER, CARD, FRAME, TILE = (244, 244, 241), (255, 255, 255), (221, 221, 216), (234, 234, 230)
INK, GREY = (34, 36, 40), (104, 106, 112)
#: Verdict about a genre -> (colour, text in the legend).
VERDICTS: dict[str, tuple[Color, str]] = {
    "right": ((20, 122, 58), "predicted, right"),
    "wrong": ((192, 36, 40), "predicted, wrong"),
    "missed": ((160, 98, 0), "missed"),
    "unknown": ((36, 86, 166), "predicted, true genres unknown"),
}


@dataclass(frozen=True)
class GalleryItem:
    """One poster of the sheet."""

    image: Image.Image | bytes  # a picture, or the bytes of its file (JPEG, PNG, ...)
    true: list[str] | None  # the true genres, None if they are unknown
    predicted: list[tuple[str, float]]  # (genre, probability) of each predicted genre


@dataclass(frozen=True)
class _Line:
    """A line under a poster. ``verdict`` selects the mark before the text. ``number`` is drawn at the right edge."""

    text: str
    color: Color
    verdict: str = ""
    number: str = ""


def save_gallery(path: Path, items: Sequence[GalleryItem], title: str = "") -> None:
    """Draw the contact sheet of ``items``, row by row, and write it atomically to ``path`` as a PNG.

    If the bytes of an item are not a picture, a message is drawn instead of the poster.
    """
    warn_of_missing(find_fonts([title, *_names(items)]), f"the contact sheet {path}")
    columns = min(COLUMNS, max(1, len(items)))
    legend = [v for v in VERDICTS if v != "unknown" or any(item.true is None for item in items)]
    legend_widths = [MARK + _width(VERDICTS[verdict][1]) for verdict in legend]
    # A sheet with one column must be wide enough for the legend.
    inner = max(columns * (CARD_WIDTH + GAP) - GAP, round(max(legend_widths)))
    headline = wrap_text(title, inner, TITLE)

    notes = [list(_lines(item)) for item in items]
    heights = [
        max(len(lines) for lines in notes[start : start + columns]) * LINE + THUMB[1] + 3 * PADDING
        for start in range(0, len(items), columns)
    ]
    places = list(_flow(legend_widths, inner))
    legend_top = MARGIN + len(headline) * (TITLE + 18)
    grid_top = legend_top + (places[-1][1] + 1) * LINE + GAP
    bottom = grid_top + (sum(heights) + GAP * (len(heights) - 1) if items else LINE)

    sheet = Image.new("RGB", (inner + 2 * MARGIN, bottom + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, words in enumerate(headline):
        pen.text((MARGIN, MARGIN + number * (TITLE + 18)), words, INK, load_font(TITLE, words))
    for verdict, (x, row) in zip(legend, places, strict=True):
        color, words = VERDICTS[verdict]
        _draw_line(pen, MARGIN + x, legend_top + row * LINE, _Line(words, color, verdict))
    if not items:
        _draw_line(pen, MARGIN, grid_top, _Line("no posters", GREY))
    top = grid_top
    for row, height in enumerate(heights):
        for column, item in enumerate(items[row * columns : (row + 1) * columns]):
            left = MARGIN + column * (CARD_WIDTH + GAP)
            box = (left, top, left + CARD_WIDTH - 1, top + height - 1)
            pen.rounded_rectangle(box, radius=12, fill=CARD, outline=FRAME, width=2)
            sheet.paste(poster_tile(item.image), (left + PADDING, top + PADDING))
            for number, line in enumerate(notes[row * columns + column]):
                _draw_line(pen, left + PADDING, top + 2 * PADDING + THUMB[1] + number * LINE, line)
        top += height + GAP
    with atomic_write(path) as stream:
        sheet.save(stream, "PNG", optimize=False)


def _names(items: Sequence[GalleryItem]) -> Iterator[str]:
    for item in items:
        yield from item.true or []
        yield from (genre for genre, _ in item.predicted)


def _lines(item: GalleryItem) -> Iterator[_Line]:
    """Yield the lines under a poster: the true genres, then each predicted genre, then each missed genre."""
    truth = "unknown" if item.true is None else ", ".join(item.true) or "none"
    for text in wrap_text(f"True: {truth}", THUMB[0]):
        yield _Line(text, GREY)
    for genre, probability in sorted(item.predicted, key=lambda pair: -pair[1]):
        verdict = "unknown" if item.true is None else "right" if genre in item.true else "wrong"
        yield from _marked(genre, verdict, f"{probability:.0%}")
    named = {genre for genre, _ in item.predicted}
    if not named:
        yield _Line("nothing predicted", GREY)
    for genre in item.true or []:
        if genre not in named:
            yield from _marked(genre, "missed", "")


def _marked(genre: str, verdict: str, number: str) -> Iterator[_Line]:
    """Yield the lines of a genre. The first line has a mark and a number. A long name continues on indented lines."""
    available = THUMB[0] - MARK - _width("100%") - 12
    for position, text in enumerate(wrap_text(genre, available)):
        color = VERDICTS[verdict][0]
        yield _Line(text, color, verdict, number) if position == 0 else _Line(text, color, "indent")


def wrap_text(text: str, available: float, size: int = TEXT) -> list[str]:
    """Break ``text`` into lines that are at most ``available`` pixels wide. A word that is too long is broken.

    Characters that no font of this machine has become question marks.
    """
    text = unicodedata.normalize("NFC", text)
    missing = find_fonts([text]).missing
    lines: list[str] = []
    current = ""
    for word in text.translate(dict.fromkeys(map(ord, missing), "?")).split():
        if current and _width(f"{current} {word}", size) <= available:
            current = f"{current} {word}"
            continue
        if current:
            lines.append(current)
        while len(word) > 1 and _width(word, size) > available:
            fits = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or _width(word[:n], size) <= available)
            lines.append(word[:fits])
            word = word[fits:]
        current = word
    return [*lines, current] if current else lines


def _flow(widths: Sequence[float], available: float) -> Iterator[tuple[float, int]]:
    """Yield the position (x, row) of each item of the legend. An item that does not fit into a row begins a new row."""
    x, row = 0.0, 0
    for width in widths:
        if x and x + width > available:
            x, row = 0.0, row + 1
        yield x, row
        x += width + 2 * MARK


def _draw_line(pen: ImageDraw.ImageDraw, x: float, y: float, line: _Line) -> None:
    middle = y + LINE / 2
    if line.verdict:
        _draw_mark(pen, x + 11, middle, line)
    pen.text((x + (MARK if line.verdict else 0), middle), line.text, line.color, load_font(TEXT, line.text), "lm")
    if line.number:
        pen.text((x + THUMB[0], middle), line.number, line.color, load_font(TEXT), "rm")


def _draw_mark(pen: ImageDraw.ImageDraw, x: float, y: float, line: _Line) -> None:
    """Draw a tick, a cross, a ring or a dot. The verdict "indent" has no mark."""
    if line.verdict == "right":
        pen.line([(x - 9, y), (x - 3, y + 7), (x + 10, y - 8)], line.color, 5, "curve")
    elif line.verdict == "wrong":
        pen.line([(x - 8, y - 8), (x + 8, y + 8)], line.color, 5)
        pen.line([(x - 8, y + 8), (x + 8, y - 8)], line.color, 5)
    elif line.verdict == "missed":
        pen.ellipse((x - 9, y - 9, x + 9, y + 9), outline=line.color, width=4)
    elif line.verdict == "unknown":
        pen.ellipse((x - 7, y - 7, x + 7, y + 7), fill=line.color)


def poster_tile(source: Image.Image | bytes) -> Image.Image:
    """Return a grey tile of THUMB pixels. The picture is in the middle and as large as possible."""
    tile = Image.new("RGBA", THUMB, TILE)
    try:
        image = decode(source, ANY) if isinstance(source, bytes) else source
        scale = min(THUMB[0] / image.width, THUMB[1] / image.height)
        # A very wide or very tall picture must also have at least one pixel on each side.
        width, height = (max(1, round(side * scale)) for side in image.size)
        thumb = image.convert("RGBA").resize((width, height), Image.Resampling.LANCZOS)
        tile.alpha_composite(thumb, ((THUMB[0] - width) // 2, (THUMB[1] - height) // 2))
    except (OSError, ValueError, ZeroDivisionError, BadImage):
        ImageDraw.Draw(tile).text((THUMB[0] / 2, THUMB[1] / 2), "unreadable image", GREY, load_font(TEXT), "mm")
    return tile.convert("RGB")


def _width(text: str, size: int = TEXT) -> float:
    return load_font(size, text).getlength(text)


def load_font(size: int, text: str = "") -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font of the sheet for ``text``, at a size in pixels.

    For ASCII, the font is inside Pillow, so it is the same on every machine. For other texts, it is the font of
    `find_fonts` that has the most of their characters.
    """
    return _font(size, frozenset(text) if not text.isascii() else frozenset())


@cache
def _font(size: int, characters: frozenset[str]) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if not characters:
        return ImageFont.load_default(size=size)
    files = find_fonts(characters).files
    return ImageFont.truetype(max(files, key=lambda file: len(characters & characters_of(file))), size)
