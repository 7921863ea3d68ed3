"""Batch prediction for real: every sample one row at any number of processes, also killed in between; flat memory."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from failing import fails
from toolkit_helpers import ROOT, error_lines, launch, make_model_folder, posters_command, run_python, some_decisions

from shards.build.run import BuildOptions, build_shards
from shards.dataset.index import index_path, read_index
from shards.dataset.labels import LabelSet
from shards.dataset.manifest import Manifest
from shards.errors import Code, UserError
from shards.storage.files import PARTIAL
from toolkit.cli.main import main
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.models.heads import HeadSpec

PROBE = ROOT / "tests" / "toolkit" / "probe_predict.py"


@pytest.fixture(scope="module")
def many_shards(posters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn posters in a dozen small shards; one image is spoilt after packing."""
    out = tmp_path_factory.mktemp("many")
    images, csv = posters / "images", posters / "metadata.csv"
    build_shards(BuildOptions(metadata=csv, images=images, out=out, samples_per_shard=8, workers=1))
    tar = out / "train-00001.tar"
    row = read_index(tar)[0].to_pylist()[3]
    content = bytearray(tar.read_bytes())
    content[row["image_offset"] : row["image_offset"] + row["image_size"]] = bytes(row["image_size"])
    tar.write_bytes(content)
    return out


@pytest.fixture(scope="module")
def model(labels: LabelSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calibrated, with a threshold for each genre. Read-only."""
    folder = tmp_path_factory.mktemp("calibrated") / "model"
    return make_model_folder(
        folder, labels, HeadSpec("mlp", (8,), 0.0), decisions=some_decisions(len(labels)), fit="stretch"
    )


@pytest.fixture(scope="module")
def by_one(many_shards: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of it."""
    out = tmp_path_factory.mktemp("one") / "out"
    run = posters_command("predict", "--shards", many_shards, "-m", model, "--out", out, "--batch-size", 5)
    assert run.returncode == 0, run.stderr
    assert "1 images could not be decoded" in run.stderr
    return out


def rows_of(folder: Path) -> pd.DataFrame:
    """All rows, sorted by id, each once."""
    frame = pd.concat([pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))])
    assert frame["id"].is_unique
    frame["genres"] = frame["genres"].map(list)
    return frame.sort_values("id", ignore_index=True)


def states(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}


def test_every_sample_is_a_row(by_one: Path, many_shards: Path, labels: LabelSet) -> None:
    manifest = Manifest.read(many_shards)
    assert len(manifest.shards) >= 12
    for shard in manifest.shards:
        table = pq.read_table(by_one / shard.name.replace(".tar", ".parquet"))
        assert table["id"].to_pylist() == read_index(many_shards / shard.name)[0]["id"].to_pylist()
    rows = rows_of(by_one)
    bad = rows[rows["error"].notna()]
    assert len(bad) == 1 and bad[list(labels.genres)].isna().all(axis=None) and bad["genres"].iloc[0] == []
    assert rows[rows["error"].isna()][list(labels.genres)].notna().all(axis=None)


