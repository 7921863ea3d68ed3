"""Every command refuses a set whose tables or indexes are not its manifest's, in one line, and writes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from toolkit_helpers import TINY

from shards.dataset.index import read_index, write_index
from shards.dataset.manifest import Manifest
from shards.errors import UserError
from shards.storage.files import fingerprint, sha256_file
from toolkit.cli.main import main
from toolkit.data.sources.shard_reader import ShardReader


@pytest.fixture
def copy(shard_set: Path, tmp_path: Path) -> Path:
    return shutil.copytree(shard_set, tmp_path / "set")


@pytest.fixture
def model(model_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model_folder, tmp_path / "model")


def roll(folder: Path, split: str) -> None:
    """Give every sample the genres of the one before: no size, layout or count changes."""
    records = np.load(folder / Manifest.read(folder).tables[split].name, mmap_mode="r+")
    records["genres"] = np.roll(records["genres"], 1, axis=0)
    records.flush()


def reorder(folder: Path, split: str) -> None:
    """Give every sample of a split's first shard the id of another."""
    shard = Manifest.read(folder).of_split(split)[0]
    table, facts = read_index(folder / shard.name)
    ids = table["id"].take(list(range(table.num_rows))[::-1])
    write_index(folder / shard.name, table.set_column(1, table.schema.field(1), ids), facts)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def words(command: str, model: Path, shards: Path, out: Path) -> list[str]:
    given = {
        "train": ["--out", str(out), "--train.epochs=1", *TINY],
        "evaluate": ["--model", str(model), "--workers", "1"],
        "tune": ["--model", str(model), "--workers", "1"],
        "predict": ["--model", str(model), "--out", str(out), "--format", "csv", "--workers", "1"],
    }
    return [command, "--shards", str(shards), *given[command]]


@pytest.mark.parametrize(
    ("command", "split", "change", "said"),
    [
        ("train", "train", roll, "samples.npy is damaged (its sha256 differs"),
        ("train", "val", roll, "samples.npy is damaged (its sha256 differs"),
        ("evaluate", "test", roll, "samples.npy is damaged (its sha256 differs"),
        ("tune", "val", roll, "samples.npy is damaged (its sha256 differs"),
        ("evaluate", "test", reorder, "index.parquet of test-00000.tar belongs to another build"),
        ("tune", "val", reorder, "index.parquet of val-00000.tar belongs to another build"),
        ("predict", "train", reorder, "index.parquet of train-00000.tar belongs to another build"),
    ],
)
def test_what_is_not_the_manifests_is_refused(
    copy: Path, model: Path, tmp_path: Path, command: str, split: str, change, said: str
):
    assert len(ShardReader.of_split(copy, split))  # this node has seen it sound
    change(copy, split)
    before = files(tmp_path)
    with pytest.raises(UserError) as caught:
        main(words(command, model, copy, tmp_path / "out"))
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert files(tmp_path) - before <= {"out", "out/.lock"}


@pytest.mark.parametrize("name", ["../victim.tar", "{out}/../victim.tar", "file://{out}/../victim.tar"])
def test_predictions_are_written_to_their_folder_alone(copy: Path, model: Path, tmp_path: Path, name: str):
    """A stranger's manifest whose shard is named like a file elsewhere, its fingerprint fitting."""
    out = tmp_path / "made" / "out"
    (tmp_path / "made").mkdir()
    for place in (tmp_path / "victim.csv", tmp_path / "made" / "victim.csv"):
        place.write_text("mine")
    raw = json.loads((copy / "manifest.json").read_text())
    shutil.copy(copy / "train-00000.tar", tmp_path / "victim.tar")
    raw["shards"][0]["name"] = name.format(out=out)
    del raw["tables"]
    raw["fingerprint"] = fingerprint(
        [raw["labels"]["genres"], [[s["name"], s["split"], s["sha256"]] for s in raw["shards"]]]
    )[:16]
    (copy / "manifest.json").write_text(json.dumps(raw))
    before = files(tmp_path)
    for command in ("predict", "evaluate", "train", "tune"):
        with pytest.raises(UserError, match=r"is not a plain name of a \.tar file"):
            main(words(command, model, copy, out))
    assert files(tmp_path) == before
    assert {p.read_text() for p in (tmp_path / "victim.csv", tmp_path / "made" / "victim.csv")} == {"mine"}


def test_a_run_resumes_on_a_set_that_got_its_digests(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    raw = json.loads((copy / "manifest.json").read_text())
    for shard in raw["shards"]:
        del shard["index_bytes"], shard["index_sha256"]
    (copy / "manifest.json").write_text(json.dumps(raw))
    command = words("train", tmp_path, copy, tmp_path / "run")
    assert main(command) == 0
    assert main(["shards", "index", str(copy), "--workers", "1"]) == 0
    assert all(shard.index_sha256 for shard in Manifest.read(copy).shards)
    assert main([*command, "--resume", "--train.epochs=2"]) == 0
    assert len((tmp_path / "run" / "epochs.csv").read_text().splitlines()) == 3


def test_predictions_under_other_ids_are_refused(copy: Path, model: Path, tmp_path: Path):
    predict = words("predict", model, copy, tmp_path / "out")
    assert main(predict) == 0
    reorder(copy, "test")
    raw = json.loads((copy / "manifest.json").read_text())
    shard = next(shard for shard in raw["shards"] if shard["split"] == "test")
    index = copy / shard["name"].replace(".tar", ".index.parquet")
    shard.update(index_bytes=index.stat().st_size, index_sha256=sha256_file(index))
    (copy / "manifest.json").write_text(json.dumps(raw))
    before = files(tmp_path)
    with pytest.raises(UserError, match=r"test-00000\.csv contains predictions of another index of the same images"):
        main(predict)
    assert files(tmp_path) == before


def test_a_shard_without_samples_has_no_predictions(copy: Path, model: Path, tmp_path: Path):
    raw = json.loads((copy / "manifest.json").read_text())
    raw["shards"] = [dict(shard) for shard in raw["shards"]]
    raw["shards"][0].update(samples=0, genre_counts=[0] * len(raw["labels"]["genres"]))
    (copy / "manifest.json").write_text(json.dumps(raw))
    assert main(words("predict", model, copy, tmp_path / "out")) == 0
    assert {path.name for path in (tmp_path / "out").glob("*.csv")} == {
        shard["name"].replace(".tar", ".csv") for shard in raw["shards"][1:]
    }
