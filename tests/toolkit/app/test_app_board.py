"""State of a visitor of `posters app`: uploads, thresholds, corrections and downloads; and the gallery."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from failing import fails
from hypothesis import given
from hypothesis import strategies as st
from toolkit_helpers import make_model_folder, some_decisions

from shards.dataset.labels import LabelSet
from shards.dataset.manifest import Manifest
from toolkit.app import board as app_board
from toolkit.app import downloads, html
from toolkit.app.board import Board
from toolkit.app.browse import ERRORS, ORDERS, Split, Wanted
from toolkit.app.options import AppOptions
from toolkit.app.service import Poster, PredictionService
from toolkit.app.wording import wording_of
from toolkit.cli.main import main
from toolkit.config.model_files import LABELS
from toolkit.model_folder.folder import load_model_folder
from toolkit.models.heads import HeadSpec


@pytest.fixture(scope="module")
def service(labels: LabelSet, tmp_path_factory: pytest.TempPathFactory) -> PredictionService:
    folder = tmp_path_factory.mktemp("board") / "model"
    head = HeadSpec("levels", (), 0.0)
    make_model_folder(folder, labels, head, size=96, decisions=some_decisions(len(labels)))
    return PredictionService(load_model_folder(folder))


@pytest.fixture
def board(service: PredictionService, posters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    """A board with two posters and a file that is not a picture."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    images = posters / "images"
    board = Board()
    paths = [images / "p00001.jpg", images / "bad_not_an_image.jpg", images / "p00002.jpg"]
    assert [item.name for item in board.add(service.read(paths))] == ["bad_not_an_image.jpg"]
    return board


def written(path: Path | None) -> Path:
    """The path of a file that must have been written."""
    assert path is not None
    return path


def test_uploads_are_added_up_to_a_limit(board: Board, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app_board, "MAX_POSTERS", 3)
    first, second = board.posters
    assert board.chosen is first
    (refused,) = board.add([second, first])
    assert board.posters == [first, second, second] and board.chosen is second
    assert refused.name == first.name and "Empty the table" in refused.message and board.refused[-1] is refused
    board.empty()
    assert not board.posters and not board.refused and board.chosen is None


def test_thresholds_of_a_visitor_name_again_without_inference(board: Board, service: PredictionService):
    folder, poster = service.folder, board.posters[0]
    genres, own = folder.labels.genres, folder.thresholds.copy()
    board.set_threshold(-1, 1.0, folder)
    assert board.named(poster, folder) == []
    top = int(poster.probabilities.argmax())
    board.set_threshold(top, 0.0, folder)
    assert board.named(poster, folder) == [genres[top]]
    assert f">{genres[top]}</td>" in html.uploads_table(board, service)
    np.testing.assert_array_equal(folder.thresholds, own)  # those of other visitors
    board.set_threshold(-2, 0, folder)
    np.testing.assert_array_equal(board.thresholds(folder), own)


@pytest.mark.parametrize(
    ("column", "value"),
    [(99, 0.5), (-3, 0.5), ("0", 0.5), (0, "0.5"), (0, 1.5), (0, float("nan")), (None, None), (True, 0.5)],
)
def test_a_browser_cannot_send_any_threshold(service: PredictionService, column: object, value: object):
    board = Board()
    with fails("option-value", "threshold"):
        board.set_threshold(column, value, service.folder)
    assert not board.changed


