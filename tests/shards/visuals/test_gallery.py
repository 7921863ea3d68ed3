"""Contact sheets: their size, their colours, and that nothing leaves its card whatever it holds."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.font_manager import fontManager
from PIL import Image

from shards.visuals import contact_sheet as gallery
from shards.visuals.contact_sheet import GalleryItem, save_gallery
from shards.visuals.fonts import find_fonts

GREEN, RED, AMBER, BLUE = (gallery.VERDICTS[v][0] for v in ("right", "wrong", "missed", "unknown"))
LONG = "Donaudampfschifffahrtsgesellschaftskapitänswitwe"


def poster(width: int = 200, height: int = 300, mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", (width, height), (90, 60, 140)).convert(mode)


def encoded(kind: str) -> bytes:
    out = io.BytesIO()
    poster().save(out, kind)
    return out.getvalue()


def draw(path: Path, items: list[GalleryItem], title: str = "") -> np.ndarray:
    save_gallery(path, items, title)
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG" and image.mode == "RGB"
        return np.asarray(image).astype(int)


def below_header(sheet: np.ndarray) -> np.ndarray:
    """The sheet from the top edge of the first row of cards."""
    return sheet[int(np.argmax(sheet[:, gallery.MARGIN + 100] == gallery.FRAME[0], axis=0)[0]) :]


def count(sheet: np.ndarray, color: tuple[int, int, int]) -> int:
    return int((sheet == color).all(axis=2).sum())


def assert_everything_inside(sheet: np.ndarray, columns: int, rows: int) -> None:
    """Margins and the gaps between cards are bare, so no text or picture sticks out of its card."""
    for edge in (sheet[:, : gallery.MARGIN], sheet[:, -gallery.MARGIN :], sheet[-gallery.MARGIN :]):
        assert (edge == gallery.PAPER).all()
    cards = below_header(sheet)
    bands = "".join("-" if bare else "#" for bare in (cards == gallery.PAPER).all(axis=(1, 2))).split("#")
    assert [len(band) for band in bands if band] == [gallery.GAP] * (rows - 1) + [gallery.MARGIN]
    for column in range(columns):
        left = gallery.MARGIN + column * (gallery.CARD_WIDTH + gallery.GAP)
        gap = cards[:, left + gallery.CARD_WIDTH : left + gallery.CARD_WIDTH + gallery.GAP]
        assert (gap == gallery.PAPER).all()
        right = left + gallery.CARD_WIDTH
        padding = cards[:, right - gallery.PADDING + 1 : right]
        bare = [(padding == color).all(axis=2) for color in (gallery.PAPER, gallery.CARD, gallery.FRAME)]
        assert np.logical_or.reduce(bare).all()


@pytest.mark.parametrize(("number", "columns", "across", "down"), [(12, 6, 6, 2), (7, 3, 3, 3), (2, 6, 2, 1)])
def test_the_size_follows_from_the_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, columns: int, across: int, down: int
) -> None:
    monkeypatch.setattr(gallery, "COLUMNS", columns)
    items = [GalleryItem(poster(), ["Drama"], [("Drama", 0.9)])] * number
    sheet = draw(tmp_path / "sheet.png", items, title="Demo")
    width = 2 * gallery.MARGIN + across * gallery.CARD_WIDTH + (across - 1) * gallery.GAP
    card = gallery.THUMB[1] + 3 * gallery.PADDING + 2 * gallery.LINE  # two lines: true, predicted
    assert sheet.shape[1] == width
    assert len(below_header(sheet)) == down * card + (down - 1) * gallery.GAP + gallery.MARGIN
    assert_everything_inside(sheet, across, down)


def test_every_verdict_has_its_color(tmp_path: Path) -> None:
    def colors(item: GalleryItem) -> list[bool]:
        cards = below_header(draw(tmp_path / "sheet.png", [item]))
        return [count(cards, color) > 20 for color in (GREEN, RED, AMBER, BLUE)]

    assert colors(GalleryItem(poster(), ["Drama"], [("Drama", 0.9)])) == [True, False, False, False]
    assert colors(GalleryItem(poster(), ["War"], [("War", 0.9), ("New", 0.6)])) == [True, True, False, False]
    assert colors(GalleryItem(poster(), ["Drama"], [])) == [False, False, True, False]
    assert colors(GalleryItem(poster(), [], [])) == [False, False, False, False]
    assert colors(GalleryItem(poster(), None, [("Drama", 0.9)])) == [False, False, False, True]


def test_the_legend_names_the_unknown_only_where_there_is_one(tmp_path: Path) -> None:
    def header_blue(true: list[str] | None) -> int:
        sheet = draw(tmp_path / "sheet.png", [GalleryItem(poster(), true, [])])
        return count(sheet[: len(sheet) - len(below_header(sheet))], BLUE)

    assert header_blue(["Drama"]) == 0
    assert header_blue(None) > 100


@pytest.mark.parametrize(
    "item",
    [
        GalleryItem(poster(), ["Drama", LONG], [(LONG, 1.0), ("Science Fiction and Fantasy", 0.5)]),
        GalleryItem(poster(), [f"Type {k}" for k in range(12)], [(f"Type {k}", k / 20) for k in range(6, 9)]),
        GalleryItem(poster(), ["  "], [("", 0.5)]),
        GalleryItem(poster(4000, 2), ["Drama"], []),
        GalleryItem(poster(2, 4000), None, []),
        GalleryItem(poster(1, 1), None, [("Drama", 0.4)]),
    ],
    ids=["long", "many", "blank", "wide", "tall", "dot"],
)
def test_nothing_sticks_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, item: GalleryItem) -> None:
    monkeypatch.setattr(gallery, "COLUMNS", 2)
    other = GalleryItem(poster(), ["War"], [("War", 0.8)])
    sheet = draw(tmp_path / "sheet.png", [item, other, item, other, item], title=f"A {LONG} " * 4)
    assert_everything_inside(sheet, 2, 3)


def test_banners_keep_their_shape(tmp_path: Path) -> None:
    sheet = draw(tmp_path / "sheet.png", [GalleryItem(poster(4000, 500), None, [])])
    inside = (sheet == (90, 60, 140)).all(axis=2)
    assert inside.any(axis=1).sum() == 40 and inside.any(axis=0).sum() == gallery.THUMB[0]


@pytest.mark.parametrize(
    "image", [encoded("JPEG"), encoded("PNG"), poster(mode="L"), poster(mode="P"), poster(mode="CMYK")]
)
def test_bytes_and_other_modes_are_drawn(tmp_path: Path, image: Image.Image | bytes) -> None:
    sheet = draw(tmp_path / "sheet.png", [GalleryItem(image, [], [])])
    top = len(sheet) - len(below_header(sheet)) + gallery.PADDING
    middle = sheet[top + 100 : top + 200, gallery.MARGIN + 100 : gallery.MARGIN + 200]
    expected = (78, 78, 78) if isinstance(image, Image.Image) and image.mode == "L" else (90, 60, 140)
    assert np.abs(middle.mean(axis=(0, 1)) - expected).max() < 8


def test_transparent_parts_show_the_tile(tmp_path: Path) -> None:
    clear = draw(tmp_path / "clear.png", [GalleryItem(Image.new("RGBA", (200, 300)), [], [])])
    assert count(clear, gallery.TILE) == gallery.THUMB[0] * gallery.THUMB[1]


@pytest.mark.parametrize("data", [b"", b"no picture", encoded("JPEG")[:200]])
def test_unreadable_bytes_leave_a_tile_that_says_so(tmp_path: Path, data: bytes) -> None:
    sheet = draw(tmp_path / "sheet.png", [GalleryItem(data, [], []), GalleryItem(poster(), [], [])])
    left = sheet[:, : gallery.MARGIN + gallery.CARD_WIDTH]
    assert count(left, gallery.TILE) > 0.9 * gallery.THUMB[0] * gallery.THUMB[1]
    assert count(sheet, (90, 60, 140)) >= gallery.THUMB[0] * gallery.THUMB[1]


def test_an_empty_sheet_still_opens(tmp_path: Path) -> None:
    assert draw(tmp_path / "sheet.png", [], title="Nothing").std() > 0


def test_letters_are_drawn_or_become_question_marks_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert gallery.wrap_text("Come\u0301die Драма", 900) == ["Comédie Драма"]
    fonts = find_fonts(["Драма"])
    assert fonts.families == ("DejaVu Sans",) and not fonts.missing
    item = GalleryItem(poster(), ["Драма"], [("Драма", 0.9)])
    plain = draw(tmp_path / "a.png", [replace(item, true=["?????"], predicted=[("?????", 0.9)])])
    assert (draw(tmp_path / "b.png", [item]) != plain).any() and not caplog.records
    monkeypatch.setattr(fontManager, "ttflist", [])  # the fonts of the machine
    assert gallery.wrap_text("恐怖 film", 900) == ["?? film"]
    draw(tmp_path / "c.png", [replace(item, true=["恐怖"])])
    (record,) = caplog.records
    assert "cannot show 2 characters of the names" in record.message and "fonts-noto-cjk" in record.message


def test_an_old_sheet_survives_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "sheet.png"
    draw(path, [GalleryItem(poster(), [], [])])
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_gallery(path, [])
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
