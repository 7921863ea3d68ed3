"""``posters clean`` from files to files: what it writes, what it leaves out, and the sheet that shows it."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from failing import fails
from PIL import Image
from shard_tools import Source, bomb_png, build, encoded, read_csv, tree, write_csv, write_file
from text_tools import (
    QUICK,
    clean,
    clean_command,
    gradient,
    jpegs,
    pixels_of,
    poster,
    run_clean,
    titled_posters,
    upright,
)

from shards.clean.contact_sheet import PAGE, caption, worst_first
from shards.clean.task import CHUNK
from shards.inputs.images import ImageOptions
from shards.inputs.jpeg_header import ORIENTATION
from shards.text.masks import mask_of
from shards.text.pipeline import TextRemoval
from shards.text.report import SCHEMA, read_report, summarize
from shards.visuals.links import subject_of
from shards.visuals.templates import SCRIPT

pytest_plugins = ("shard_fixtures",)
Command = Callable[..., tuple[int, str, str]]
ODD_IDS = ("a & b <i>\"c'</i>", "sub/folder/x.y", ".hidden", "ünï-日本", "__meta__")
TITLED = [f"t{number:04d}" for number in range(6)]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Posters with titles and without, odd ids, all kinds of files, and every kind of bad row. Read-only."""
    folder = tmp_path_factory.mktemp("mixed")
    plain = titled_posters(folder, 6)
    images, good = plain.images, dict(plain.good)
    for number, name in enumerate(ODD_IDS):
        write_file(images / f"{name}.jpg", encoded(poster(name, (100 + number, 150))))
        good[name] = ("Drama",)
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # the file lies on its side
    kinds = {
        "turned": (".jpg", encoded(poster("turned").rotate(90, expand=True), exif=exif.tobytes(), quality=95)),
        "turned dull": (".jpg", encoded(gradient(150, 100, "turned dull"), exif=exif.tobytes())),
        "dull": (".jpg", encoded(gradient(100, 150, "dull"), quality=60)),
        "dullpng": (".png", encoded(gradient(100, 150, "dullpng"), "PNG")),
        "titledpng": (".png", encoded(poster("titledpng"), "PNG")),
        "banner": (".jpeg", encoded(poster("banner", (400, 100), ("BANNER",)))),
        "copy": (".jpg", (images / "t0000.jpg").read_bytes()),
    }
    for name, (extension, data) in kinds.items():
        write_file(images / f"{name}{extension}", data)
        good[name] = ("Drama",)
    files = {
        "zero": (b"", "zero bytes"),
        "cut": (encoded(poster("cut"))[:1500], "truncated"),
        "html": (b"<html>404</html>", "not an image"),
        "small": (encoded(gradient(20, 90)), "too small"),
        "bomb": (bomb_png(), "decompression bomb"),
    }
    for name, (data, _) in files.items():
        write_file(images / f"{name}.jpg", data)
    bad = {name: reason for name, (_, reason) in files.items()} | {"absent": "missing file"}
    rows = [(i, "", "", repr(list(g))) for i, g in good.items()]
    rows += [(i, "", "", "['Drama']") for i in bad]
    rows += [("empty", "", "", "[]"), ("../escape", "", "", "['Drama']"), ("t0000", "", "", "['Drama']")]
    bad |= {"empty": "no genres", "../escape": "bad id", "t0000": "conflicting rows"}
    return Source(images, write_csv(folder / "meta.csv", rows), good, bad, (("copy", "t0000"),))