def test_killed_and_gone_on_at_other_numbers_of_processes(
    by_one: Path, many_shards: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ["--shards", many_shards, "--model", model, "--out", out, "--batch-size", 5]
    run = launch(2, PROBE, "die", 3, *options)
    assert run.returncode != 0
    before = states(out)
    assert 3 <= len(before) < 6
    assert list(out.glob(f"*{PARTIAL}"))  # killed in the middle of a file
    run = launch(3, PROBE, "die", 6, *options)
    assert run.returncode != 0 and 6 <= len(states(out)) < len(states(by_one))
    run = launch(3, ROOT / "launch" / "predict.py", *options)
    assert run.returncode == 0, run.stderr
    after = states(out)
    assert {name: after[name] for name in before} == before  # finished files were left alone
    assert not list(out.glob(f"*{PARTIAL}"))
    pd.testing.assert_frame_equal(rows_of(out), rows_of(by_one), check_exact=True)
    for name in after:
        assert pq.read_schema(out / name).equals(pq.read_schema(by_one / name), check_metadata=True)
    # nothing is left to do
    run = posters_command("predict", *options)
    assert run.returncode == 0 and "0 images now" in run.stdout and states(out) == after


def test_the_fast_do_not_wait_for_the_slow(by_one: Path, many_shards: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = launch(2, PROBE, "slow", 0.5, "--batch-size", 2, "--shards", many_shards, "--model", model, "--out", out)
    assert run.returncode == 0, run.stderr
    files = [line.split()[1] for line in run.stdout.splitlines() if line.startswith("rank ")]
    assert len(files) == len(states(by_one))
    assert files.count("0") >= 2 * files.count("1")  # a fixed share would be half
    pd.testing.assert_frame_equal(rows_of(out), rows_of(by_one), check_exact=False, atol=1e-5)


def predict(model: Path, *options: object) -> int:
    """``posters predict`` in this process."""
    return main(["predict", "-m", str(model), *map(str, options)])


def test_a_folder_is_predicted_as_its_shards_are(
    by_one: Path, many_shards: Path, posters: Path, model: Path, tmp_path: Path, labels: LabelSet
) -> None:
    """No shards first: the same bytes give the same numbers, to the bit, and bad files rows with their errors."""
    folder, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(posters / "images", folder / "deep")
    run = launch(2, ROOT / "launch" / "predict.py", "--shards", folder, "--model", model, "--out", out)
    assert run.returncode == 0, run.stderr
    ours = rows_of(out)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    assert ours["id"].tolist() == files
    reasons = dict(zip(ours["id"], ours["error"], strict=True))
    assert "truncated" in reasons["deep/bad_truncated.jpg"]
    assert "not an image" in reasons["deep/bad_not_an_image.jpg"]
    assert {Path(name).stem for name, reason in reasons.items() if isinstance(reason, str)} == {
        "bad_truncated", "bad_not_an_image", "bad_zero_bytes"
    }  # fmt: skip
    theirs = rows_of(by_one).set_index("id")
    ours.index = pd.Index([Path(name).stem for name in ours["id"]])
    # packing encodes some posters anew; those whose bytes were kept are compared
    manifest = Manifest.read(many_shards)
    reader = ShardReader(many_shards, manifest.shards, manifest.labels)
    kept = {reader.sample_id(i): reader.image_bytes(i) for i in range(len(reader))}
    both = [path.stem for path in (folder / "deep").glob("*.jpg") if kept.get(path.stem) == path.read_bytes()]
    assert len(both) > 50
    columns = ["genres", *labels.genres]
    # other batches, other roundings of the last bit
    pd.testing.assert_frame_equal(ours.loc[both, columns], theirs.loc[both, columns], atol=1e-6, check_names=False)
    # another file in the folder is not passed over in silence
    (folder / "another.jpg").write_bytes((posters / "images" / "p00000.jpg").read_bytes())
    with fails("predictions-other", out, "images", "--out"):
        predict(model, "-d", folder, "--out", out)


def test_csv_and_jsonl_hold_the_same(
    by_one: Path,
    many_shards: Path,
    model: Path,
    tmp_path: Path,
    labels: LabelSet,
    capsys: pytest.CaptureFixture[str],
    one_thread: None,
) -> None:
    options = ["--shards", many_shards, "--batch-size", 5, "--format"]
    expected = rows_of(by_one)
    genres = list(labels.genres)
    for format in ("csv", "jsonl"):
        out = tmp_path / format
        assert predict(model, *options, format, "--out", out) == 0
        chunks = sorted(out.glob(f"*.{format}"))
        assert [path.stem for path in chunks] == [path.stem for path in sorted(by_one.glob("*.parquet"))]
        if format == "csv":
            found = pd.concat([pd.read_csv(path, keep_default_na=False, na_values=[""]) for path in chunks])
            named = [value.split("|") if isinstance(value, str) else [] for value in found["genres"]]
        else:
            lines = [json.loads(line) for path in chunks for line in path.read_text().splitlines()]
            empty = dict.fromkeys(genres, np.nan)
            found = pd.DataFrame([{"id": r["id"], "error": r["error"], **(r["probabilities"] or empty)} for r in lines])
            named = [record["genres"] for record in lines]
        found["genres"] = pd.Series(named, index=found.index, dtype=object)
        found = found.sort_values("id", ignore_index=True)
        assert found["id"].tolist() == expected["id"].tolist()
        assert found["genres"].tolist() == expected["genres"].tolist()
        np.testing.assert_allclose(found[genres], expected[genres], rtol=1e-6)
        assert found["error"].notna().tolist() == expected["error"].notna().tolist()
        # a file without its facts was not finished
        chunks[0].with_name(f"{chunks[0].name}.facts.json").unlink()
        capsys.readouterr()
        assert predict(model, *options, format, "--out", out) == 0
        assert "(1 files)" in capsys.readouterr().out


def test_what_is_refused(by_one: Path, many_shards: Path, model: Path, posters: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    shutil.copy(next(by_one.glob("*.parquet")), here)
    shards = ["--shards", many_shards]
    of_folder = ["-d", posters / "images"]
    refused: list[tuple[list[Any], Code, list[object]]] = [
        ([*shards, "--out", here, "-t", "0.9"], "predictions-other", [here, "thresholds", "--out"]),
        ([*shards, "--out", here, "--tta", "flip"], "predictions-other", [here, "--tta", "--out"]),
        (shards, "option-missing", ["--shards", "--out FOLDER"]),
        ([*shards, "--out", tmp_path / "x", "--format", "csv", "--embeddings"], "option-conflict", ["not csv"]),
        ([*shards, "--out", tmp_path / "x", "--format", "json"], "option-conflict", ["parquet, csv, jsonl"]),
        ([*of_folder, "--out", tmp_path / "x", "--split", "test"], "option-conflict", ["--split", "--ignore-labels"]),
        ([*of_folder, "--format", "jsonl"], "option-conflict", ["--format jsonl", "--out"]),
    ]
    for options, code, facts in refused:
        with fails(code, *facts):
            predict(model, *options)
    for options, word in (
        ([*shards, "--out", tmp_path / "x", "--batch-size", -1], "must be 0"),
        (["--shards", tmp_path / "none", "--out", tmp_path / "x"], "no shard folder at"),
        (["--shards", here, "--out", tmp_path / "x"], "has no manifest.json"),
    ):
        with pytest.raises(UserError, match=word):
            predict(model, *options)
    assert not (tmp_path / "x").exists()
    (here / "train-00000.parquet").write_bytes(b"PAR1 and no more")
    with fails("predictions-damaged", here / "train-00000.parquet", "--out"):
        predict(model, *shards, "--out", here)


def test_a_folder_holds_one_prediction(
    many_shards: Path, model: Path, posters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, images = tmp_path / "out", tmp_path / "images"
    images.mkdir()
    for number in range(3):
        shutil.copy(posters / "images" / f"p{number:05d}.jpg", images)
    test = ["--shards", many_shards, "--split", "test", "--out", out]
    assert predict(model, *test) == 0
    before = states(out)
    for options, fact in (
        (["-d", images, "--out", out], ": test-00000.parquet"),
        (["--shards", images, "--out", out], ": test-00000.parquet"),
        ([*test, "--format", "csv"], ": test-00000.parquet"),
        (["--shards", many_shards, "--split", "val", "--embeddings", "--out", out], "--embeddings"),
        (["--shards", many_shards, "--split", "val", "-t", "0.9", "--out", out], "thresholds"),
    ):
        with fails("predictions-other", out, fact, "another --out"):
            predict(model, *options)
        assert states(out) == before
    # another split of the same set belongs to the same prediction
    capsys.readouterr()
    assert predict(model, "--shards", many_shards, "--split", "val", "--out", out) == 0
    assert predict(model, *test) == 0
    assert "0 images now (0 files), 2 files were finished before" in capsys.readouterr().out
    # a set built again with fewer shards leaves files behind
    fewer = tmp_path / "fewer"
    shutil.copytree(many_shards, fewer)
    manifest = Manifest.read(many_shards)
    kept = [shard for shard in manifest.shards if shard.split != "val"]
    dataclasses.replace(manifest, shards=kept, duplicates={}).write(fewer)
    with fails("predictions-other", out, ": val-00000.parquet", "--format"):
        predict(model, "--shards", fewer, "--split", "test", "--out", out)


@pytest.mark.parametrize("format", ["parquet", "csv", "jsonl"])
def test_a_name_of_any_bytes_is_a_row(model: Path, posters: Path, tmp_path: Path, format: str) -> None:
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    names = {b"caf\xe9.jpg": r"caf\xe9.jpg", rb"caf\xe9.jpg": r"caf\x5cxe9.jpg", b"=a\nb.jpg": "=a\nb.jpg"}
    for name in names:
        shutil.copy(posters / "images" / "p00000.jpg", folder / os.fsdecode(name))
    (folder / os.fsdecode(b"bad\xff.jpg")).write_bytes(b"")
    arguments = ["-d", folder, "--out", out, "--batch-size", 2, "-f", format]
    assert predict(model, *arguments) == 0 and predict(model, *arguments) == 0
    file = out / f"images-00000.{format}"
    if format == "parquet":
        rows = pd.read_parquet(file)
    elif format == "jsonl":
        rows = pd.DataFrame([json.loads(line) for line in file.read_text().split("\n")[:-1]])
    else:
        rows = pd.read_csv(file, dtype={"id": str})
    assert sorted(rows["id"]) == sorted([*names.values(), r"bad\xff.jpg"])
    assert rows["id"][rows["error"].notna()].tolist() == [r"bad\xff.jpg"]


@pytest.mark.parametrize(
    ("gone", "words"),
    [("val-00000.tar", r"val-00000\.tar is missing"), ("val-00000.index.parquet", r"no index beside .*val-00000\.tar")],
)
def test_what_a_shard_lacks_is_told_before_work_starts(
    many_shards: Path, model: Path, tmp_path: Path, gone: str, words: str
) -> None:
    folder = shutil.copytree(many_shards, tmp_path / "set")
    (folder / gone).unlink()
    with pytest.raises(UserError, match=words):
        predict(model, "--shards", folder, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_loses_nothing(
    by_one: Path, many_shards: Path, model: Path, small_disk: Path, tmp_path: Path
) -> None:
    options = ["predict", "--shards", many_shards, "-m", model, "--batch-size", 5, "--out", small_disk / "out"]
    (small_disk / "ballast").write_bytes(bytes(36 * 1024))
    run = posters_command(*options)
    (line,) = error_lines(run)
    assert run.returncode == 2 and "No space left on device" in line and ".parquet" in line
    finished = states(small_disk / "out")
    assert 1 <= len(finished) < len(states(by_one))
    assert not list((small_disk / "out").glob(f"*{PARTIAL}"))
    for name in finished:  # what is there is whole
        assert pq.read_table(small_disk / "out" / name).equals(pq.read_table(by_one / name))
    # with room again it goes on
    shutil.move(small_disk / "out", tmp_path / "out")
    run = posters_command(*options[:-1], tmp_path / "out")
    assert run.returncode == 0, run.stderr
    pd.testing.assert_frame_equal(rows_of(tmp_path / "out"), rows_of(by_one), check_exact=True)


def repeated(shards: Path, times: int, out: Path) -> Path:
    """A set that lists each shard so many times, under other names."""
    manifest = Manifest.read(shards)
    out.mkdir()
    copies = []
    for shard in manifest.shards:
        for number in range(times):
            name = f"{shard.name.split('-')[0]}-{number:03d}{shard.name.split('-')[1]}"
            os.link(shards / shard.name, out / name)
            os.link(index_path(shards / shard.name), index_path(out / name))
            copies.append(dataclasses.replace(shard, name=name))
    dataclasses.replace(manifest, shards=copies).write(out)
    return out


@pytest.mark.long
def test_memory_does_not_grow_with_the_set(shard_set: Path, model: Path, tmp_path: Path) -> None:
    peaks = []
    for times in (10, 150):
        folder = repeated(shard_set, times, tmp_path / f"set{times}")
        run = run_python(
            PROBE, "memory", 0, "--shards", folder, "-m", model, "--out", tmp_path / f"out{times}",
            "--workers", 1,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        peaks.append(int(run.stdout.split("peak")[1]) / 1024)
    assert sum(s.samples for s in Manifest.read(tmp_path / "set150").shards) > 10_000
    print(f"{peaks[0]:.0f} MiB for 900 samples, {peaks[1]:.0f} MiB for 13,000")
    assert peaks[1] - peaks[0] < 25  # MiB; the 12,600 further rows alone would be more than that if pixels were kept
