"""A subfolder for each genre: names that look like lists or like a missing value, and links to folders."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
from failing import fails
from shard_tools import draw

from shards.build.run import BuildOptions, build_shards
from shards.tables.metadata import GenreOptions, read_metadata


def images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        draw(name, 40, 40).save(folder / name)
    return folder


def genres(folder: Path, **options: Any) -> dict[str, tuple[str, ...]]:
    return {row.id: row.genres for row in read_metadata(folder, GenreOptions(**options)).rows}


@pytest.mark.parametrize(("mark", "shown"), [(", ", ","), ("&", "&"), (" ", " ")])
def test_names_of_several_genres(tmp_path: Path, mark: str, shown: str) -> None:
    """The line has two remedies. Each of them reads the folder."""
    parts = {"a": ("Drama", "War"), "b": ("War",), "c": ("Drama",), "d": ("War", "Drama"), "e": ("Drama", "War")}
    folder = images(tmp_path / "posters", *(f"{mark.join(names)}/{key}.jpg" for key, names in parts.items()))
    with fails(
        "table-column", "several genres in one label", f"--genre-separator {shown!r}", "a JSON file for --labels"
    ):
        read_metadata(folder)
    assert genres(folder, genre_separator=shown) == parts
    whole = {key: (mark.join(names),) for key, names in parts.items()}
    found = read_metadata(folder, known=sorted({names[0] for names in whole.values()}))
    assert {row.id: row.genres for row in found.rows} == whole


def test_a_folder_called_none_is_a_genre(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = images(tmp_path, "None/a.jpg", "War/b.jpg", "nan/c.jpg")
    assert genres(folder) == {"a": ("None",), "b": ("War",), "c": ("nan",)}
    assert "a missing genre" not in caplog.text


def test_links_to_folders_of_genres_are_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = images(tmp_path / "posters", "War/a.jpg", "War/b.jpg")
    images(tmp_path / "elsewhere", "c.jpg", "below/d.jpg")
    (folder / "Drama").symlink_to(tmp_path / "elsewhere")
    (folder / "Loop").symlink_to(folder)
    caplog.set_level("INFO")
    assert genres(folder) == {"a": ("War",), "b": ("War",), "c": ("Drama",), "d": ("Drama",)}
    assert f"{folder}: links to folders are followed: Drama" in caplog.text
    build_shards(BuildOptions(images=folder, out=tmp_path / "set", workers=1, fractions=(0.5, 0.25, 0.25)))
    with open(tmp_path / "set" / "rejected.csv", newline="") as stream:
        assert list(csv.reader(stream)) == [["id", "reason", "detail"]]


def test_a_folder_of_links_only(tmp_path: Path) -> None:
    folder = tmp_path / "posters"
    folder.mkdir()
    for genre, name in (("War", "a.jpg"), ("Drama", "b.jpg")):
        (folder / genre).symlink_to(images(tmp_path / f"of {genre}", name))
    assert genres(folder) == {"a": ("War",), "b": ("Drama",)}
    images(tmp_path / "of War", "a2.jpg", "a3.jpg")
    build_shards(BuildOptions(images=folder, out=tmp_path / "set", workers=1, fractions=(0.5, 0.25, 0.25)))


def test_images_of_a_split_without_a_table_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images(tmp_path, "train/a.jpg", "train/more/b.jpg", "val/c.jpg", "val/d.jpg")
    rows = "file_name,genre\na.jpg,Drama\nmore/b.jpg,War\n"
    (tmp_path / "train" / "metadata.csv").write_text(rows)
    assert set(genres(tmp_path)) == {"a", "b"}
    assert f"2 images in {tmp_path} are in a folder without a table and are left out (the first is val/c.jpg)" in (
        caplog.text
    )
    (tmp_path / "val" / "metadata.csv").write_text("file_name,genre\nc.jpg,Drama\nd.jpg,War\n")
    caplog.clear()
    assert set(genres(tmp_path)) == {"a", "b", "c", "d"} and "without a table" not in caplog.text


def test_equal_files_with_different_genres_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A copy of a poster in the subfolder of each of its genres."""
    names = [
        f"{genre}/{number}.jpg" for genre, start in (("Drama", 0), ("War", 20)) for number in range(start, start + 20)
    ]
    folder = images(tmp_path / "posters", *names)
    shutil.copy(folder / "Drama" / "7.jpg", folder / "War" / "7.jpg")
    build_shards(BuildOptions(images=folder, out=tmp_path / "set", workers=1))
    example = "Drama/7 (Drama) and War/7 (War): each file is a poster of its own"
    assert f"1 images are in several equal files with different genres, for example {example}" in caplog.text
    caplog.clear()
    (folder / "War" / "7.jpg").unlink()
    build_shards(BuildOptions(images=folder, out=tmp_path / "other", workers=1))
    assert "equal files" not in caplog.text
