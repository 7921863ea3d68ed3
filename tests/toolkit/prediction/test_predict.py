"""``posters predict``: one image, folders with bad files, whole shard sets; text, JSON, CSV, Parquet."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from failing import fails
from toolkit_helpers import error_lines, make_model_folder, posters_command, some_decisions

from shards.dataset.labels import LabelSet
from shards.errors import Code, UserError, printable_line
from toolkit.cli.main import main
from toolkit.data.sources.image_files import list_images
from toolkit.distributed.collectives import make_accelerator
from toolkit.inference.naming import NamingOptions
from toolkit.model_folder.folder import load_model_folder
from toolkit.models.heads import HeadSpec
from toolkit.prediction.files import predict_files


@pytest.fixture(scope="module")
def images(posters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven good posters, one in a subfolder, and three bad files."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "sub").mkdir()
    for number in range(7):
        name = f"p{number:05d}.jpg"
        shutil.copy(posters / "images" / name, folder / ("sub" if number == 6 else "") / name)
    for bad in ("bad_zero_bytes.jpg", "bad_truncated.jpg", "bad_not_an_image.jpg"):
        shutil.copy(posters / "images" / bad, folder)
    return folder


def test_one_image_for_people(model_folder: Path, images: Path, labels: LabelSet):
    run = posters_command("predict", "-i", images / "p00000.jpg", "-m", model_folder, "-v", "-t", "0.01")
    assert run.returncode == 0, run.stderr
    assert (
        f"genres     {len(labels)}" in run.stdout and "threshold  0.01" in run.stdout and "device     cpu" in run.stdout
    )
    shares = [float(line.split()[-1].rstrip("%")) for line in run.stdout.splitlines() if line.startswith("    ")]
    assert len(shares) == len(labels) and shares == sorted(shares, reverse=True)
    assert all(genre in run.stdout for genre in labels.genres)


def test_a_folder_with_bad_files(model_folder: Path, images: Path, tmp_path: Path):
    out = tmp_path / "out.json"
    run = posters_command("predict", "-d", images, "-m", model_folder, "-o", out, "-v")
    assert run.returncode == 0, run.stderr
    assert "3 of 10 images could not be read" in run.stderr and "Traceback" not in run.stderr
    assert json.loads(out.read_text())["calibration"] == "none"
    result = json.loads(out.read_text())["predictions"]
    assert len(result) == 10 and sum("error" in p for p in result) == 3
    assert any(p["image"].endswith("sub/p00006.jpg") for p in result)
    errors = {Path(p["image"]).stem: p["error"] for p in result if "error" in p}
    assert "truncated" in errors["bad_truncated"] and "not an image" in errors["bad_not_an_image"]

    run = posters_command("predict", "-d", images, "-m", model_folder, "-f", "csv", "-v", "-t", "0.4")
    rows = list(csv.DictReader(run.stdout.splitlines()))
    assert [row["image"] for row in rows] == [p["image"] for p in result]
    for row, prediction in zip(rows, result, strict=True):
        if "error" in prediction:
            assert row["error"] and not row["genres"]
            continue
        named = {g for g, p in prediction["probabilities"].items() if p >= 0.4}
        assert set(row["genres"].split("|")) - {""} == named
        assert float(row["Drama"]) == pytest.approx(prediction["probabilities"]["Drama"], abs=2e-6)


def test_images_without_an_option(model_folder: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Files, folders and patterns, with the rows that --image and --directory have. RUN stands for RUN/model."""
    shutil.copytree(model_folder, tmp_path / "run" / "model")
    monkeypatch.chdir(images)

    def rows(*words: str) -> list[dict[str, str]]:
        assert main(["predict", "-m", str(tmp_path / "run"), *words, "-o", str(tmp_path / "x.csv")]) == 0
        return list(csv.DictReader((tmp_path / "x.csv").open(encoding="utf-8")))

    two = rows("p00001.jpg", "p00000.jpg")
    assert [row["image"] for row in two] == ["p00001.jpg", "p00000.jpg"]
    assert rows("-i", "p00001.jpg", "p00000.jpg") == two == rows("p0000[1].jpg", "-i", "p00000.jpg")
    assert rows(".") == rows("-d", ".") and len(rows(".")) == 10
    assert [row["image"] for row in rows("sub", "p00000.jpg")] == ["sub/p00006.jpg", "p00000.jpg"]
    assert [row["image"] for row in rows("**/p0000[56].jpg")] == ["p00005.jpg", "sub/p00006.jpg"]