def test_downloads_have_the_rows_of_predict(board: Board, service: PredictionService, posters: Path, tmp_path: Path):
    assert downloads.labels_file(board, service) is None and downloads.prediction_files(Board(), service) == [None] * 3
    paths = dict(zip(downloads.TABLES, map(written, downloads.prediction_files(board, service)), strict=True))
    assert all(path.parent.parent == tmp_path for path in paths.values())
    images = [str(posters / "images" / name) for name in ("p00001.jpg", "p00002.jpg")]
    out = tmp_path / "predicted.parquet"
    assert main(["predict", "-m", str(service.folder.path), *images, "-o", str(out)]) == 0
    found, expected = pd.read_parquet(paths["parquet"]), pd.read_parquet(out)
    assert found.columns.tolist() == expected.columns.tolist()
    assert found["image"].tolist() == ["p00001.jpg", "p00002.jpg", "bad_not_an_image.jpg"]
    assert [list(genres) for genres in found["genres"][:2]] == [list(genres) for genres in expected["genres"]]
    numbers = list(service.folder.labels.genres)
    np.testing.assert_allclose(found[numbers][:2].to_numpy(), expected[numbers].to_numpy(), atol=1e-5)
    assert "not an image" in found["error"][2] and found[numbers].iloc[2].isna().all()
    table = pd.read_csv(paths["csv"])
    assert table["image"].tolist() == found["image"].tolist() and table["error"].notna().tolist() == [
        False,
        False,
        True,
    ]
    said = json.loads(paths["json"].read_text())
    assert [entry["image"] for entry in said["predictions"]] == found["image"].tolist()
    assert said["model"] == "model"  # no path of this machine
    board.close()
    assert not paths["csv"].exists()


