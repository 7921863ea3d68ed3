"""Write an HTML page and PNGs of the worst posters: each before cleaning, with its mask, and after cleaning."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shards.errors import without_secrets
from shards.inputs.image_files import read_image_file
from shards.inputs.images import BadImage, decode
from shards.storage.files import atomic_write, names_in, remove_file
from shards.text.masks import mask_of
from shards.text.report import summarize
from shards.visuals.links import page_of, subject_of, write_page
from shards.visuals.templates import percent, render

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
    """Write the HTML page and the PNGs of the worst posters to ``options.sheet_folder``. Old PNGs are deleted."""
    out = options.sheet_folder
    out.mkdir(parents=True, exist_ok=True)
    for name in names_in(out):
        if name.startswith("contact_sheet-") and name.endswith(".png"):
            remove_file(out / name)
    worst = [(row, tiles(row, options)) for row in worst_first(rows, options.sheet)]
    for number, start in enumerate(range(0, len(worst), PER_PNG), 1):
        with atomic_write(out / f"contact_sheet-{number:02d}.png") as stream:
            _png(worst[start : start + PER_PNG]).save(stream, "PNG")
    write_page(out / PAGE, page(options, rows, worst, facts))


def page(
    options: CleanOptions,
    rows: Sequence[dict[str, Any]],
    worst: Sequence[tuple[dict[str, Any], list[Image.Image]]],
    facts: dict[str, Any],
) -> str:
    """Return the HTML page. worst: rows of the posters to show, each with its three pictures."""
    summary = summarize(rows)
    return render(
        "shards.clean/contact_sheet.html",
        page_of=page_of("Cleaning", subject_of(options.out)),
        name=options.out.resolve().name,
        images=without_secrets(str(options.images)),
        made=date.today().isoformat(),
        posters=worst,
        caption=caption,
        summary=summary,
        tiles=page_tiles(summary),
        advice=advice(summary),
        lines=summary_lines(summary),
        facts=facts,
        sections=[("posters", "Posters, worst first"), ("facts", "Options and counts")],
        painted=PAINTED,
        skipped=SKIPPED,
    )


def page_tiles(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the tiles of the page. Each has one sentence in ``words``, a share or None in ``value``, and details."""
    posters, with_text, left = (summary[key] for key in ("posters", "with_text", "posters_with_text_after"))
    rest = summary["text_after_of_before"]
    on = f"on {left:,} {'poster' if left == 1 else 'posters'}"
    words = f"{percent(rest)} of the text is left, {on}" if left else "No text is left that the detector finds"
    return [
        {
            "words": f"{with_text:,} of {posters:,} posters have text",
            "value": with_text / posters if posters else 0.0,
            "explanation": f"The text covers {summary['text_before_mean']:.1%} of a poster on average.",
        },
        {
            "words": words,
            "value": rest,
            "explanation": "Area of the text that the last searches found, divided by the area before cleaning. Text "
            "that the detector cannot find is not counted.",
        },
        {
            "words": f"{percent(summary['altered_median'])} of a poster is painted over",
            "value": summary["altered_median"],
            "explanation": "Median of the posters with text.",
        },
        {
            "words": f"{summary['seconds_mean']:.1f} seconds for each poster",
            "value": None,
            "explanation": f"Mean time on one core, with {summary['passes_mean']:.2f} passes on average.",
        },
    ]


def advice(summary: dict[str, Any]) -> dict[str, str]:
    """Return the next step: a sentence in ``words``, and a ``command``."""
    skipped = summary["posters_with_skipped"]
    posters = f"{skipped:,} {'poster' if skipped == 1 else 'posters'}"
    look = f"Look at the {posters} with yellow regions, and search for text that is left" if skipped else ""
    return {"words": look or "Search for text that the detector did not find", "command": "posters referee"}


def tiles(row: dict[str, Any], options: CleanOptions) -> list[Image.Image]:
    """Return three pictures of a poster, HEIGHT pixels high: before cleaning, with its mask, and after cleaning."""
    found = []
    for folder in (options.images, options.out):
        try:
            found.append(decode(read_image_file(folder, row["id"]), options.image))
        except BadImage:  # a file that was deleted after cleaning is shown as a grey picture
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
        f"text on {row['text_before']:.1%} of the picture, {left}; {row['altered']:.1%} painted over "
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
            f"{summary['text_after_of_before']:.2%} of the text that was found (same detector), "
            f"on {summary['posters_with_text_after']} posters",
        ),
        ("painted over", f"{summary['altered_median']:.1%} of the picture (median of posters with text)"),
        ("passes", f"{summary['passes_mean']:.2f} on average"),
        ("not painted", f"regions on {summary['posters_with_skipped']} posters, because of their size or a low score"),
        ("seconds", f"{summary['seconds_mean']:.2f} per poster and core"),
    ]