@pytest.fixture(scope="module")
def cleaned(mixed: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``mixed``, cleaned by two workers in a process of its own. Read-only."""
    out = tmp_path_factory.mktemp("cleaned") / "out"
    said = clean(mixed, out, "--workers", 2, "--quality", 100, "--sheet", 9)
    assert "rejected" in said and str(out / "clean_report.parquet") in said and "images/s" in said
    return out


@pytest.fixture(scope="module")
def report(cleaned: Path) -> pd.DataFrame:
    return read_report(cleaned).set_index("id")


@pytest.fixture
def few(tmp_path: Path) -> Source:
    """Three small posters that a test may spoil."""
    return titled_posters(tmp_path, 3, (96, 144))


# --- what is written


def test_every_usable_poster_is_there_under_its_id(mixed: Source, cleaned: Path) -> None:
    assert set(jpegs(cleaned)) == {f"{sample_id}.jpg" for sample_id in mixed.good}
    others = {name for name in tree(cleaned) if not name.endswith(".jpg") and not name.startswith(".work/")}
    assert others == {"clean_report.parquet", "rejected.csv", ".posters-clean.json"}


def test_sizes_are_kept_and_all_are_upright_rgb_jpegs(mixed: Source, cleaned: Path) -> None:
    for sample_id in mixed.good:
        with Image.open(cleaned / f"{sample_id}.jpg") as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert image.getexif().get(ORIENTATION, 1) == 1
            assert (image.height, image.width) == upright(mixed, sample_id).shape[:2], sample_id


def test_a_poster_without_text_keeps_its_bytes(mixed: Source, cleaned: Path) -> None:
    assert (cleaned / "dull.jpg").read_bytes() == (mixed.images / "dull.jpg").read_bytes()
    for sample_id in ("dullpng", "turned dull"):  # no plain JPEG: the same picture, encoded anew
        assert np.abs(pixels_of(cleaned / f"{sample_id}.jpg").astype(int) - upright(mixed, sample_id)).max() <= 4


def test_the_report_says_what_was_done(mixed: Source, cleaned: Path, report: pd.DataFrame) -> None:
    assert ["id", *report.columns] == SCHEMA.names
    assert list(report.index) == list(mixed.good)  # the CSV's order
    rows: Any = report.to_dict("index")
    for sample_id, row in rows.items():
        assert (row["height"], row["width"]) == upright(mixed, sample_id).shape[:2]
        assert row["fill"] == "surround" and row["seconds"] > 0
        assert row["altered"] == mask_of(row["polygons"], (row["height"], row["width"])).mean()
        dull = "dull" in sample_id
        assert {row["passes"] == 0, row["boxes_before"] == 0, row["text_before"] == 0} == {dull}, sample_id
        assert (row["altered"] == 0) == (len(row["polygons"]) == 0) == dull
        assert (row["boxes_after"], row["text_after"]) == (0, 0.0), sample_id
    assert (report.loc[TITLED, "boxes_before"] == 2).all()
    assert read_report(cleaned).attrs["text_removal"] == TextRemoval(QUICK).facts()


def test_only_what_the_polygons_say_is_changed(mixed: Source, cleaned: Path, report: pd.DataFrame) -> None:
    for sample_id in mixed.good:
        before = upright(mixed, sample_id).astype(int)
        after = pixels_of(cleaned / f"{sample_id}.jpg").astype(int)
        polygons: Any = report.loc[sample_id, "polygons"]
        mask = mask_of(polygons, before.shape[:2])
        assert np.abs(after - before)[~mask].max() <= 5, sample_id  # JPEG at quality 100
        ink = before.min(axis=2) > 190
        assert mask[ink].all(), sample_id
        if "dull" not in sample_id:
            assert ink.any() and after[mask].max() < 170, "the letters are gone"


def test_figures_of_the_screen(report: pd.DataFrame, mixed: Source) -> None:
    summary = summarize(report.reset_index().to_dict("records"))
    assert summary["posters"] == len(mixed.good) and summary["with_text"] == len(mixed.good) - 3
    assert summary["text_after_of_before"] == 0 and summary["posters_with_text_after"] == 0
    assert summary["text_before_mean"] == pytest.approx(report["text_before"].mean())
    assert summarize([])["posters"] == 0


def test_one_worker_writes_the_same_bytes_as_two(mixed: Source, cleaned: Path, tmp_path: Path) -> None:
    assert len(mixed.good) > CHUNK, "two workers had something to do"
    run_clean(mixed, tmp_path / "out", quality=100)
    assert jpegs(tmp_path / "out") == jpegs(cleaned)
    one, two = (read_report(folder).drop(columns="seconds") for folder in (tmp_path / "out", cleaned))
    assert one.map(repr).equals(two.map(repr))


# --- what is left out


def rejections(folder: Path) -> list[tuple[str, str]]:
    return sorted((row["id"], row["reason"]) for row in read_csv(folder / "rejected.csv"))


def test_rejected_is_what_building_shards_rejects(mixed: Source, cleaned: Path, tmp_path: Path) -> None:
    build(mixed, tmp_path / "shards")
    assert rejections(cleaned) == rejections(tmp_path / "shards") == sorted(mixed.bad.items())
    options = ImageOptions(aspect=(0.5, 0.9), min_side=101)
    run_clean(mixed, tmp_path / "out", image=options, text=TextRemoval(QUICK, passes=1))
    build(mixed, tmp_path / "more", image=options)
    found = dict(rejections(tmp_path / "out"))
    assert rejections(tmp_path / "out") == rejections(tmp_path / "more")
    assert (found["banner"], found["dull"], found["zero"]) == ("too small", "too small", "zero bytes")


def test_options_of_the_command_line_reach_the_check(mixed: Source, tmp_path: Path, command: Command) -> None:
    options = ("--aspect", "0.5,0.9", "--min-side", "50", "--drop-duplicates", "--detector", "text_tools:Bright")
    status, said, error = command(*clean_command(mixed, tmp_path / "out", *options, "--sheet", 0))
    assert status == 0, error
    found = {row["id"]: row for row in read_csv(tmp_path / "out" / "rejected.csv")}
    assert found["banner"]["reason"] == "odd shape" and "400x100" in found["banner"]["detail"]
    assert (found["copy"]["reason"], found["copy"]["detail"]) == ("duplicate", "of t0000")
    assert set(found) - set(mixed.bad) == {"banner", "copy"}
    assert "1 duplicate" in said and "1 odd shape" in said
    assert not (tmp_path / "out" / "copy.jpg").exists() and (tmp_path / "out" / "t0000.jpg").exists()


def test_no_usable_poster_is_one_line_and_a_list(few: Source, tmp_path: Path) -> None:
    with fails("images-none", few.images, tmp_path / "out" / "rejected.csv"):
        run_clean(few, tmp_path / "out", image=ImageOptions(min_side=500))
    assert [reason for _, reason in rejections(tmp_path / "out")] == ["too small"] * 3


# --- the contact sheet


class Page(HTMLParser):
    """What the sheet shows: pictures, the poster's names, and every address."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures: list[bytes] = []
        self.names: list[str] = []
        self.tags: set[str] = set()
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag
        self.tags.add(tag)
        for name, value in attrs:
            assert name not in ("onclick", "onload") and (name != "href" or str(value).startswith("#"))
            if name == "src":
                kind, _, data = str(value).partition("base64,")
                assert kind == "data:image/jpeg;"
                self.pictures.append(base64.b64decode(data))

    def handle_data(self, data: str) -> None:
        if self.inside == "b":
            self.names.append(data)

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""


def test_the_sheet_is_one_file_that_needs_no_other(cleaned: Path, report: pd.DataFrame) -> None:
    folder = cleaned.with_name("out-sheet")
    text = (folder / PAGE).read_text(encoding="utf-8")
    page = Page(text)
    assert f'<meta name="page-of" content="Cleaning {subject_of(cleaned)}">' in text
    assert not re.search(r"https?:|url\(|@import", text) and page.tags.isdisjoint({"link", "iframe"})
    assert text.count("<script") == text.count(f"<script>{SCRIPT}</script>") == 1
    assert len(page.names) == 9 and len(page.pictures) == 27
    for data in page.pictures:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            assert image.height == 320
    rows: list[dict[str, Any]] = report.reset_index().to_dict("records")
    assert page.names == [row["id"] for row in worst_first(rows, 9)]
    pages = sorted(folder.glob("*.png"))
    assert [path.name for path in pages] == ["contact_sheet-01.png", "contact_sheet-02.png"]  # 8 and 1
    for path in pages:
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG" and image.width > 690
    assert set(tree(folder)) == {PAGE, *(path.name for path in pages)}


def test_ids_are_text_on_the_sheet_and_never_html(mixed: Source, cleaned: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(cleaned, out)
    assert run_clean(mixed, out, sheet=100, quality=100).cleaned_now == 0
    text = (tmp_path / "out-sheet" / PAGE).read_text(encoding="utf-8")
    assert sorted(Page(text).names) == sorted(mixed.good)
    assert ODD_IDS[0] not in text and "a &amp; b &lt;i&gt;" in text
    run_clean(mixed, out, sheet=1, quality=100)  # the pages of a longer sheet go
    assert [path.name for path in (tmp_path / "out-sheet").glob("*.png")] == ["contact_sheet-01.png"]


def test_a_sheet_of_before_mask_and_after(few: Source, tmp_path: Path) -> None:
    run_clean(few, tmp_path / "out", sheet=1)
    page = Page((tmp_path / "out-sheet" / PAGE).read_text(encoding="utf-8"))
    before, mask, after = (np.asarray(Image.open(io.BytesIO(data))).astype(int) for data in page.pictures)
    raw = upright(few, page.names[0])
    large = np.asarray(Image.fromarray(raw).resize(before.shape[1::-1])).astype(int)
    assert np.abs(before - large).mean() < 5 and after.max() < 200 < before.max()
    pink = (mask[..., 0] - mask[..., 1] > 50) & (mask[..., 2] - mask[..., 1] > 20)
    assert 0.05 < pink.mean() < 0.7 and pink[large.min(axis=2) > 190].mean() > 0.95


def test_no_sheet(few: Source, tmp_path: Path, command: Command) -> None:
    status, said, _ = command(*clean_command(few, tmp_path / "out", "--sheet", 0))
    assert status == 0 and "look at" not in said and not (tmp_path / "out-sheet").exists()


def row(sample_id: str, **values: Any) -> dict[str, Any]:
    plain = {"text_before": 0.1, "text_after": 0.0, "skipped": [], "altered": 0.2, "boxes_after": 0}
    return {"id": sample_id, "fill": "surround", "passes": 1, **plain, **values}


def test_worst_first() -> None:
    rows = [
        row("small"),
        row("large", altered=0.5),
        row("doubted", skipped=["larger than 40% of the picture"] * 2),
        row("left", text_after=0.01, boxes_after=3),
        row("more left", text_after=0.05, boxes_after=1),
        row("also small"),
    ]
    order = ["more left", "left", "doubted", "large", "also small", "small"]
    assert [r["id"] for r in worst_first(rows, 9)] == order
    assert [r["id"] for r in worst_first(rows[::-1], 3)] == order[:3]
    assert "regions left: 3 (1.0%)" in caption(rows[3]) and "no text left" in caption(rows[0])
    assert caption(rows[2]).count("not painted over: larger than 40%") == 1
