"""How many rows have an image that can be read: said in the summary, and refused where it is too few."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from failing import fails
from shard_tools import Source, draw_posters, only_error, read_csv, rows_of, samples, write_csv, write_file

from shards.build.run import BuildOptions, build_shards
from shards.dataset.manifest import Manifest
from shards.errors import UserError
from shards.inputs.rejections import Rejection, write_rejected

pytest_plugins = ("shard_fixtures",)
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def dozen(tmp_path: Path) -> Source:
    """Twelve posters that a test may spoil."""
    return draw_posters(tmp_path, 12)


def build(source: Source, out: Path, rows: Sequence[Sequence[object]] | None = None, **options: Any) -> Manifest:
    """With the limit as it is by default."""
    csv = source.csv if rows is None else write_csv(source.csv.with_name("other.csv"), rows)
    return build_shards(BuildOptions(out, source.images, metadata=csv, workers=1, **options))


def spoilt(source: Source, count: int) -> list[list[str]]:
    """Its rows, the first ones without their lists' end."""
    rows = rows_of(source.csv)
    for row in rows[:count]:
        row[3] = "['Drama"
    return rows


def test_too_many_unreadable_genres_fail_with_the_first_reason(dozen: Source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError) as caught:
        build(dozen, out, spoilt(dozen, 1))
    assert str(caught.value) == (
        "1 of 12 rows with an image are unreadable, over --max-rejected 5%: 1 unparsable genres; for example "
        "id 'p0000': unparsable genres (line 2: a quote is not closed in \"['Drama\"; write ['Action', 'Drama']); "
        f"all reasons are in {out}/rejected.csv"
    )
    assert [row["id"] for row in read_csv(out / "rejected.csv")] == ["p0000"]
    assert not list(out.glob("*.tar")) and not (out / "manifest.json").exists()
    build(dozen, out, spoilt(dozen, 1), max_rejected=0.1)
    assert len(samples(out)) == 11


def test_unreadable_pixels_count_too(dozen: Source, tmp_path: Path) -> None:
    (dozen.images / "p0003.jpg").write_bytes(b"<html>404</html>")
    with pytest.raises(UserError, match=r"1 of 12 rows .*1 not an image; for example id 'p0003': not an image"):
        build(dozen, tmp_path / "out")


