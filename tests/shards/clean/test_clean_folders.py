"""Folders and options that ``posters clean`` is given: others' pictures are spared, wrong ones are one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from failing import fails
from shard_tools import Source, encoded, only_error, read_csv, tree, write_file
from text_tools import clean_command, jpegs, one_line_error, poster, run_clean, titled_posters, write_meta

from shards.clean.contact_sheet import PAGE
from shards.errors import UserError
from shards.text.report import read_report, write_report

pytest_plugins = ("shard_fixtures",)
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def few(tmp_path: Path) -> Source:
    """Three small posters that a test may spoil."""
    return titled_posters(tmp_path, 3, (96, 144))


# --- folders


def test_a_folder_of_other_pictures_is_refused_and_spared(few: Source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    mine = write_file(out / "holiday" / "beach.jpg", b"mine")
    with fails("path-exists", out, "choose another --out"):
        run_clean(few, out)
    assert mine.read_bytes() == b"mine" and [p for p in out.rglob("*") if p.is_file()] == [mine]


def test_pictures_that_came_later_are_spared(few: Source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_clean(few, out)
    mine = write_file(out / "raw" / "beach.jpg", b"mine")
    some = dict(list(few.good.items())[1:])
    run_clean(Source(few.images, write_meta(tmp_path, some), some, {}), out)
    assert mine.read_bytes() == b"mine" and set(jpegs(out)) == {f"{name}.jpg" for name in some} | {"raw/beach.jpg"}
    dropped = write_file(out / f"{next(iter(few.good))}.jpg", b"mine too")
    write_meta(tmp_path, few.good)
    with fails("path-exists", dropped, "`posters clean`", "--out"):
        run_clean(few, out)
    assert dropped.read_bytes() == b"mine too"


def test_ids_that_would_share_a_place_are_rows(few: Source, tmp_path: Path) -> None:
    name, other = list(few.good)[:2]
    genres = next(iter(few.good.values()))
    (few.images / f"{other}.jpg").rename(few.images / f"{other}.png")
    for folder in (".work", "rejected.csv", f"{other}.jpg"):
        write_file(few.images / folder / "x.png", (few.images / f"{name}.jpg").read_bytes())
    odd = {f".//{name}": genres, ".work/x": genres, "rejected.csv/x": genres, f"{other}.jpg/x": genres}
    out = tmp_path / "out"
    run_clean(Source(few.images, write_meta(tmp_path, {**few.good, **odd}), few.good, {}), out)
    assert set(jpegs(out)) == {f"{name}.jpg" for name in few.good}
    details = {row["id"]: row["detail"] for row in read_csv(out / "rejected.csv")}
    assert details == {
        name: f"line {len(few.good) + 2}; the same genres as above",  # .//ID is the same id
        ".work/x": "its path is used by files of `posters clean`",
        "rejected.csv/x": "its path is used by files of `posters clean`",
        f"{other}.jpg/x": f"its folder would have the same path as the poster of {other!r}",
    }


@pytest.mark.parametrize("text", ["{", "[]", '{"ids": 3}', '{"ids": [3]}', '{"ids": ["../x"]}', '{"ids": ["/x"]}'])
def test_a_broken_list_of_our_posters_is_one_line(few: Source, tmp_path: Path, text: str) -> None:
    write_file(tmp_path / "out" / ".posters-clean.json", text.encode())
    assert "list of cleaned posters" in one_line_error(lambda: run_clean(few, tmp_path / "out"))


@pytest.mark.parametrize("name", ["images", "link", "images/../images"])
def test_the_raw_folder_is_no_place_for_cleaned_posters(few: Source, tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to(few.images)
    before = tree(few.images)
    with fails("option-conflict", f"--out {tmp_path / name}"):
        run_clean(few, tmp_path / name)
    assert tree(few.images) == before


@pytest.mark.parametrize("out", [".", "..", "../here", "new"])
def test_any_way_to_name_the_folder(few: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
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


# --- what is refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--quality", "0"), "--quality"),
        (("--quality", "101"), "--quality"),
        (("--sheet", "-1"), "--sheet"),
        (("--near-duplicates", "16"), "--near-duplicates"),
        (("--aspect", "wide"), "--aspect"),
        (("--aspect", "2,1"), "--aspect"),
        (("--scales", "small"), "--scales"),
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
    assert status == 2 and "no .jpg, .jpeg, .png," in only_error(error)


def test_a_report_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"was not made by `posters clean`, or the command has not finished"):
        read_report(tmp_path)
    write_file(tmp_path / "clean_report.parquet", b"PAR1 no more")
    with fails("table-unreadable", tmp_path / "clean_report.parquet", "`posters clean`"):
        read_report(tmp_path)
    pd.DataFrame({"id": ["a"]}).to_parquet(tmp_path / "clean_report.parquet")
    with fails("table-unreadable", tmp_path / "clean_report.parquet", "'width'"):
        read_report(tmp_path)
    write_report(tmp_path / "clean_report.parquet", [], {"fill": "ns"})
    assert len(read_report(tmp_path)) == 0 and read_report(tmp_path).attrs["text_removal"] == {"fill": "ns"}
