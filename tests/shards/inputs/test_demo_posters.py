"""The demo set: the same seed draws the same bytes, and its bad rows are bad in the way that they claim."""

from __future__ import annotations

import ast
import csv
from pathlib import Path

import numpy as np
import pytest
from failing import fails
from PIL import Image

from shards.inputs.synthetic import GENRES, draw_poster_set

COUNT = 40
BAD = ["zero_bytes", "truncated", "not_an_image", "missing_file", "no_genres", "unparsable_genre"]
FLAWED_IDS = [f"bad_{flaw}" for flaw in BAD] + ["p00000"] + [f"copy_of_p0000{k}" for k in (1, 2, 3)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert draw_poster_set(folder, COUNT) == folder / "metadata.csv"
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metadata.csv", encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def find(folder: Path, name: str) -> Path:
    (path,) = (folder / "images").glob(f"{name}.*")
    return path


def test_the_same_seed_draws_the_same_bytes(demo: Path, tmp_path: Path) -> None:
    draw_poster_set(tmp_path, COUNT)
    assert contents(tmp_path) == contents(demo)


def test_another_seed_draws_other_posters(demo: Path, tmp_path: Path) -> None:
    draw_poster_set(tmp_path, 8, seed=1)
    for k in range(8):
        assert find(tmp_path, f"p0000{k}").read_bytes() != find(demo, f"p0000{k}").read_bytes()


def test_a_larger_set_begins_with_the_smaller_one(demo: Path, tmp_path: Path) -> None:
    draw_poster_set(tmp_path, 8)
    assert rows_of(tmp_path)[:8] == rows_of(demo)[:8]
    small, large = contents(tmp_path), contents(demo)
    del small["metadata.csv"]
    assert small.items() <= large.items()


def test_the_csv_has_the_columns_and_then_one_row_per_poster(demo: Path) -> None:
    lines = (demo / "metadata.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "poster_id,title,year,genre"
    rows = rows_of(demo)
    assert [row["poster_id"] for row in rows] == [f"p{k:05d}" for k in range(COUNT)] + FLAWED_IDS
    for row in rows[:COUNT]:
        genres = ast.literal_eval(row["genre"])
        assert row["genre"] == str(genres)
        assert 1 <= len(genres) <= 3 and len(set(genres)) == len(genres) and set(genres) <= set(GENRES)
        assert 2 <= len(row["title"].split()) <= 3
        assert 1900 < int(row["year"]) < 2030


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_genre_occurs_even_in_the_smallest_set(tmp_path: Path, seed: int) -> None:
    draw_poster_set(tmp_path, len(GENRES), seed)
    leads = [ast.literal_eval(row["genre"])[0] for row in rows_of(tmp_path)[: len(GENRES)]]
    assert leads == list(GENRES)


def test_posters_are_portraits_of_two_sizes_and_two_formats(demo: Path) -> None:
    seen = set()
    for k in range(COUNT):
        path = find(demo, f"p{k:05d}")
        with Image.open(path) as image:
            image.load()
            assert image.mode == "RGB" and np.asarray(image).std() > 10
            seen.add((image.format, path.suffix, image.size))
    assert {size for *_, size in seen} == {(200, 300), (400, 600)}
    assert {(kind, suffix) for kind, suffix, _ in seen} == {("JPEG", ".jpg"), ("PNG", ".png")}


def test_bad_files_are_bad_as_documented(demo: Path) -> None:
    assert find(demo, "bad_zero_bytes").read_bytes() == b""
    with Image.open(find(demo, "bad_truncated")) as image, pytest.raises(OSError, match="truncated"):
        image.load()
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(find(demo, "bad_not_an_image"))
    assert not list((demo / "images").glob("bad_missing_file.*"))


def test_bad_rows_are_bad_as_documented(demo: Path) -> None:
    rows = {row["poster_id"]: row for row in rows_of(demo)[COUNT:]}
    assert rows["bad_no_genres"]["genre"] == "[]"
    with pytest.raises(SyntaxError):
        ast.literal_eval(rows["bad_unparsable_genre"]["genre"])
    for name in ("bad_no_genres", "bad_unparsable_genre"):  # only the genre is wrong
        with Image.open(find(demo, name)) as image:
            image.load()
    assert rows["p00000"] == rows_of(demo)[0]
    for name in BAD[:4]:  # only the file is wrong
        assert ast.literal_eval(rows[f"bad_{name}"]["genre"])


@pytest.mark.parametrize("k", [1, 2, 3])
def test_near_duplicates_look_like_their_originals_but_are_other_files(demo: Path, k: int) -> None:
    rows = {row["poster_id"]: row["genre"] for row in rows_of(demo)}
    assert rows[f"copy_of_p0000{k}"] == rows[f"p0000{k}"]

    def tiny(name: str) -> np.ndarray:
        with Image.open(find(demo, name)) as image:
            return np.asarray(image.convert("L").resize((16, 24)), float)

    with Image.open(find(demo, f"p0000{k}")) as original, Image.open(find(demo, f"copy_of_p0000{k}")) as copy:
        assert original.size != copy.size
    near = np.abs(tiny(f"p0000{k}") - tiny(f"copy_of_p0000{k}")).mean()
    others = [f"p{other:05d}" for other in range(COUNT) if other != k]
    far = min(np.abs(tiny(f"p0000{k}") - tiny(other)).mean() for other in others)
    assert near < 3 and far > 10


def test_too_small_a_set_is_refused(tmp_path: Path) -> None:
    with fails("option-value", "at least 7", "not 6"):
        draw_poster_set(tmp_path / "new", 6)
    assert not (tmp_path / "new").exists()


def test_pictures_tell_their_genres_apart(tmp_path: Path) -> None:
    """Colour histograms alone must do far better than chance, else the demo would teach nothing."""
    draw_poster_set(tmp_path, 160)
    rows = rows_of(tmp_path)[:160]
    truth = np.array([[genre in ast.literal_eval(row["genre"]) for genre in GENRES] for row in rows], float)
    features = []
    for row in rows:
        with Image.open(find(tmp_path, row["poster_id"])) as image:
            pixels = np.asarray(image.convert("RGB").resize((48, 72))) // 64
        bins = (pixels * [16, 4, 1]).sum(axis=2).ravel()
        features.append(np.sqrt(np.bincount(bins, minlength=64) / bins.size))
    x = np.column_stack([features, np.ones(len(rows))])
    train, test = slice(0, 120), slice(120, None)
    weights = np.linalg.solve(x[train].T @ x[train] + 0.3 * np.eye(x.shape[1]), x[train].T @ truth[train])
    scores = x[test] @ weights
    # Palettes alone reach 0.73 for Comedy, 0.70 for Horror. The other genres are too rare among 40 posters.
    for genre, least in {"Drama": 0.7, "Comedy": 0.85, "Romance": 0.8, "Horror": 0.85}.items():
        column = list(GENRES).index(genre)
        yes, no = scores[truth[test][:, column] == 1, column], scores[truth[test][:, column] == 0, column]
        auc = (yes[:, None] > no[None]).mean()
        assert auc > least, f"{genre}: {auc:.2f}"