def test_rows_without_an_image_are_counted_and_not_held_against_it(
    dozen: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(8):
        (dozen.images / f"p{number:04d}.jpg").unlink()
    gone = [Rejection("p0000", "http 404"), Rejection("p0001", "http 404"), Rejection("p0002", "timeout")]
    write_rejected(dozen.images / "rejected.csv", gone)
    with caplog.at_level("INFO"):
        build(dozen, tmp_path / "out", [*spoilt(dozen, 2), ("p9", "", "", "['Drama"), ("p8", "", "", "")])
    assert len(samples(tmp_path / "out")) == 4
    assert (
        f"10 rows have no image in {dozen.images} (the first is id 'p0002'); 3 of these ids are in the rejected.csv of "
        f"this folder: 2 http 404, 1 timeout"
    ) in caplog.text
    assert "4 of 14 posters are usable" in caplog.text


def test_what_fetch_or_clean_rejected_is_not_held_against_it(dozen: Source, tmp_path: Path) -> None:
    (dozen.images / "p0003.jpg").write_bytes(b"<html>404</html>")
    write_rejected(dozen.images / "rejected.csv", [Rejection("p0003", "not an image")])
    build(dozen, tmp_path / "out")
    assert len(samples(tmp_path / "out")) == 11


def test_a_repeated_row_of_fetch_says_nothing_of_the_poster(dozen: Source, tmp_path: Path) -> None:
    (dozen.images / "p0003.jpg").write_bytes(b"<html>404</html>")
    write_rejected(dozen.images / "rejected.csv", [Rejection("p0003", "repeated id")])
    with pytest.raises(UserError, match="1 not an image"):
        build(dozen, tmp_path / "out")


def test_the_users_own_limits_and_empty_genres_are_not_held_against_it(dozen: Source, tmp_path: Path) -> None:
    rows = rows_of(dozen.csv)
    rows[0][3] = rows[1][3] = "[]"
    build(dozen, tmp_path / "out", [*rows, rows[2]])
    source = Manifest.read(tmp_path / "out").source
    assert (source["rows"], source["samples"]) == (13, 10)
    assert source["rejected"] == {"no genres": 2, "repeated id": 1}


#: Ids instead of p0000, ..., and what the one line says.
STRANGERS: dict[str, tuple[Callable[[int], str], list[str]]] = {
    "floats": ("{}.0".format, ["are '0', '1', '2' and 9 more", "The nearest file is 'p00"]),
    "prefix": ("tt{:04d}".format, ["The nearest file is 'p0000.jpg'", "Write the names of the files into this column"]),
    "another column": ("x{}".format, ["Column 1 'title' contains file names. Choose", "--id-column"]),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_ids_that_name_no_file_are_refused_with_the_nearest(dozen: Source, tmp_path: Path, kind: str) -> None:
    name, parts = STRANGERS[kind]
    column = "p{:04d}".format if kind == "another column" else "title {}".format
    rows = [(name(n), column(n), 1999, "['Drama', 'War']" if n % 2 else "['War']") for n in range(12)]
    with pytest.raises(UserError) as caught:
        build(dozen, tmp_path / "out", rows)
    message = str(caught.value)
    assert message.startswith(f"no id of {dozen.csv.with_name('other.csv')} names a file in {dozen.images}: ")
    assert all(part in message for part in parts) and "\n" not in message, message


def test_one_row_per_genre_makes_the_same_shards(dozen: Source, tmp_path: Path) -> None:
    build(dozen, tmp_path / "lists")
    rows = [(i, "a title", 1999, genre) for i, genres in dozen.good.items() for genre in genres]
    build(dozen, tmp_path / "rows", rows)
    one, two = (Manifest.read(tmp_path / name) for name in ("lists", "rows"))
    assert one.fingerprint == two.fingerprint and one.source == two.source


def test_spellings_of_given_labels_are_read_as_them(dozen: Source, tmp_path: Path) -> None:
    build(dozen, tmp_path / "plain")
    (tmp_path / "labels.json").write_text(json.dumps({"genres": Manifest.read(tmp_path / "plain").genres}))
    rows = [(i, "", 1999, "|".join(genres).upper() + "\u200b") for i, genres in dozen.good.items()]
    build(dozen, tmp_path / "out", rows, labels=tmp_path / "labels.json")
    assert Manifest.read(tmp_path / "out").fingerprint == Manifest.read(tmp_path / "plain").fingerprint
    with fails("table-row", "3 'genre'", "--spellings merge"):
        build(dozen, tmp_path / "o", rows, labels=tmp_path / "labels.json", spellings="refuse")


def test_genres_that_are_not_given_are_named(dozen: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "labels.json").write_text(json.dumps({"genres": ["Drama", "Comedy"]}))
    build(dozen, tmp_path / "out", labels=tmp_path / "labels.json")
    assert "genres that are not among the given labels are left out: " in caplog.text and "Action (" in caplog.text


@pytest.mark.parametrize("text", ["5", "-1%", "many", "101%", "nan", ""])
def test_shares_that_are_none(command: Command, dozen: Source, tmp_path: Path, text: str) -> None:
    where = ("--images", dozen.images, "--metadata", dozen.csv, "--out", tmp_path / "o")
    status, _, error = command("shards", "build", *where, f"--max-rejected={text}")
    assert status == 2 and "--max-rejected takes a share such as 0.05 or 5%" in only_error(error)


def test_the_summary_counts_all_rows(command: Command, dozen: Source, tmp_path: Path) -> None:
    csv = write_csv(tmp_path / "other.csv", spoilt(dozen, 5))
    where = ("--images", dozen.images, "--metadata", csv, "--out", tmp_path / "out", "--workers", 1)
    status, said, error = command("shards", "build", *where, "--max-rejected", "50%")
    assert status == 0 and "7 of 12 posters are usable" in error
    assert f"read            {csv}: ids in column 'id', genres in column 'genre'; 7 of 12 posters are usable" in said


def test_cleaning_holds_genres_against_it_and_counts_pixels(command: Command, dozen: Source, tmp_path: Path) -> None:
    pytest.importorskip("rapidocr")  # the extra `clean`
    write_file(dozen.images / "p0003.jpg", b"<html>404</html>")
    options = ("--images", dozen.images, "--out", tmp_path / "out", "--scales", 256, "--sheet", 0, "--workers", 1)
    csv = write_csv(tmp_path / "other.csv", spoilt(dozen, 2))
    status, _, error = command("clean", "--metadata", csv, *options)
    assert status == 2 and "2 of 12 rows with an image are unreadable" in only_error(error)
    csv = write_csv(tmp_path / "names.csv", [(f"x{n}", "", "", "Drama|War") for n in range(3)])
    status, _, error = command("clean", "--metadata", csv, *options)
    assert status == 2 and "no id of" in only_error(error)
    status, _, error = command("clean", "--metadata", dozen.csv, *options)
    assert status == 0 and "11 of 12 posters are usable" in error