@pytest.mark.parametrize(
    ("code", "words", "line"),
    [
        ("option-missing", [], "`posters predict -m RUN poster.jpg`"),
        ("option-conflict", ["a.jpg", "-d", "."], "give exactly one of images (or --image), --directory, --shards"),
        (
            "option-conflict",
            ["-i", "a.jpg", "--shards", "S"],
            "give exactly one of images (or --image), --directory, --shards",
        ),
        ("option-missing", ["set"], "--shards needs --out FOLDER"),
        ("option-missing", ["memory://bucket/set"], "--shards needs --out FOLDER"),
        ("url-refused", ["s3://bucket/a.jpg", "a.jpg"], "name a file, or an http:// or https:// URL"),
        ("images-none", ["table.csv"], "table.csv is a table, not an image"),
        ("images-none", ["a.jpg", "set"], "set is a shard set, not a folder of images; pass it with --shards"),
        ("images-none", ["x*.jpg"], "no image has a name like x*.jpg"),
        ("path-missing", ["-d", "table.csv"], "table.csv is a table, not a folder of images"),
        ("option-unknown", ["a.jpg", "--verbose", "b.jpg"], "b.jpg: give all images in one place"),
    ],
)
def test_wrong_images(code: Code, words: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("set").mkdir()
    for name in ("a.jpg", "table.csv", "set/manifest.json"):
        Path(name).touch()
    with fails(code, line):
        main(["predict", "-m", "RUN", *words])


def test_one_shard_set_without_an_option(model_folder: Path, shard_set: Path, tmp_path: Path):
    words = ["predict", "-m", str(model_folder), "--split", "val", "-f", "csv"]
    assert main([*words, str(shard_set), "-o", str(tmp_path / "a")]) == 0
    assert main([*words, "--shards", str(shard_set), "-o", str(tmp_path / "b")]) == 0
    (a,), (b,) = ((tmp_path / name).glob("*.csv") for name in "ab")
    assert a.read_bytes() == b.read_bytes()


#: Names of files as bytes, and the ids by which they are listed.
ODD_NAMES = {
    b"caf\xe9.jpg": r"caf\xe9.jpg",
    rb"caf\xe9.jpg": r"caf\x5cxe9.jpg",
    b"a\nb.jpg": "a\nb.jpg",
    b"\x1b[2Jc.jpg": "\x1b[2Jc.jpg",
    b"=1+1.jpg": "=1+1.jpg",
    b'q"u,o.jpg': 'q"u,o.jpg',
    "später\u202e.jpg".encode(): "später\u202e.jpg",
}


@pytest.fixture(scope="module")
def odd_names(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A poster under names that are no text, or steer a terminal; and one that is no picture."""
    folder = tmp_path_factory.mktemp("odd")
    for name in ODD_NAMES:
        shutil.copy(images / "p00000.jpg", folder / os.fsdecode(name))
    (folder / os.fsdecode(b"bad\xff\x1b.jpg")).write_bytes(b"")
    return folder


@pytest.mark.parametrize("format", ["json", "csv", "jsonl", "parquet", "txt", "CSV"])
def test_a_name_of_any_bytes_is_a_row(model_folder: Path, odd_names: Path, tmp_path: Path, format: str):
    out = tmp_path / f"out.{format}"
    assert main(["predict", "-d", str(odd_names), "-m", str(model_folder), "-o", str(out)]) == 0
    expected = sorted([*ODD_NAMES.values(), "bad\\xff\x1b.jpg"])
    if format == "txt":
        text = out.read_text()
        shown = [line.split(": ")[0] for line in text.splitlines()[5:]]
        assert sorted(shown) == sorted(f"{odd_names}/{printable_line(name)}" for name in expected)
        return
    if format == "parquet":
        frame = pd.read_parquet(out)
        ids, errors = frame["image"].tolist(), frame["error"].notna().sum()
    elif format == "json":
        records = json.loads(out.read_text())["predictions"]
        ids, errors = [r["image"] for r in records], sum("error" in r for r in records)
    elif format == "jsonl":
        records = [json.loads(line) for line in out.read_text().split("\n")[:-1]]
        ids, errors = [r["image"] for r in records], sum(r["error"] is not None for r in records)
    else:
        with open(out, newline="") as stream:
            records = list(csv.DictReader(stream))
        ids, errors = [r["image"] for r in records], sum(r["error"] != "" for r in records)
        assert all(0 <= float(r["Drama"]) <= 1 for r in records if not r["error"])  # without --verbose, too
    assert sorted(Path(name).relative_to(odd_names).as_posix() for name in ids) == expected and errors == 1
    if format != "CSV" and format != "csv" and format != "parquet":
        assert not set(out.read_text()) & set("\x1b\u202e")


def test_names_of_any_bytes_reach_no_terminal(model_folder: Path, odd_names: Path):
    for options in ([], ["-v"], ["-f", "json"]):
        run = posters_command("predict", "-d", odd_names, "-m", model_folder, *options)
        assert run.returncode == 0 and not set(run.stdout + run.stderr) & set("\x1b\u202e\x9b\udce9")
    assert rf"cannot read {odd_names}/bad\xff\x1b.jpg" in run.stderr


def test_a_file_is_written_by_its_ending(model_folder: Path, images: Path, tmp_path: Path):
    image, folder = ["-i", images / "p00000.jpg", "-m", model_folder], ["-d", images, "-m", model_folder]
    (tmp_path / "old.v2").mkdir()
    shards = ["--shards", images, "-m", model_folder]
    refused: list[tuple[list[Any], Code, list[object]]] = [
        ([*image, "-o", tmp_path / "x.xlsx"], "option-value", [tmp_path / "x.xlsx", "ending .xlsx", ".parquet, .csv"]),
        ([*image, "-o", tmp_path / "x"], "option-value", [tmp_path / "x", "no ending", ".parquet, .csv"]),
        ([*image, "-o", tmp_path / "x.csv.gz"], "option-value", ["ending .gz", ".parquet, .csv"]),
        ([*image, "-o", tmp_path / "old.v2"], "option-value", [tmp_path / "old.v2", "folder"]),
        ([*image, "-o", tmp_path / "x.csv", "-f", "json"], "option-conflict", ["--format json", tmp_path / "x.csv"]),
        ([*image, "-o", tmp_path / "x.parquet", "-f", "csv"], "option-conflict", ["--format csv", "x.parquet"]),
        ([*image, "-f", "parquet"], "option-conflict", ["--format parquet", "screen", "--out"]),
        ([*folder, "-o", tmp_path / "x.xlsx"], "option-value", ["ending .xlsx", "or a folder"]),
        ([*folder, "-o", tmp_path / "x.TXT", "-f", "jsonl"], "option-conflict", ["--format jsonl", "x.TXT"]),
        ([*shards, "-o", tmp_path / "x.parquet"], "option-value", ["--shards", "--out", tmp_path / "x.parquet"]),
    ]
    for arguments, code, facts in refused:
        with fails(code, *facts):
            main(["predict", *map(str, arguments)])
    assert [path.name for path in tmp_path.iterdir()] == ["old.v2"]
    # folders with a dot in their names: one that is there, one whose dot is in a number
    for out in ("old.v2", "pred-0.5"):
        assert main(["predict", *map(str, [*folder, "-o", tmp_path / out])]) == 0
        assert [path.name for path in (tmp_path / out).glob("*.parquet")] == ["images-00000.parquet"]
    assert main(["predict", *map(str, [*image, "-o", tmp_path / "x.dat", "-f", "csv"])]) == 0
    assert (tmp_path / "x.dat").read_text().startswith("image,genres,error,")


def test_genres_named_like_columns_are_columns_of_their_own(images: Path, tmp_path: Path):
    genres = ("Drama", "error", "genre:id", "genres", "id", "image")
    model = make_model_folder(tmp_path / "m", LabelSet(genres), HeadSpec("linear", (), 0.0))
    columns = ["Drama", "genre:error", "genre:id", "genre:genres", "genre:genre:id", "genre:image"]
    for name in ("x.csv", "x.parquet"):
        arguments = ["predict", "-i", images / "p00000.jpg", "-m", model, "-o", tmp_path / name, "-t", "0"]
        assert main([str(a) for a in arguments]) == 0
    assert (tmp_path / "x.csv").read_text().splitlines()[0] == ",".join(["image", "genres", "error", *columns])
    assert pq.read_schema(tmp_path / "x.parquet").names == ["image", "genres", *columns, "error"]


def test_nothing_readable_is_a_failure(model_folder: Path, images: Path):
    run = posters_command("predict", "-i", images / "bad_zero_bytes.jpg", "-m", model_folder)
    assert run.returncode == 1 and "Traceback" not in run.stderr


def test_bad_arguments_are_one_line(model_folder: Path, images: Path, tmp_path: Path):
    for arguments, word in (
        (["-d", tmp_path, "-m", model_folder], "no .jpg"),
        (["-i", images / "p00000.jpg", "-m", tmp_path / "no-model"], "no-model"),
        (["-i", "x.jpg", "-m", model_folder, "--treshold", "0.5"], "--threshold"),
    ):
        with pytest.raises(UserError, match=re.escape(word)) as found:
            main(["predict", *map(str, arguments)])
        assert "\n" not in str(found.value)
    image = ["-i", images / "p00000.jpg"]
    ours: list[tuple[list[Any], Code, list[object]]] = [
        (["-d", tmp_path / "none", "-m", model_folder], "path-missing", [tmp_path / "none"]),
        ([*image, "-m", model_folder, "-t", "7"], "option-value", ["--threshold", "7"]),
        (["-m", model_folder], "option-missing", ["--image", "--directory", "--shards"]),
        ([*image, "-d", images, "-m", model_folder], "option-conflict", ["--image", "--directory", "--shards"]),
        ([*image, "-m", model_folder, "--embeddings"], "option-conflict", ["--embeddings", "--shards", "--out"]),
    ]
    for arguments, code, facts in ours:
        with fails(code, *facts):
            main(["predict", *map(str, arguments)])
    run = posters_command("predict", "-i", images / "p00000.jpg", "-m", tmp_path / "no-model")
    (line,) = error_lines(run)
    assert run.returncode == 2 and "no-model" in line


@pytest.fixture(scope="module")
def calibrated(labels: LabelSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of ``model_folder``, with calibration and a threshold for each genre. Read-only."""
    folder = tmp_path_factory.mktemp("calibrated") / "model"
    decisions = some_decisions(len(labels))
    return make_model_folder(folder, labels, HeadSpec("linear", (), 0.0), decisions=decisions)


def test_calibration_and_thresholds_per_genre_decide(
    model_folder: Path, calibrated: Path, images: Path, shard_set: Path, tmp_path: Path
):
    raw, folder = load_model_folder(model_folder), load_model_folder(calibrated)
    assert raw.fingerprint == folder.fingerprint
    paths = list_images(images)
    accelerator = make_accelerator()
    plain = predict_files(raw, paths, accelerator, workers=1)
    ours = predict_files(folder, paths, accelerator, workers=1)
    checked = 0
    assert plain.errors == ours.errors
    for before, after, lines, names in zip(
        plain.probabilities, ours.probabilities, ours.ranked(), ours.names(), strict=True
    ):
        if not lines:
            assert np.isnan(before).all() and np.isnan(after).all() and not names
            continue
        expected = folder.decisions.probabilities(np.log(before / (1 - before)))
        np.testing.assert_allclose(after, expected, rtol=1e-6)
        assert np.abs(expected - before).max() > 0.01
        named = {folder.labels.genres[g] for g in np.flatnonzero(expected >= folder.decisions.thresholds)}
        assert {line.genre for line in lines if line.named} == set(names) == named
        checked += 1
    assert checked == 7
    # -t replaces the thresholds, not the calibration
    higher = predict_files(folder, paths, accelerator, workers=1, naming=NamingOptions(threshold=0.6))
    assert (higher.thresholds == 0.6).all()
    np.testing.assert_array_equal(higher.probabilities, ours.probabilities)
    assert higher.names() == [
        [
            line.genre
            for line in sorted(lines, key=lambda line: folder.labels.index[line.genre])
            if line.probability >= 0.6
        ]
        for lines in ours.ranked()
    ]

    # and shard sets are predicted with the same probabilities and names
    run = ["predict", "--shards", str(shard_set), "--split", "test", "--workers", "1", "--model"]
    assert main([*run, str(model_folder), "--out", str(tmp_path / "raw")]) == 0
    assert main([*run, str(calibrated), "--out", str(tmp_path / "ours")]) == 0
    (name,) = (path.name for path in (tmp_path / "ours").glob("*.parquet"))
    rows = [pq.read_table(tmp_path / chunk / name).to_pylist() for chunk in ("raw", "ours")]
    for before_row, after_row in zip(*rows, strict=True):
        genres = folder.labels.genres
        share = np.array([before_row[genre] for genre in genres], np.float64)
        expected = folder.decisions.probabilities(np.log(share / (1 - share)))
        np.testing.assert_allclose([after_row[genre] for genre in genres], expected, rtol=1e-5)
        near = np.abs(expected - folder.thresholds) < 1e-5
        columns = {g for g, p in enumerate(expected) if p >= folder.thresholds[g]}
        found = {folder.labels.index[genre] for genre in after_row["genres"]}
        assert columns ^ found <= set(np.flatnonzero(near).tolist())
    # a finished file of another calibration is not taken for one's own
    with fails("predictions-other", "calibration", "thresholds", "--out"):
        main([*run, str(model_folder), "--out", str(tmp_path / "ours")])


def test_predictions_of_another_model_are_not_mixed(
    model_folder: Path, shard_set: Path, labels: LabelSet, tmp_path: Path
):
    arguments = ["predict", "--shards", shard_set, "--out", tmp_path / "out", "--split", "test", "--model"]
    assert posters_command(*arguments, model_folder).returncode == 0
    run = posters_command(*arguments, model_folder, "-t", "0.9")
    assert run.returncode == 2 and "other thresholds" in error_lines(run)[0]
    other = make_model_folder(tmp_path / "m", LabelSet((*labels.genres[:-1], "Zither")), HeadSpec("linear", (), 0.0))
    run = posters_command(*arguments, other)
    assert run.returncode == 2 and "Zither" in error_lines(run)[0]
