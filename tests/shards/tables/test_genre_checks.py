"""Which column holds the genres, and classes that are hardly meant: found by name, or refused, never guessed."""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from failing import fails

from shards.tables.genre_checks import NUMBER
from shards.tables.metadata import GenreOptions, Metadata, read_metadata

GENRES = (("Drama",), ("Comedy", "Drama"), ("Romance", "Drama"), ("Horror",), ("Horror", "Comedy"), ("Romance",)) * 4


def table(folder: Path, header: str, cells: Sequence[Sequence[object]], delimiter: str = ",") -> Path:
    """A CSV whose first column is p0, p1, ..., and then the cells."""
    with open(folder / "meta.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerow(header.split(","))
        writer.writerows([f"p{number}", *row] for number, row in enumerate(cells))
    return folder / "meta.csv"


def genres_of(metadata: Metadata) -> list[set[str]]:
    return [set(row.genres) for row in metadata.rows]


KINDS = ["Comedy", "Drama", "Romance", "Horror", "Comedy Drama", "Romance Drama", "Horror Comedy", "Horror Drama"]
#: Lists of words of which two are never alone.
LISTS = ["action drama", "drama crime", "war action", "drama", "crime action war", "war crime", "war drama"] * 4
WANTED = [set(genres) for genres in GENRES]
JOINED = ["|".join(genres) for genres in GENRES]


@pytest.mark.parametrize("name", ["genre", "Genres", " GENRE ", "label", "Labels", "tag", "TAGS", "genres\u00a0"])
def test_a_column_of_such_a_name_is_found_wherever_it_is(tmp_path: Path, name: str) -> None:
    path = table(tmp_path, f"id,{name},title,score", [(text, "A title", 6.5) for text in JOINED])
    metadata = read_metadata(path)
    assert genres_of(metadata) == WANTED and metadata.genre_column == name


def test_column_3_is_taken_if_it_holds_lists(tmp_path: Path) -> None:
    for cells in (JOINED, [repr(list(genres)) for genres in GENRES]):
        path = table(tmp_path, "id,title,year,kinds", [("A title", 1999, text) for text in cells])
        assert genres_of(read_metadata(path)) == WANTED


#: Header, cells beside the id, and what the one line says.
REFUSED: dict[str, tuple[str, list[Sequence[object]], list[str]]] = {
    "score": ("id,link,title,score", [("x", "T", "6.5")] * 24, ["3 'score'", "does not look like lists", "'6.5'"]),
    "language": ("id,link,title,language", [("x", "T", "en")] * 24, ["3 'language'", "--genre-column"]),
    "story": ("id,a,b,plot", [("", "", f"Story {n}, a | b{n}") for n in range(24)], ["3 'plot'", "does not look"]),
    "empty": ("id,a,b,c", [("", "", "")] * 24, ["3 'c'", "it is empty"]),
    "signs": (
        "id,Comedy,Drama,Horror,War",
        [(1 - 2 * (n % 2), 1, 0, 1) for n in range(24)],
        ["'Comedy' contain -1 and 1", "does not have the genre", "is not known", "write 0"],
    ),
    "two columns": ("id,genre,tags", [("Drama", "war")], ["several columns", "1 'genre', 2 'tags'", "--genre-column"]),
    "the name twice": ("id,genre,genre", [("Drama", "War")], ["several columns", "1 'genre', 2 'genre'"]),
    "too few": ("id,kinds", [("Drama|War",)], ["no column named genre, label or tag", "0 'id', 1 'kinds'"]),
    "flags": ("id,label", [(n % 2,) for n in range(24)], ["flags instead of genres ('0', '1')", "1 'label'"]),
    "one flag": ("id,label", [("1",)] * 24, ["flags instead of genres ('1')"]),
    "numbers": ("id,genres", [(f"{n % 5 + 20}|{n % 3}",) for n in range(24)], ["contains numbers instead of genres"]),
    "scores": ("id,genre", [(f"{n % 5}.5",) for n in range(24)], ["numbers", "this column with --genre-column 1"]),
    "years": ("id,tag", [(1990 + n % 5,) for n in range(24)], ["contains years instead of genres ('1990'"]),
    "all the same": ("id,genre", [("Drama",)] * 24, ["gives all 24 posters the same genres: 'Drama'"]),
    "all the same lists": ("id,genre", [("War|Drama",)] * 24, ["gives all 24 posters the same genres: 'War', 'Drama'"]),
    "dates": ("id,tag", [(f"1990-0{n % 5 + 1}-17",) for n in range(24)], ["contains numbers", "accept this column"]),
    "own labels": ("id,tag", [(f"Title {n}",) for n in range(24)], ["nearly every poster a different label"]),
    "spaces": ("id,genre", [(text,) for text in KINDS * 3], ["--genre-separator ' '"]),
    "lists of words": ("id,genre", [(text,) for text in LISTS], ["'action drama'", "--genre-separator ' '"]),
    "underscores": ("id,genre", [(text.replace(" ", "_"),) for text in LISTS], ["--genre-separator '_'"]),
    "dashes": ("id,genre", [(" - ".join(g),) for g in GENRES], ["--genre-separator ' - '"]),
    "HTML": ("id,genre", [("<br>".join(g),) for g in GENRES], ["--genre-separator '<br>'"]),
    "tildes": ("id,genre", [("~".join(g),) for g in GENRES], ["--genre-separator '~'"]),
    "and": ("id,genre", [(" and ".join(g),) for g in GENRES], ["--genre-separator ' and '"]),
    "arrows": ("id,genre", [(" > ".join(g),) for g in GENRES], ["--genre-separator ' > '"]),
    "ampersands": ("id,genre", [(" & ".join(g),) for g in GENRES], ["--genre-separator ' & '", "--labels"]),
    "lists of one text": ("id,genre", [(repr([", ".join(g)]),) for g in GENRES], ["one item for each genre"]),
    "lists of one joined text": ("id,genre", [(repr(["|".join(g)]),) for g in GENRES], ["one item for each genre"]),
    "genres where the ids would be": ("genres,key,title", [], ["0 'genres' has a name for genres", "--id-column"]),
    "the same, and unreadable ones": (
        "id,genre",
        [("Drama",), ("['War', 'Drama' 'Comedy']",)] * 12,
        ["all 12 posters the same genres", "12 of 24 rows are unreadable", "lacks a comma"],
    ),
    "two marks": (
        "id,genre",
        [("Action|War",), ("Action;Drama",), ("Action",), ("Drama",), ("War",)],
        ["'Action;Drama'", "--genre-separator ';'"],
    ),
    "no header": ("p9,Title,1999,['Drama']", [("T", 1999, "['War', 'Drama']")], ["has no header line", "id,genre"]),
    "no header, joined": ("p9,T,1,War|Drama", [("T", 1, "|".join(g)) for g in (*GENRES, ["War"])], ["no header line"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_column_of_genres_is_refused(tmp_path: Path, kind: str) -> None:
    header, cells, parts = REFUSED[kind]
    with fails("table-unreadable" if kind.startswith("no header") else "table-column", *parts):
        read_metadata(table(tmp_path, header, cells))


@pytest.mark.parametrize("kind", ["numbers", "scores", "years", "all the same", "own labels"])
def test_choosing_the_column_insists(tmp_path: Path, kind: str) -> None:
    header, cells, _ = REFUSED[kind]
    path = table(tmp_path, header, cells)
    assert len(read_metadata(path, GenreOptions(genre_column=header.split(",")[1])).rows) == 24
    assert len(read_metadata(path, GenreOptions(genre_column="1")).rows) == 24


@pytest.mark.parametrize("kind", ["flags", "spaces", "ampersands"])
def test_naming_the_labels_insists_on_what_choosing_the_column_does_not(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    header, cells, parts = REFUSED[kind]
    path = table(tmp_path, header, cells)
    known = tuple({str(row[0]) for row in cells})
    with fails("table-column", "1 'label'" if kind == "flags" else "1 'genre'"):
        read_metadata(path, GenreOptions(genre_column="1"))
    assert len(read_metadata(path, known=known).rows) == 24
    read_metadata(path, strict=False)
    assert parts[0] in caplog.text


def test_given_labels_do_not_excuse_a_wrong_separator(tmp_path: Path) -> None:
    path = table(tmp_path, "id,genre", [(" & ".join(genres),) for genres in GENRES])
    with fails("table-column", "1 'genre'", "--genre-separator ' & '"):
        read_metadata(path, known=("Comedy", "Drama", "Horror", "Romance"))


def test_given_labels_count_for_every_separator(tmp_path: Path) -> None:
    """Also for the space, which is looked at behind a slash that separates nothing."""
    cells = [(text,) for text in (*KINDS[4:] * 3, "x1/y1", "x2/y2")]
    with fails("table-column", "'Comedy Drama'", "--genre-separator ' '"):
        read_metadata(table(tmp_path, "id,genre", cells), known=KINDS[:4])


@pytest.mark.parametrize("mark", ["|", ",", ";", "/", ", ", " / ", "\uff0c"])
def test_the_separator_is_found_and_said(tmp_path: Path, mark: str, caplog: pytest.LogCaptureFixture) -> None:
    path = table(tmp_path, "id,genre", [(mark.join(genres),) for genres in GENRES])
    metadata = read_metadata(path)
    assert genres_of(metadata) == WANTED and metadata.reading.endswith(f"separated by {mark.strip()!r}")
    again = read_metadata(path, known=("Comedy", "Drama", "Horror", "Romance"))
    assert genres_of(again) == WANTED


def test_the_separator_that_was_named_is_used(tmp_path: Path) -> None:
    for mark in (";", "/", " & ", ",", ", ", "<br>", "~", " and ", " > "):
        path = table(tmp_path, "id,genre", [(mark.join(genres),) for genres in GENRES])
        assert genres_of(read_metadata(path, GenreOptions(genre_separator=mark))) == WANTED


@pytest.mark.parametrize(
    "labels",
    [
        ["Sci-Fi/Fantasy", "Crime/Thriller", "Drama", "War"],
        ["Action & Adventure", "Sci-Fi & Fantasy", "War & Politics", "Drama"],
        ["Action and Adventure", "Sword and Sandal", "War", "Drama"],
        ["Action & Adventure", "Action", "Adventure", "War"],  # one such name is no separator
        ["Science Fiction", "Film Noir", "TV Movie", "Drama"],
        ["Film-Noir", "Sci-Fi", "Sci-Fi", "Drama"],
        ["Action", "80s", "Drama", "1990"],
        ["Romantic Comedy", "Romantic Drama", "Action Comedy", "Action Drama", "Crime Comedy", "Crime Drama", "War"],
        ["Crime Film", "War Film", "Romance Film", "Horror Film", "Film Noir"],
        ["sci-fi_drama", "sci-fi_war", "film-noir", "war"],
    ],
)
def test_names_that_hold_a_separator_are_names(tmp_path: Path, labels: list[str]) -> None:
    cells: list[Sequence[object]] = [(label,) for label in labels * 6]
    assert genres_of(read_metadata(table(tmp_path, "id,genre", cells))) == [{label} for label in labels * 6]


@pytest.mark.parametrize("mark", [" ", "_"])
def test_the_separator_that_is_suggested_separates(tmp_path: Path, mark: str) -> None:
    path = table(tmp_path, "id,genre", [(text.replace(" ", mark),) for text in LISTS])
    metadata = read_metadata(path, GenreOptions(genre_separator=mark))
    assert genres_of(metadata) == [set(text.split()) for text in LISTS]
    whole = {text.replace(" ", mark) for text in LISTS}
    assert {genre for row in read_metadata(path, known=sorted(whole)).rows for genre in row.genres} == whole


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_columns_separated_by_something_else_are_read(tmp_path: Path, delimiter: str) -> None:
    path = table(tmp_path, "id,title,genre", [("A, B", text) for text in JOINED], delimiter)
    assert genres_of(read_metadata(path)) == WANTED


def test_ids_are_no_genres(tmp_path: Path) -> None:
    path = table(tmp_path, "id,genre", [(text,) for text in JOINED])
    with fails("table-column", "column 0 'id'", "--id-column", "--genre-column", "0 'id', 1 'genre'"):
        read_metadata(path, GenreOptions(genre_column="0"))


def test_row_numbers_are_no_ids(tmp_path: Path) -> None:
    for name in ("", "Unnamed: 0"):
        (tmp_path / "meta.csv").write_text(f"{name},key,genre\n0,1,Drama\n1,2,War\n2,0,Drama\n")
        with fails("table-column", f"column 0 {name!r}", "pandas", "--id-column 0", "1 'key'"):
            read_metadata(tmp_path / "meta.csv")
        for column, ids in (("0", ["0", "1", "2"]), ("key", ["1", "2", "0"])):
            found = read_metadata(tmp_path / "meta.csv", GenreOptions(id_column=column))
            assert [row.id for row in found.rows] == ids


def test_a_name_that_two_columns_have_names_none(tmp_path: Path) -> None:
    (tmp_path / "meta.csv").write_text("id,kind,kind\n1,Drama,War\n")
    with fails("table-column", "several", "0 'id', 1 'kind', 2 'kind'", "number", "--genre-column"):
        read_metadata(tmp_path / "meta.csv", GenreOptions(genre_column="kind"))
    assert read_metadata(tmp_path / "meta.csv", GenreOptions(genre_column="2")).rows[0].genres == ("War",)


@pytest.mark.parametrize(
    ("data", "remedy"),
    [
        (b"PK\x03\x04\x14\x00\xff\xfe", "save it as CSV"),
        (b"\x1f\x8b\x08\x00\xff", "decompress it"),
        (b"\x89PNG\r\n", "a PNG image"),
        ("id,genre\n1,Comédie\n2,Policière\n".encode() + b"3,Dram\xe9\n", "in line 4"),
    ],
)
def test_files_that_are_no_text_say_what_they_are(tmp_path: Path, data: bytes, remedy: str) -> None:
    (tmp_path / "meta.csv").write_bytes(data)
    with fails("table-unreadable", "meta.csv", remedy):
        read_metadata(tmp_path / "meta.csv")


def test_a_long_label_takes_no_quadratic_time(tmp_path: Path) -> None:
    started = time.monotonic()
    assert not NUMBER.fullmatch("1" * 90_000 + "x")
    text = "1" * 49_000 + "x" + ";" * 40_000
    assert read_metadata(table(tmp_path, "id,genre", [(text,), ("Drama",)]), GenreOptions(genre_column="1")).rows
    assert time.monotonic() - started < 5
