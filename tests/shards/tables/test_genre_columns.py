"""A column of lists beside columns of 0 and 1: the choice is said, and an option changes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from failing import fails
from shard_tools import write_csv

from shards.tables.metadata import GenreOptions, read_metadata

LISTS = ["['War']", "['Drama', 'War']", "['Comedy']", "['Drama']"]
FLAGS = [(1, 0), (0, 1), (1, 1), (0, 1)]
OF_FLAGS = [("Action",), ("Crime",), ("Action", "Crime"), ("Crime",)]
OF_LISTS = [("War",), ("Drama", "War"), ("Comedy",), ("Drama",)]


def genres(path: Path, options: GenreOptions | None = None) -> list[tuple[str, ...]]:
    return [row.genres for row in read_metadata(path, options or GenreOptions()).rows]


@pytest.mark.parametrize("header", ["id,Action,Crime,genres", "id,Action,Crime,kinds"])
def test_lists_before_flags(tmp_path: Path, header: str) -> None:
    rows = [(f"p{n}", *flags, cell) for n, (flags, cell) in enumerate(zip(FLAGS, LISTS, strict=True))]
    path = write_csv(tmp_path / "m.csv", rows, header.split(","))
    unused = "not used: 2 columns of 0 and 1 (1 'Action', 2 'Crime'), which --label-columns chooses"
    assert read_metadata(path).reading.endswith(f"genres in column 3 {header.split(',')[3]!r}; {unused}")
    assert genres(path) == OF_LISTS
    chosen = GenreOptions(label_columns=("Action", "Crime"))
    assert genres(path, chosen) == OF_FLAGS and "not used" not in read_metadata(path, chosen).reading


def test_flags_before_lists_in_a_column_without_a_usual_name(tmp_path: Path) -> None:
    rows = [(f"p{n}", cell, *flags) for n, (flags, cell) in enumerate(zip(FLAGS, LISTS, strict=True))]
    path = write_csv(tmp_path / "m.csv", rows, ("id", "kinds", "Action", "Crime"))
    reading = read_metadata(path).reading
    assert reading.endswith("; not used: lists in column 1 'kinds', which --genre-column chooses")
    assert genres(path) == OF_FLAGS
    assert genres(path, GenreOptions(genre_column="kinds")) == OF_LISTS


def test_flags_of_films_beside_genres_are_not_mentioned(tmp_path: Path) -> None:
    rows = [(f"p{n}", *flags, cell) for n, (flags, cell) in enumerate(zip(FLAGS, LISTS, strict=True))]
    path = write_csv(tmp_path / "m.csv", rows, ("id", "adult", "video", "genres"))
    assert read_metadata(path).reading.endswith("genres in column 3 'genres'")


@pytest.mark.parametrize("others", [("adult", "video"), ("Adult", "isAdult"), ("War", "video"), ("War", "is_train")])
def test_flags_of_films_are_no_genres(tmp_path: Path, others: tuple[str, str]) -> None:
    rows = [(f"{n + 77}", "A title", *flags) for n, flags in enumerate(FLAGS)]
    path = write_csv(tmp_path / "m.csv", rows, ("id", "title", *others))
    with fails("table-column", f"2 {others[0]!r}, 3 {others[1]!r}", "--label-columns", "--genre-column", "1 'title'"):
        read_metadata(path)
    # A user can still choose these columns with --label-columns.
    assert genres(path, GenreOptions(label_columns=others))[2] == others


def test_adult_beside_other_genres_is_a_genre(tmp_path: Path) -> None:
    rows = [(f"p{n}", *flags, n % 2) for n, flags in enumerate(FLAGS)]
    path = write_csv(tmp_path / "m.csv", rows, ("id", "Adult", "Crime", "War"))
    assert genres(path)[1] == ("Crime", "War")
    assert "3 columns of 0 and 1: 1 'Adult'" in read_metadata(path).reading


@pytest.mark.parametrize("names", [("genre_1", "genre_2", "genre_3"), ("Genre1", "Genre2", "Genre3")])
def test_numbered_columns_of_genres_are_to_be_joined(tmp_path: Path, names: tuple[str, ...]) -> None:
    rows = [(f"p{n}", "Drama", "War" if n % 2 else "", "Comedy" if n % 3 else "") for n in range(9)]
    path = write_csv(tmp_path / "m.csv", rows, ("id", *names))
    with fails(
        "table-column", f"join the columns 1 {names[0]!r}, 2 {names[1]!r}", "into one column genre", "Drama|War"
    ):
        genres(path)
