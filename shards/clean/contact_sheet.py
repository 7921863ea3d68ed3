"""Write an HTML page and PNGs of the worst posters: each before cleaning, with its mask, and after cleaning."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shards.inputs.image_files import read_image_file
from shards.inputs.images import BadImage, decode
from shards.storage.files import atomic_write, names_in, remove_file
from shards.text.masks import mask_of
from shards.text.report import summarize
from shards.visuals.templates import render

if TYPE_CHECKING:
    from shards.clean.run import CleanOptions

PAGE = "contact_sheet.html"
HEIGHT = 320  # height of each picture in pixels
PER_PNG, COLUMNS = 8, 2  # posters and columns in a PNG
#: Colours in the mask picture: painted areas, and regions that were not painted over.
PAINTED, SKIPPED = (226, 30, 140), (255, 190, 0)


def worst_first(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return the ``count`` worst posters, by remaining text, then by skipped regions, then by painted area."""
    order = sorted(rows, key=lambda r: (-r["text_after"], -len(r["skipped"]), -r["altered"], r["id"]))
    return order[:count]


def write_sheet(options: CleanOptions, rows: Sequence[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Write the sheet of the worst posters to ``options.sheet_folder``. Old PNGs are deleted."""
    out = options.sheet_folder
    out.mkdir(parents=True, exist_ok=True)
    for name in names_in(out):
        if name.startswith("contact_sheet-") and name.endswith(".png"):
            remove_file(out / name)
    worst = [(row, tiles(row, options)) for row in worst_first(rows, options.sheet)]
    for number, start in enumerate(range(0, len(worst), PER_PNG), 1):
        with atomic_write(out / f"contact_sheet-{number:02d}.png") as stream:
            _png(worst[start : start + PER_PNG]).save(stream, "PNG")
    summary = summary_lines(summarize(rows))
    values = {"posters": worst, "summary": summary, "facts": facts, "painted": PAINTED, "skipped": SKIPPED}
    with atomic_write(out / PAGE, "w") as stream:
        stream.write(render("shards.clean/contact_sheet.html", caption=caption, **values))


def tiles(row: dict[str, Any], options: CleanOptions) -> list[Image.Image]:
    """Return three pictures of a poster, each HEIGHT pixels high: before cleaning, with the mask, after cleaning."""
    found = []
    for folder in (options.images, options.out):
        try:
            found.append(decode(read_image_file(folder, row["id"]), options.image))
        except BadImage:  # the file was deleted after cleaning: show a grey picture
            found.append(Image.new("RGB", (row["width"], row["height"]), "grey"))
    before, after = found
    shown = np.asarray(before.convert("L").convert("RGB")).astype(np.float32) * 0.55 + 60
    for polygons, colour in ((row["polygons"], PAINTED), (row["skipped_polygons"], SKIPPED)):
        mask = mask_of(polygons, shown.shape[:2])
        shown[mask] = shown[mask] * 0.45 + np.array(colour, np.float32) * 0.55
    mask_image = Image.fromarray(shown.clip(0, 255).astype(np.uint8))
    width = max(1, round(row["width"] * HEIGHT / row["height"]))
    return [picture.resize((min(width, 3 * HEIGHT), HEIGHT)) for picture in (before, mask_image, after)]


def caption(row: dict[str, Any]) -> str:
    """Return the text below a poster."""
    left = f"regions left: {row['boxes_after']} ({row['text_after']:.1%})" if row["boxes_after"] else "no text left"
    words = (
        f"text {row['text_before']:.1%} of the picture, {left}; {row['altered']:.1%} painted over "
        f"({row['fill']}, {row['passes']} {'pass' if row['passes'] == 1 else 'passes'})"
    )
    return words + "".join(f"; not painted over: {reason}" for reason in dict.fromkeys(row["skipped"]))


def _png(page: Sequence[tuple[dict[str, Any], list[Image.Image]]]) -> Image.Image:
    font = ImageFont.load_default(15)
    gap, text = 12, 46
    cells = []
    for row, pictures in page:
        cell = Image.new("RGB", (max(690, sum(p.width + 4 for p in pictures)), HEIGHT + text), "white")
        left = 0
        for picture in pictures:
            cell.paste(picture, (left, 0))
            left += picture.width + 4
        lines = textwrap.wrap(f"{row['id']}: {caption(row)}", 96, max_lines=2, placeholder=" ...")
        ImageDraw.Draw(cell).multiline_text((2, HEIGHT + 4), "\n".join(lines), "black", font)
        cells.append(cell)
    wide = max((cell.width for cell in cells), default=1)
    rows = -(-len(cells) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (wide + gap) + gap, rows * (HEIGHT + text + gap) + gap), "white")
    for number, cell in enumerate(cells):
        sheet.paste(cell, (gap + number % COLUMNS * (wide + gap), gap + number // COLUMNS * (HEIGHT + text + gap)))
    return sheet


def summary_lines(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the results of ``summarize`` as pairs of a name and a text."""
    return [
        ("posters", f"{summary['posters']}, {summary['with_text']} with text"),
        ("text found", f"{summary['text_before_mean']:.1%} of the picture on average"),
        (
            "text left",
            f"{summary['text_after_of_before']:.2%} of the text is still found by the same detector, "
            f"on {summary['posters_with_text_after']} posters",
        ),
        ("painted over", f"{summary['altered_median']:.1%} of the picture (median of posters with text)"),
        ("passes", f"{summary['passes_mean']:.2f} on average"),
        ("not painted", f"regions on {summary['posters_with_skipped']} posters: too large or uncertain"),
        ("seconds", f"{summary['seconds_mean']:.2f} per poster and core"),
    ]
