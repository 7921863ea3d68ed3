"""Draw audit.png: the result of an audit, and thumbnails of the posters whose text has the largest effects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from shards.inputs.images import jpeg
from shards.storage.files import atomic_write
from shards.visuals.contact_sheet import (
    CARD,
    FRAME,
    GREY,
    INK,
    LINE,
    MARGIN,
    PAPER,
    TEXT,
    TITLE,
    load_font,
    poster_tile,
    wrap_text,
)

#: Maximum width and height of a thumbnail in pixels. The page shows thumbnails at half this size.
THUMBNAIL = (320, 480)
PICTURES = ("raw poster", "text painted over", "same area elsewhere")
LEGEND = "The largest effects. Pictures show the first control. Control effects are means of all controls."
ACCENT = (190, 74, 20)
TILE_GAP, PAD = 14, 20
COLUMNS = 2


@dataclass(frozen=True)
class Example:
    """One poster: its entry in audit.json, and three JPEGs."""

    facts: dict[str, Any]
    raw: bytes
    cleaned: bytes
    control: bytes


def thumbnail(image: Image.Image) -> bytes:
    small = image.copy()
    small.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
    return jpeg(small, 85)


def save_sheet(path: Path, report: dict[str, Any], examples: Sequence[Example]) -> None:
    """Draw the result and the examples, and write the PNG file."""
    tile_width, tile_height = THUMBNAIL
    width = 3 * tile_width + 2 * TILE_GAP + 2 * PAD
    rows = max((len(example.facts["changes"]) for example in examples), default=0)
    height = 3 * PAD + tile_height + (2 + rows) * LINE
    columns = min(COLUMNS, max(1, len(examples)))
    inner = columns * width + (columns - 1) * PAD
    headline = wrap_text(report["sentence"], inner, TITLE)
    top = MARGIN + len(headline) * (TITLE + 18) + LINE + PAD
    lines = -(-len(examples) // columns)
    sheet = Image.new("RGB", (inner + 2 * MARGIN, top + lines * (height + PAD) + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, words in enumerate(headline):
        pen.text((MARGIN, MARGIN + number * (TITLE + 18)), words, INK, load_font(TITLE, words))
    pen.text((MARGIN, top - LINE - PAD // 2), LEGEND if examples else "", GREY, load_font(TEXT))
    for number, example in enumerate(examples):
        left = MARGIN + number % columns * (width + PAD)
        _card(sheet, pen, example, (left, top + number // columns * (height + PAD)), (width, height))
    with atomic_write(path) as stream:
        sheet.save(stream, "PNG")


def _card(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, example: Example, corner: tuple[int, int], size: tuple[int, int]
) -> None:
    left, top = corner
    box = (left, top, left + size[0] - 1, top + size[1] - 1)
    pen.rounded_rectangle(box, radius=12, fill=CARD, outline=FRAME, width=2)
    facts, x, step = example.facts, left + PAD, THUMBNAIL[0] + TILE_GAP
    inner = size[0] - 2 * PAD
    effects = f"text {facts['text']:.3f}, control {facts['control']:.3f}"
    name = "".join(wrap_text(facts["id"], inner - load_font(TEXT).getlength(effects) - PAD)[:1])
    pen.text((x, top + PAD), name, INK, load_font(TEXT, name))
    pen.text((x + inner, top + PAD), effects, GREY, load_font(TEXT), "ra")
    y = top + PAD + LINE + PAD // 2
    for number, data in enumerate((example.raw, example.cleaned, example.control)):
        sheet.paste(poster_tile(data), (x + number * step, y))
        pen.text((x + number * step, y + THUMBNAIL[1] + 6), PICTURES[number], GREY, load_font(TEXT))
    y += THUMBNAIL[1] + LINE + PAD // 2
    for line, change in enumerate(facts["changes"]):
        color = ACCENT if change["flipped"] else INK
        flips = "  flips" if change["flipped"] else ""
        raw, cleaned, control = (f"{change[kind]:.2f}" for kind in ("raw", "cleaned", "control"))
        for number, text in enumerate((f"{change['genre']}  {raw}", f"{cleaned}{flips}", control)):
            shown = "".join(wrap_text(text, THUMBNAIL[0])[:1])
            pen.text((x + number * step, y + line * LINE), shown, color, load_font(TEXT, shown))