def test_a_state_that_gives_its_place_to_newer_visitors_leaves_no_downloads(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    board = Board()
    assert board.folder.is_dir()
    del board
    assert not list(tmp_path.iterdir())


def test_new_thresholds_fit_into_the_model_folder(board: Board, service: PredictionService, tmp_path: Path):
    first = service.folder.labels.genres[0]
    board.set_threshold(0, 0.125, service.folder)
    path = written(downloads.labels_file(board, service))
    copy = tmp_path / "copy"
    shutil.copytree(service.folder.path, copy)
    shutil.copy(path, copy / LABELS)
    loaded = load_model_folder(copy)
    np.testing.assert_array_equal(loaded.thresholds, board.thresholds(service.folder))
    assert loaded.decisions.chosen_on["by_hand"] == {first: service.folder.thresholds[0]}
    assert f"set by hand: {first} 0.125" in loaded.decisions.source


def test_corrections_change_the_shards(board: Board, service: PredictionService, drawn_posters: Path, tmp_path: Path):
    genres = service.folder.labels.genres
    assert downloads.corrections_file(board) is None
    assert board.correct([genres[2], genres[0]], service.folder) == "p00001"
    board.chosen = board.posters[1]
    board.correct([genres[1]], service.folder)
    board.correct([genres[2]], service.folder)  # the last one counts
    path = written(downloads.corrections_file(board))
    rows = list(csv.reader(path.open(newline="")))
    assert rows == [["id", "genres"], ["p00001", f"{genres[0]}|{genres[2]}"], ["p00002", genres[2]]]
    command = [
        "shards",
        "build",
        "--images",
        str(drawn_posters / "images"),
        "--metadata",
        str(drawn_posters / "metadata.csv"),
    ]
    out = tmp_path / "corrected"
    assert main([*command, "--out", str(out), "--corrections", str(path)]) == 0
    assert Manifest.read(out).source["corrections"]["rows"] == 2
    applied = pd.read_csv(out / "corrections-applied.csv")
    assert set(applied["id"]) <= {"p00001", "p00002"} and len(applied) > 0


def test_a_correction_that_is_not_clear_is_refused(board: Board, service: PredictionService):
    folder, genres = service.folder, service.folder.labels.genres
    with fails("option-missing", "at least one"):
        board.correct([], folder)
    with fails("option-missing", "at least one"):
        board.correct(["no label of the model"], folder)
    twin = replace(board.posters[1], name="p00001.png", square=board.posters[1].square.copy())
    board.posters.append(twin)
    with fails("option-value", "another upload is called 'p00001'"):
        board.correct(genres[:1], folder)
    assert not board.corrections
    with fails("option-missing", "choose a picture"):
        Board().correct(genres[:1], folder)


def test_ids_are_names_without_the_ending_of_an_image(board: Board):
    poster = board.posters[0]
    named = [replace(poster, name=name).id for name in ("Alien: 3.jpg", "x.JPEG", "a.b", "v1.2.png")]
    assert named == ["Alien: 3", "x", "a.b", "v1.2"]
    assert replace(poster, name="66.jpg", true=("Drama",)).id == "66.jpg"  # an id of a shard set is what it is


@pytest.fixture(scope="module")
def split(service: PredictionService, shard_set: Path) -> Split:
    return Split.of(AppOptions(model=service.folder.path, shards=shard_set, split="train"), service.folder)


def test_the_gallery_has_the_posters_of_the_split(
    split: Split, service: PredictionService, shard_set: Path, monkeypatch
):
    samples = pd.concat(
        pd.read_parquet(path) for path in sorted(shard_set.glob("train*.parquet")) if "samples" not in path.name
    )
    assert split.ids == samples["id"].tolist() if len(samples) else len(split.ids) > 0
    poster = split.open(split.require_row(1), service)
    assert isinstance(poster, Poster) and poster.id == split.ids[1] and poster.true == split.genres_of(1)
    np.testing.assert_allclose(poster.probabilities, split.probabilities[1], atol=1e-4)
    with monkeypatch.context() as patch, fails("image-unreadable", f"{split.ids[1]}: not an image"):
        patch.setattr(type(split.reader), "image_bytes", lambda reader, row: b"no image")
        split.open(1, service)
    for number in (-1, len(split.ids), "1", None, True):
        with fails("option-value", "no poster"):
            split.require_row(number)


def test_outputs_of_evaluate_are_read_only_if_they_fit(
    service: PredictionService, shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    copy = tmp_path / "model"
    shutil.copytree(service.folder.path, copy)
    folder = load_model_folder(copy)
    assert main(["evaluate", "--model", str(copy), "--shards", str(shard_set), "--split", "test"]) == 0
    options = AppOptions(model=copy, shards=shard_set, split="test")
    expected = Split.of(options, service.folder).probabilities  # this folder has no file
    monkeypatch.setattr("toolkit.app.browse.infer_split", None)
    found = Split.of(options, folder)
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
    path = copy / "predictions-test.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with fails("predictions-damaged", "predictions-test.npz", "delete it"):
        Split.of(options, folder)
    path.write_text("no archive")
    with fails("predictions-damaged", "it is not a file of plain numpy arrays", "delete it"):
        Split.of(options, folder)
    path.write_bytes(whole)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, "ids": arrays["ids"][::-1]})
    with fails("predictions-damaged", "other ids"):
        Split.of(options, folder)
    np.savez(path, **{**arrays, "logits": arrays["logits"] * np.nan})
    with fails("predictions-damaged", "finite"):
        Split.of(options, folder)
    np.savez(path, **{**arrays, "weights": "f" * 64})
    with pytest.raises(TypeError, match="NoneType"):  # predicted again
        Split.of(options, folder)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("true", "no label", "has no choice 'no label'"), ("named", None, "has no choice 'None'"),
        ("true", ["Drama"], "has no choice"), ("errors", None, "has no choice"), ("order", "x", "has no choice 'x'"),
        ("low", float("nan"), "from 0 to 1, not nan"), ("high", "0.5", "from 0 to 1, not 0.5"),
        ("low", True, "from 0 to 1, not True"), ("high", -1e99, "from 0 to 1, not -1e+99"),
    ],
)  # fmt: skip
def test_a_browser_cannot_send_any_filter(split: Split, service: PredictionService, field: str, value: Any, said: str):
    with fails("option-value", said):
        split.rows(replace(Wanted(), **{field: value}), service.folder.thresholds)


#: Samples of three labels: (true labels, probabilities).
SAMPLE = st.tuples(st.lists(st.booleans(), min_size=3, max_size=3), st.lists(st.floats(0, 1), min_size=3, max_size=3))


