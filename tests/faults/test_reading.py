"""Files that cannot be read for a moment or at all: no image of theirs is taken for a damaged one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fault_tools import assert_same_run, ended, train_options

pytest_plugins = ("fault_fixtures",)

TWO_EPOCHS = ["--train.epochs=2", "--train.checkpoint_steps=2"]
TAR = "train-00001.tar"


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("fault", ["EIO 0 3 2", "ESTALE 0 0 3", "short 0 0 always"])
def test_what_fails_in_passing_is_read_again(fault: str, drawn_set: Path, unharmed: dict[int, Path], tmp_path: Path):
    """Nothing is replaced: the run comes to the same end, to the bit."""
    options = train_options(drawn_set, tmp_path / "run", *TWO_EPOCHS)
    run = ended(options, tmp_path / "said", 1, f"read {fault} {TAR}")
    assert run.statuses == [0] and run.errors == [] and "replaced" not in run.said[0]
    assert ("retrying for up to" in run.said[0]) == ("short" not in fault)
    assert_same_run(tmp_path / "run", unharmed[1])


@pytest.mark.parametrize(("victim", "accumulation"), [(0, 1), (1, 2)])
def test_a_shard_that_one_of_two_ranks_cannot_read(
    victim: int, accumulation: int, drawn_set: Path, unharmed: dict[int, Path], tmp_path: Path
):
    """Both stop before the update that lacks it, and save: resumed, it is as if nothing had happened."""
    more = ["--train.epochs=2", f"--train.accumulation={accumulation}"]
    options = train_options(drawn_set, tmp_path / "run", *more)
    stopped = ended(options, tmp_path / "first", 2, f"read EIO {victim} 4 always {TAR}")
    assert stopped.statuses == [69, 69], stopped.said
    assert len(stopped.errors) == 2
    for line in stopped.errors:
        assert f"rank {victim}: shard {drawn_set / TAR} cannot be read on " in line
        assert "[Errno 5] Input/output error (tried for 1 s)" in line
        assert line.endswith("; checkpoint saved: the same command with --resume continues")
    assert len(checkpoints(tmp_path / "run")) == 1
    resumed = ended([*options, "--resume"], tmp_path / "second", 2)
    assert resumed.statuses == [0, 0], resumed.said
    whole = unharmed[2]
    if accumulation > 1:
        whole = tmp_path / "whole"
        assert ended(train_options(drawn_set, whole, *more), tmp_path / "third", 2).statuses == [0, 0]
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (f"EMFILE 1 4 always {TAR}", "Too many open files"),
        (f"end 1 4 always {TAR}", f"{TAR} is truncated: it ends at byte"),
    ],
)
def test_what_does_not_pass_is_not_tried_again_and_is_no_damage(
    fault: str, words: str, drawn_set: Path, tmp_path: Path
):
    options = train_options(drawn_set, tmp_path / "run", *TWO_EPOCHS, "--data.max_errors=1")
    stopped = ended(options, tmp_path / "said", 2, f"read {fault}")
    assert stopped.statuses == [2, 2], stopped.said
    for line in stopped.errors:
        assert "rank 1: shard " in line and words in line and "checkpoint saved" in line
    assert "replaced" not in "".join(stopped.said) and "retrying" not in "".join(stopped.said)


def test_a_shard_of_validation(drawn_set: Path, unharmed: dict[int, Path], tmp_path: Path):
    options = train_options(drawn_set, tmp_path / "run", *TWO_EPOCHS)
    stopped = ended(options, tmp_path / "first", 2, "read EIO 1 0 always val-00000.tar")
    assert stopped.statuses == [69, 69], stopped.said
    for line in stopped.errors:
        assert f"rank 1: shard {drawn_set / 'val-00000.tar'}" in line and "checkpoint saved" in line
    assert checkpoints(tmp_path / "run")[-1] == "step-00000007"
    resumed = ended([*options, "--resume"], tmp_path / "second", 2)
    assert resumed.statuses == [0, 0] and "epoch 1, step 7" in resumed.said[0]
    assert_same_run(tmp_path / "run", unharmed[2])


def test_an_evaluation_ends_on_all_ranks(drawn_set: Path, fault_model: Path, tmp_path: Path):
    model = shutil.copytree(fault_model, tmp_path / "model")
    words = ["evaluate", "--model", model, "--shards", drawn_set, "--split", "train"]
    stopped = ended(words, tmp_path / "said", 2, f"read EIO 1 0 always {TAR}")
    assert stopped.statuses == [69, 69], stopped.said
    assert all(f"rank 1: shard {drawn_set / TAR} cannot be read on" in line for line in stopped.errors)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_prediction_keeps_what_is_finished(ranks: int, drawn_set: Path, fault_model: Path, tmp_path: Path):
    """No row says that an image is damaged; the same command predicts what is left."""
    words = ["predict", "--model", fault_model, "--shards", drawn_set, "--out", tmp_path / "out"]
    fault = ";".join(f"read EIO {rank} 0 always {TAR}" for rank in range(ranks))
    stopped = ended(words, tmp_path / "first", ranks, fault)
    assert stopped.statuses == [69] * ranks, stopped.said
    assert all(f"shard {drawn_set / TAR} cannot be read on" in line for line in stopped.errors)
    assert all("finished files are kept: the same command predicts the rest" in line for line in stopped.errors)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    assert len(kept) < len(list(drawn_set.glob("*.tar")))
    assert not (tmp_path / "out" / "train-00001.parquet").exists()
    assert ended(words, tmp_path / "second", ranks).statuses == [0] * ranks
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert len(list((tmp_path / "out").glob("*.parquet"))) == len(list(drawn_set.glob("*.tar")))
