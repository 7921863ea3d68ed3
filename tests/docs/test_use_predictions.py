"""The commands and programs of docs/guides/use-predictions.md run in the order of the page, and do what it says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from toolkit_helpers import ROOT, make_model_folder, some_decisions

from shards.dataset.labels import LabelSet
from toolkit.cli.main import main
from toolkit.model_folder.folder import load_labels
from toolkit.models.heads import HeadSpec

PAGE = (ROOT / "docs" / "guides" / "use-predictions.md").read_text(encoding="utf-8")
#: (language, content) of each block of code.
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.M | re.S)
GENRES = ("Comedy", "Drama", "Film-Noir", "Horror")


@pytest.fixture(scope="module")
def folder(drawn_posters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two models and nested posters, one of them unreadable and one there twice."""
    folder = tmp_path_factory.mktemp("page")
    for name, head in (("RUN", HeadSpec("linear", (), 0.0)), ("RUN2", HeadSpec("levels", (), 0.0))):
        decisions = some_decisions(len(GENRES))
        make_model_folder(folder / name / "model", LabelSet(GENRES), head, decisions=decisions)
    (folder / "POSTERS" / "more").mkdir(parents=True)
    for number in range(6):
        shutil.copy(drawn_posters / "images" / f"p{number:05d}.jpg", folder / "POSTERS")
    shutil.copy(drawn_posters / "images" / "p00000.jpg", folder / "POSTERS" / "more" / "copy.jpg")
    shutil.copy(drawn_posters / "images" / "bad_truncated.jpg", folder / "POSTERS")
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def values(folder: Path) -> dict[str, Any]:
    """The variables of the programs, after all blocks of the page have run."""
    found: dict[str, Any] = {}
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text, "use-predictions.md", "exec"), found)
        elif language == "text":
            (folder / "names.csv").write_text(text, encoding="utf-8")
        else:
            for line in text.splitlines():
                assert line.startswith("posters ") and main(shlex.split(line)[1:]) == 0, line
    return found


def test_the_page_has_each_kind_of_block():
    assert {language for language, _ in BLOCKS} == {"", "python", "text"}
    assert all(len(text.splitlines()) <= 10 for language, text in BLOCKS if language == "python")


def test_thresholds_and_the_most_probable_genres(values: dict[str, Any], folder: Path):
    assert values
    drama = pd.read_csv(folder / "drama.csv", keep_default_na=False)
    assert not drama["genres"].str.contains("Drama").any() and drama["genres"].str.contains("Comedy").any()
    top = pd.read_csv(folder / "top-3.csv").dropna(subset="genres")
    assert (top["genres"].str.count(r"\|") == 2).all() and len(top) == 7
    assert load_labels(folder / "RUN" / "model")[1].thresholds[1] == 0.9


def test_similar_posters(values: dict[str, Any]):
    assert sorted(values["similar"][:2]) == ["more/copy.jpg", "p00000.jpg"] and len(set(values["similar"])) == 4


def test_the_mean_of_two_models(values: dict[str, Any], folder: Path):
    assert values
    one, two = (pd.read_parquet(folder / name).set_index("id") for name in ("ONE", "TWO"))
    mean = pd.read_csv(folder / "mean.csv", keep_default_na=False, na_values={g: [""] for g in GENRES}).set_index("id")
    assert list(mean.columns) == ["genres", *GENRES] and mean.index.tolist() == one.index.tolist()
    np.testing.assert_allclose(mean[list(GENRES)], (one[list(GENRES)] + two[list(GENRES)]) / 2, rtol=1e-5)
    assert np.abs(one[list(GENRES)] - two[list(GENRES)]).max().max() > 0.01
    for name, row in mean.iterrows():
        assert row["genres"] == "|".join(genre for genre in GENRES if row[genre] >= 0.5), name


def test_translated_names(values: dict[str, Any], folder: Path):
    assert values
    old, new = pd.read_parquet(folder / "ONE"), pd.read_parquet(folder / "translated.parquet")
    assert list(new.columns) == ["id", "genres", "Komödie", "Drama", "Film-Noir", "Horrorfilm", "error"]
    other = {"Comedy": "Komödie", "Horror": "Horrorfilm"}
    expected = [[other.get(genre, genre) for genre in genres] for genres in old["genres"]]
    assert [list(genres) for genres in new["genres"]] == expected and any("Komödie" in genres for genres in expected)