@given(
    st.lists(SAMPLE, max_size=12),
    st.sampled_from(["", "a", "b"]), st.sampled_from(["", "a", "c"]), st.sampled_from(ERRORS),
    st.floats(0, 1), st.floats(0, 1), st.sampled_from(ORDERS),
)  # fmt: skip
def test_the_filter_is_what_its_words_say(samples, true, named, errors, low, high, order):
    genres = ("a", "b", "c")
    targets = np.array([sample[0] for sample in samples], bool).reshape(-1, 3)
    probabilities = np.array([sample[1] for sample in samples], float).reshape(-1, 3)
    thresholds = np.array([0.3, 0.5, 0.7])
    split = Split("test", [str(k) for k in range(len(samples))], targets, probabilities, None, genres)  # type: ignore[arg-type]
    found = split.rows(Wanted(true, named, errors, low, high, order), thresholds).tolist()

    def value(row: int) -> float:
        return probabilities[row, genres.index(named or true)] if named or true else probabilities[row].max()

    def wanted(row: int) -> bool:
        says = {g for k, g in enumerate(genres) if probabilities[row, k] >= thresholds[k]}
        has = {g for k, g in enumerate(genres) if targets[row, k]}
        looked = {true, named} - {""} or set(genres)
        wrong, missed = bool((says - has) & looked), bool((has - says) & looked)
        fits = {
            ERRORS[0]: True,
            ERRORS[1]: wrong or missed,
            ERRORS[2]: wrong,
            ERRORS[3]: missed,
            ERRORS[4]: not (wrong or missed),
        }
        return (not true or true in has) and (not named or named in says) and fits[errors] and low <= value(row) <= high

    assert sorted(found) == [row for row in range(len(samples)) if wanted(row)]
    values = [value(row) for row in found]
    if order == ORDERS[1]:
        assert values == sorted(values, reverse=True)
    elif order == ORDERS[2]:
        assert values == sorted(values)
    else:
        assert found == sorted(found)


def test_a_page_of_the_gallery(split: Split, service: PredictionService, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(html, "PER_PAGE", 4)
    board, count = Board(), len(split.ids)
    board.page = 10**9  # the page that is there
    last = html.gallery(split, Wanted(), board, service)
    assert board.page == (count - 1) // 4 and f"of {count}" in last and "Next" not in last and "Previous page" in last
    board.page = 0
    page = html.gallery(split, Wanted(), board, service)
    assert page.count("<img") == 4 and page.count("data-row=") == 4 and "Posters 1 to 4" in page
    for genre in split.genres_of(0):
        assert genre in page
    assert "No poster fits" in html.gallery(split, Wanted(low=0.9, high=0.1), board, service)


def test_words_come_from_the_model(labels: LabelSet, tmp_path: Path):
    head = HeadSpec("linear", (), 0.0)
    path = make_model_folder(tmp_path / "films", labels, head)
    assert wording_of(load_model_folder(path)).title == "Which genres does a poster show?"
    path = make_model_folder(tmp_path / "moods", LabelSet(("happy", "sad")), head)
    words = wording_of(load_model_folder(path))
    assert words.title == "Which labels does a picture show?" and words.thing == "picture"
    content = json.loads((path / LABELS).read_text())
    (path / LABELS).write_text(json.dumps({**content, "title": "How does it feel?", "noun": "mood"}))
    words = wording_of(load_model_folder(path))
    assert (words.title, words.noun, words.nouns) == ("How does it feel?", "mood", "moods")
    assert main(["tune", "--model", str(path), "--set", "sad=0.25"]) == 0
    assert wording_of(load_model_folder(path)).noun == "mood"  # another command keeps what the user wrote
    (path / LABELS).write_text(json.dumps({**content, "noun": 7}))
    with fails("path-unreadable", "noun"):
        wording_of(load_model_folder(path))
