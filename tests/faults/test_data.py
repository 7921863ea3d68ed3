"""A shard set that is damaged or not the one it says: refused before any work, with the file's name, at no cost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_tools import assert_same_run, command, contents, train_options
from shared_tools import build_small_set

from toolkit.cli.main import main

pytest_plugins = ("fault_fixtures",)
pytestmark = pytest.mark.usefixtures("single_thread")

TAR = "train-00001.tar"


@pytest.fixture(scope="module")
def other_set(drawn_posters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same posters, built with another seed: files of the same names. Read-only."""
    return build_small_set(drawn_posters, tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="module")
def runs(drawn_set: Path, single_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one epoch and of two. Read-only."""
    folder = tmp_path_factory.mktemp("runs")
    for name, epochs in (("one", 1), ("two", 2)):
        assert main(train_options(drawn_set, folder / name, f"--train.epochs={epochs}")) == 0
    return folder


def _truncate(folder: Path, other: Path) -> None:
    (folder / TAR).write_bytes((folder / TAR).read_bytes()[:-3000])


def _delete(folder: Path, other: Path) -> None:
    (folder / TAR).unlink()


def _delete_index(folder: Path, other: Path) -> None:
    for path in folder.glob("*index*"):
        path.unlink()


def _stale_index(folder: Path, other: Path) -> None:
    found = list(other.glob("*index*"))
    assert found
    for path in found:
        shutil.copy(path, folder)


def _other_manifest(folder: Path, other: Path) -> None:
    shutil.copy(other / "manifest.json", folder)


def _other_tar(folder: Path, other: Path) -> None:
    shutil.copy(other / TAR, folder)


def _cut_table(folder: Path, other: Path) -> None:
    for path in folder.glob("*.samples.npy"):
        path.write_bytes(path.read_bytes()[:-1])


#: What is done to a set, and a word that must be said of it.
DAMAGES: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "truncated tar": (_truncate, f"{TAR} is truncated"),
    "deleted shard": (_delete, f"{TAR} is missing"),
    "deleted index": (_delete_index, "no index beside"),
    "manifest of another build": (_other_manifest, ""),
    "tar of another build": (_other_tar, TAR),
}


@pytest.mark.parametrize(
    ("damage", "word"), [*DAMAGES.values(), (_cut_table, "samples.npy is damaged")], ids=[*DAMAGES, "truncated table"]
)
def test_a_resumed_training(
    damage: Callable[[Path, Path], None],
    word: str,
    drawn_set: Path,
    other_set: Path,
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    """Nothing of the run changes, and with the files as they were it comes to the end of any other."""
    shards, run = (shutil.copytree(drawn_set, tmp_path / "set"), shutil.copytree(runs / "one", tmp_path / "run"))
    before = contents(run)
    damage(shards, other_set)
    words = train_options(shards, run, "--train.epochs=2", "--resume")
    status, line = command(words, capsys)
    assert status == 2 and word in line and str(shards) in line
    assert contents(run) == before
    shutil.copytree(drawn_set, shards, dirs_exist_ok=True)
    assert command(words, capsys) == (0, "")
    assert_same_run(run, runs / "two")


@pytest.mark.parametrize(
    ("damage", "word"), [*DAMAGES.values(), (_stale_index, "belongs to another build")], ids=[*DAMAGES, "stale index"]
)
@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_an_evaluation_and_a_prediction(
    verb: str,
    damage: Callable[[Path, Path], None],
    word: str,
    drawn_set: Path,
    fault_model: Path,
    other_set: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    shards = shutil.copytree(drawn_set, tmp_path / "set")
    damage(shards, other_set)
    model = shutil.copytree(fault_model, tmp_path / "model")
    before = contents(model)
    words = [verb, "--model", model, "--shards", shards, "--split", "train"]
    words += ["--out", tmp_path / "out"] if verb == "predict" else []
    status, line = command(words, capsys)
    assert status == 2 and word in line and str(shards) in line
    assert contents(model) == before


def test_another_set_than_the_runs(other_set: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = shutil.copytree(runs / "one", tmp_path / "run")
    before = contents(run)
    status, line = command(train_options(other_set, run, "--train.epochs=2", "--resume"), capsys)
    assert status == 2 and "was trained on shard set" in line and "give the same shards" in line
    assert contents(run) == before


def test_flipped_bytes(drawn_set: Path, fault_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Sizes do not show them: what cannot be decoded is told while it is read, verify finds every one beforehand."""
    shards = shutil.copytree(drawn_set, tmp_path / "set")
    content = bytearray((shards / TAR).read_bytes())
    start = content.index(b"\xff\xd8\xff")  # the first picture loses its header
    content[start : start + 3] = bytes(3)
    (shards / TAR).write_bytes(content)
    status, line = command(["shards", "verify", shards], capsys)
    assert status == 1
    status, line = command(train_options(shards, tmp_path / "run", "--data.on_error=stop"), capsys)
    assert status == 2 and f"{shards / TAR} member" in line and "cannot be decoded" in line
    options = ["--data.on_error=replace", "--data.max_errors=0.1"]
    assert command(train_options(shards, tmp_path / "other", *options), capsys) == (0, "")
    status, line = command(["evaluate", "--model", fault_model, "--shards", shards, "--split", "train"], capsys)
    assert status == 2 and f"{shards / TAR} member" in line and "run `posters shards verify`" in line
