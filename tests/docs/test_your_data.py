"""Every layout of docs/get-started/your-data.md gives the shard set of the first one, with the command of the page."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from forked import ROOT
from shard_tools import draw

from shards.dataset.index import list_tars, read_index
from toolkit.cli.main import main

PAGE = (ROOT / "docs" / "get-started" / "your-data.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
FENCE = re.compile(r"^```(\w*) ?(\S*)\n(.*?)^```$", re.M | re.S)
POSTERS = ("tt0111161", "tt0068646", "tt0468569", "tt0109830", "tt0133093")
#: Sections whose shard set is another one, or that have no table of their own.
OTHER = ("One folder per genre", "Your own splits", "Sample weights", "K-fold cross-validation", "Tars of other tools")


def run_section(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Write the files of a section, run its code and its commands in ``folder``, and return the shard sets."""
    monkeypatch.chdir(folder)
    (folder / "posters").mkdir(exist_ok=True)
    for name in POSTERS:
        draw(name).save(folder / "posters" / f"{name}.jpg")
    sets = []
    for number, (kind, name, content) in enumerate(FENCE.findall(text)):
        if kind == "text" and name:
            # A table that is not UTF-8 is in the text of its section.
            (folder / name).write_bytes(content.encode("latin-1" if "Kaggle" in folder.name else "utf-8"))
        elif kind == "python":
            exec(compile(content, "page", "exec"), {})
        elif not kind:
            for line in filter(None, content.splitlines()):
                words = shlex.split(line)[1:]
                out = folder / f"set{number}-{words[words.index('--out') + 1]}"
                words[words.index("--out") + 1] = str(out)
                assert main([*words, "--workers", "1"]) == 0, line
                sets.append(out)
    return sets


def content(out: Path) -> dict[str, Any]:
    return {tar.name: (tar.read_bytes(), read_index(tar)[0].to_pylist()) for tar in list_tars(out)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        (out,) = run_section(SECTIONS["CSV"], tmp_path_factory.mktemp("plain"), patch)
        found = content(out)
    assert sum(len(index) for _, index in found.values()) == 5
    return found


@pytest.mark.parametrize("title", [title for title in SECTIONS if title not in OTHER])
def test_each_layout_is_the_same_set(
    title: str, plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / ("Kaggle" if "Kaggle" in title else "x")).mkdir()
    sets = run_section(SECTIONS[title], folder, monkeypatch)
    assert sets and all(content(out) == plain for out in sets)


def test_one_folder_per_genre(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = SECTIONS["One folder per genre"]
    places = re.findall(r"^posters/(\w+/\w+\.jpg)$", text, re.M)
    assert len(places) == 5
    for place in places:
        (tmp_path / "posters" / place).parent.mkdir(parents=True, exist_ok=True)
        draw(place).save(tmp_path / "posters" / place)
    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split("shards build --images posters --out SHARDS --workers 1")]) == 0
    genres = {row["id"]: row["labels"] for _, index in content(tmp_path / "SHARDS").values() for row in index}
    assert set(genres) == set(POSTERS) and all(len(labels) == 1 for labels in genres.values())


def test_own_splits_and_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (out,) = run_section(SECTIONS["Your own splits"], tmp_path, monkeypatch)
    ids = {name.partition("-")[0]: {row["id"] for row in index} for name, (_, index) in content(out).items()}
    assert ids == {"train": set(POSTERS[:3]), "val": {POSTERS[3]}, "test": {POSTERS[4]}}
    (tmp_path / "folds").mkdir()
    shutil.copy(tmp_path / "split.csv", tmp_path / "folds" / "posters.csv")
    sets = run_section(SECTIONS["K-fold cross-validation"], tmp_path / "folds", monkeypatch)
    tests = [
        {row["id"] for name, (_, i) in content(out).items() if name.startswith("test") for row in i} for out in sets
    ]
    assert len(tests) == 2 and all(len(ids) == 1 for ids in tests) and not tests[0] & tests[1]


def test_sample_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (out,) = run_section(SECTIONS["Sample weights"], tmp_path, monkeypatch)
    found = {row["id"]: row["weight"] for _, index in content(out).values() for row in index}
    assert found == dict(zip(POSTERS, (1, 1, 0.5, 2, 0.5), strict=True))


def test_the_dry_run_of_the_page_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = PAGE.partition("## CSV")[0]
    (command,) = re.findall(r"^posters (.* --dry-run)$", first, re.M)
    run_section(re.sub(r"^posters .*$", "", SECTIONS["CSV"], flags=re.M), tmp_path, monkeypatch)
    assert main([*shlex.split(command), "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "5 of 5 posters have genres and an image" in out and "Crime, Drama" in out and "estimated time" in out
    assert sorted(os.listdir(tmp_path)) == ["posters", "posters.csv"]
