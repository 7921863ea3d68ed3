"""``posters clean`` from files to files: what it writes, what it leaves out, and that it can be stopped at any time."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from shard_tools import (
    Source,
    bomb_png,
    build,
    encoded,
    environment,
    only_error,
    read_csv,
    tree,
    write_csv,
    write_file,
)
from text_tools import (
    QUICK,
    clean,
    clean_command,
    gradient,
    one_line_error,
    pixels_of,
    poster,
    titled_posters,
    write_meta,
)

from shards.clean.run import CleanOptions, CleanResult, clean_posters
from shards.clean.task import CHUNK, CleanTask, clean_chunk
from shards.files import PARTIAL, sha256_file
from shards.images import ORIENTATION, ImageOptions
from shards.text.masks import MaskOptions, mask_of
from shards.text.report import SCHEMA, read_report, summarize, write_report
from shards.text.sheet import PAGE, caption, worst_first
from shards.text.stage import TextRemoval

pytest_plugins = ("shard_fixtures",)
Command = Callable[..., tuple[int, str, str]]

ODD_IDS = ("a & b <i>\"c'</i>", "sub/folder/x.y", ".hidden", "ünï-日本", "__meta__")
TITLED = [f"t{number:04d}" for number in range(6)]


def run_clean(source: Source, out: Path, **options: Any) -> CleanResult:
    """In this process, with one quick look and no sheet."""
    options = {"text": TextRemoval(QUICK), "workers": 1, "sheet": 0, **options}
    return clean_posters(CleanOptions(source.images, source.csv, out, **options))


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
        "turned": (
            ".jpg",
            encoded(poster("turned").rotate(90, expand=True), exif=exif.tobytes(), quality=95),
        ),
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
    bad |= {"empty": "no genres", "../escape": "bad id", "t0000": "repeated id"}
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


def upright(source: Source, sample_id: str) -> np.ndarray:
    path = next(p for e in (".jpg", ".jpeg", ".png") if (p := source.images / f"{sample_id}{e}").exists())
    with Image.open(path) as image:
        turned = image.getexif().get(ORIENTATION, 1) == 6
        return np.asarray((image.rotate(-90, expand=True) if turned else image).convert("RGB"))


def jpegs(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in tree(folder).items() if name.endswith(".jpg")}


def written(folder: Path) -> dict[str, int]:
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("*.jpg")}


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
        assert (
            np.abs(pixels_of(cleaned / f"{sample_id}.jpg").astype(int) - upright(mixed, sample_id)).max() <= 4
        )


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
    options = (
        "--aspect",
        "0.5,0.9",
        "--min-side",
        "50",
        "--drop-duplicates",
        "--detector",
        "text_tools:Bright",
    )
    status, said, error = command(*clean_command(mixed, tmp_path / "out", *options, "--sheet", 0))
    assert status == 0, error
    found = {row["id"]: row for row in read_csv(tmp_path / "out" / "rejected.csv")}
    assert found["banner"]["reason"] == "odd shape" and "400x100" in found["banner"]["detail"]
    assert (found["copy"]["reason"], found["copy"]["detail"]) == ("duplicate", "of t0000")
    assert set(found) - set(mixed.bad) == {"banner", "copy"}
    assert "1 duplicate" in said and "1 odd shape" in said
    assert not (tmp_path / "out" / "copy.jpg").exists() and (tmp_path / "out" / "t0000.jpg").exists()


def test_no_usable_poster_is_one_line_and_a_list(few: Source, tmp_path: Path) -> None:
    message = one_line_error(lambda: run_clean(few, tmp_path / "out", image=ImageOptions(min_side=500)))
    assert "no poster left to clean" in message and str(tmp_path / "out") in message
    assert [reason for _, reason in rejections(tmp_path / "out")] == ["too small"] * 3


# --- the same every time


def test_one_worker_writes_the_same_bytes_as_two(mixed: Source, cleaned: Path, tmp_path: Path) -> None:
    assert len(mixed.good) > CHUNK, "two workers had something to do"
    run_clean(mixed, tmp_path / "out", quality=100)
    assert jpegs(tmp_path / "out") == jpegs(cleaned)
    one, two = (read_report(folder).drop(columns="seconds") for folder in (tmp_path / "out", cleaned))
    assert one.map(repr).equals(two.map(repr))


def test_the_same_command_again_does_nothing(few: Source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run_clean(few, out).cleaned_now == 3
    before, rows = written(out), read_report(out)
    again = run_clean(few, out)
    assert again.cleaned_now == 0 and written(out) == before
    assert read_report(out).map(repr).equals(rows.map(repr))  # seconds too: of the day it was done
    assert run_clean(few, out, workers=2, sheet=3).cleaned_now == 0 and written(out) == before


def test_another_option_or_poster_is_done_again(few: Source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_clean(few, out)
    before = jpegs(out)
    wide = TextRemoval(QUICK, MaskOptions(margin=0.6))
    assert run_clean(few, out, text=wide).cleaned_now == 3
    assert set(before.items()).isdisjoint(jpegs(out).items())
    assert run_clean(few, out, quality=50).cleaned_now == 3
    assert run_clean(few, out).cleaned_now == 3 and jpegs(out) == before
    write_file(few.images / "t0001.jpg", encoded(poster("another", (96, 144))))
    assert run_clean(few, out).cleaned_now == 3
    assert {name for name, digest in jpegs(out).items() if before[name] != digest} == {"t0001.jpg"}
    before = jpegs(out)
    (out / "t0002.jpg").unlink()
    assert run_clean(few, out).cleaned_now == 3 and jpegs(out) == before
    (out / "t0002.jpg").write_bytes(b"short")
    assert run_clean(few, out).cleaned_now == 3 and jpegs(out) == before


def test_a_poster_that_left_the_csv_leaves_the_folder(few: Source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_clean(few, out)
    # A run with an id "sub/x" was killed while it wrote that poster.
    list_of_ours = out / ".posters-clean.json"
    kept = json.loads(list_of_ours.read_text())
    list_of_ours.write_text(json.dumps(kept | {"ids": [*kept["ids"], "sub/x"]}))
    left_by_a_kill = write_file(out / "sub" / f"x.jpg.123{PARTIAL}", b"half")
    write_meta(tmp_path, {"t0000": ("Drama",), "t0002": ("Drama",)})
    run_clean(few, out)
    assert set(jpegs(out)) == {"t0000.jpg", "t0002.jpg"} and list(read_report(out)["id"]) == [
        "t0000",
        "t0002",
    ]
    assert not left_by_a_kill.exists()


def test_a_run_that_fails_takes_the_report_of_the_last_one_away(few: Source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_clean(few, out)
    (out / "t0001.jpg").unlink()
    (out / "t0001.jpg").mkdir()  # no poster can be put there
    with pytest.raises(OSError):
        run_clean(few, out, quality=50)
    assert "has not finished" in one_line_error(lambda: read_report(out))


def test_a_poster_that_changes_meanwhile_is_one_line(few: Source, tmp_path: Path) -> None:
    samples = tuple((name, sha256_file(few.images / f"{name}.jpg")) for name in few.good)
    answer = tmp_path / "answer.json"
    task = CleanTask(
        few.images, tmp_path / "out", samples, ImageOptions(), TextRemoval(QUICK), "", 95, answer
    )
    write_file(few.images / "t0001.jpg", encoded(poster("another")))
    message = one_line_error(lambda: clean_chunk(task))
    assert "t0001" in message and "changed while posters were cleaned (its bytes differ)" in message
    (few.images / "t0001.jpg").unlink()
    assert "missing file" in one_line_error(lambda: clean_chunk(task))
    assert not answer.exists()


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "toolkit", *arguments]
        started.append(
            subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True, env=environment()
            )
        )
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_kill_9(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    many = titled_posters(tmp_path, CHUNK + 8, (64, 96))
    whole, out = tmp_path / "whole", tmp_path / "out"
    run_clean(many, whole)
    process = start(*clean_command(many, out, "--sheet", 0))
    end = time.monotonic() + 60
    while not (out / ".work" / "clean-000000.json").exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert "has not finished" in one_line_error(lambda: read_report(out))
    before = written(out)
    assert CHUNK <= len(before) < len(many.good)
    assert {n: d for n, d in jpegs(out).items() if n in before} == {n: jpegs(whole)[n] for n in before}
    said = clean(many, out, "--sheet", 0)
    assert f"{CHUNK} of {len(many.good)} posters were cleaned before and are kept" in said
    first = [f"t{number:04d}.jpg" for number in range(CHUNK)]
    assert {name: written(out)[name] for name in first} == {name: before[name] for name in first}
    assert jpegs(out) == jpegs(whole) and not list(out.rglob(f"*{PARTIAL}"))


def test_two_at_work_in_one_folder(
    few: Source, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    out = tmp_path / "out"
    process = start(*clean_command(few, out))
    end = time.monotonic() + 60
    while not (out / ".posters-clean.json").exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGSTOP)
    assert "another process is at work" in one_line_error(lambda: run_clean(few, out))
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait(60) == 0 and set(jpegs(out)) == {f"{name}.jpg" for name in few.good}


# --- folders


def test_a_folder_of_other_pictures_is_refused_and_spared(few: Source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    mine = write_file(out / "holiday" / "beach.jpg", b"mine")
    message = one_line_error(lambda: run_clean(few, out))
    assert str(out) in message and "choose another --out" in message
    assert mine.read_bytes() == b"mine" and [p for p in out.rglob("*") if p.is_file()] == [mine]


def test_pictures_that_came_later_are_spared(few: Source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_clean(few, out)
    mine = write_file(out / "raw" / "beach.jpg", b"mine")
    some = dict(list(few.good.items())[1:])
    run_clean(Source(few.images, write_meta(tmp_path, some), some, {}), out)
    assert mine.read_bytes() == b"mine" and set(jpegs(out)) == {f"{name}.jpg" for name in some} | {
        "raw/beach.jpg"
    }
    dropped = write_file(out / f"{next(iter(few.good))}.jpg", b"mine too")
    write_meta(tmp_path, few.good)
    assert "was not made by" in one_line_error(lambda: run_clean(few, out))
    assert dropped.read_bytes() == b"mine too"


@pytest.mark.parametrize("text", ["{", "[]", '{"ids": 3}', '{"ids": [3]}'])
def test_a_broken_list_of_our_posters_is_one_line(few: Source, tmp_path: Path, text: str) -> None:
    write_file(tmp_path / "out" / ".posters-clean.json", text.encode())
    assert "list of cleaned posters" in one_line_error(lambda: run_clean(few, tmp_path / "out"))


@pytest.mark.parametrize("name", ["images", "link", "images/../images"])
def test_the_raw_folder_is_no_place_for_cleaned_posters(few: Source, tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to(few.images)
    before = tree(few.images)
    assert "folder of raw posters" in one_line_error(lambda: run_clean(few, tmp_path / name))
    assert tree(few.images) == before


@pytest.mark.parametrize("out", [".", "..", "../here", "new"])
def test_any_way_to_name_the_folder(
    few: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    here = tmp_path / "above" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    run_clean(few, Path(out), sheet=1)
    folder = (here / out).resolve()
    assert len(jpegs(folder)) == 3 and (folder.parent / f"{folder.name}-sheet" / PAGE).exists()


@pytest.mark.parametrize("length", [230, pytest.param(240)])
def test_long_names(tmp_path: Path, length: int) -> None:
    """File names have 255 bytes."""
    name = "x" * length
    write_file(tmp_path / "images" / f"{name}.jpg", encoded(poster("long", (96, 144))))
    source = Source(tmp_path / "images", write_meta(tmp_path, {name: ("Drama",)}), {name: ("Drama",)}, {})
    run_clean(source, tmp_path / "out")
    assert set(jpegs(tmp_path / "out")) == {f"{name}.jpg"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--quality", "0"), "--quality"),
        (("--quality", "101"), "--quality"),
        (("--sheet", "-1"), "--sheet"),
        (("--near-duplicates", "16"), "--near-duplicates"),
        (("--aspect", "wide"), "--aspect"),
        (("--aspect", "2,1"), "--aspect"),
        (("--looks", "small"), "--looks"),
        (("--passes", "0"), "--passes"),
        (("--margin", "9"), "--margin"),
        (("--fill", "blur"), "--fill"),
        (("--fill-model", "absent.onnx"), "fill model not found: absent.onnx"),
        (("--detector", "absent.onnx"), "detector model not found: absent.onnx"),
        (("--images", "absent"), "image folder not found: absent"),
        (("--metadata", "absent.csv"), "absent.csv"),
        (("--workers", "-1"), "--workers"),
    ],
)
def test_wrong_options_are_one_line(
    few: Source, tmp_path: Path, command: Command, change: tuple[str, str], words: str
) -> None:
    status, _, error = command(*clean_command(few, tmp_path / "out"), *change)
    assert status == 2 and words in only_error(error)
    assert not jpegs(tmp_path / "out")


def test_a_folder_without_pictures(few: Source, tmp_path: Path, command: Command) -> None:
    (tmp_path / "none").mkdir()
    status, _, error = command(*clean_command(few, tmp_path / "out"), "--images", tmp_path / "none")
    assert status == 2 and "no .jpg, .jpeg or .png file" in only_error(error)


# --- the report


def test_a_report_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    assert "was not made by `posters clean`" in one_line_error(lambda: read_report(tmp_path))
    write_file(tmp_path / "clean_report.parquet", b"PAR1 no more")
    assert "run `posters clean` again" in one_line_error(lambda: read_report(tmp_path))
    pd.DataFrame({"id": ["a"]}).to_parquet(tmp_path / "clean_report.parquet")
    assert "no column 'width'" in one_line_error(lambda: read_report(tmp_path))
    write_report(tmp_path / "clean_report.parquet", [], {"fill": "ns"})
    assert len(read_report(tmp_path)) == 0 and read_report(tmp_path).attrs["text_removal"] == {"fill": "ns"}


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
            assert name not in ("href", "onclick", "onload")
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
    assert not re.search(r"https?:|url\(|@import", text) and page.tags.isdisjoint(
        {"link", "script", "iframe"}
    )
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
    assert "3 left (1.0%)" in caption(rows[3]) and "nothing left" in caption(rows[0])
    assert caption(rows[2]).count("left alone: larger than 40%") == 1
