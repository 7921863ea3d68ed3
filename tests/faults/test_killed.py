"""Ranks that are killed, told to stop or started twice: what was saved stays, and the run comes to the same end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fault_tools import Run, assert_no_half_files, assert_same_run, contents, ended, train_options

pytest_plugins = ("fault_fixtures",)

TWO_EPOCHS = ["--train.epochs=2", "--train.checkpoint_steps=2"]


def newest(run: Path) -> str:
    return sorted(path.name for path in (run / "checkpoints").glob("step-*") if "partial" not in path.name)[-1]


@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_ranks_is_killed(victim: int, drawn_set: Path, unharmed: dict[int, Path], tmp_path: Path):
    """Where no launcher ends the other one: it ends by itself, and says that somebody is missing."""
    options = train_options(drawn_set, tmp_path / "run", *TWO_EPOCHS)
    killed = ended(options, tmp_path / "first", 2, f"kill {victim} 9")
    assert killed.statuses[victim] == -9 and killed.statuses[1 - victim] == 69
    (line,) = killed.errors
    assert "lost another process of this run" in line and "--resume continues from its newest checkpoint" in line
    assert newest(tmp_path / "run") == "step-00000008"
    resumed = ended([*options, "--resume"], tmp_path / "second", 2)
    assert resumed.statuses == [0, 0], resumed.said
    assert_same_run(tmp_path / "run", unharmed[2])


def test_all_ranks_are_killed(drawn_set: Path, unharmed: dict[int, Path], tmp_path: Path):
    options = train_options(drawn_set, tmp_path / "run", *TWO_EPOCHS)
    run = Run(options, tmp_path / "first", 2, f"hold 10 {tmp_path / 'held'}")
    run.until(lambda: (tmp_path / "held.0").exists() and (tmp_path / "held.1").exists())
    run.kill()
    assert run.ended().statuses == [-9, -9]
    assert newest(tmp_path / "run") == "step-00000008"  # the one after update 10 was not yet begun
    resumed = ended([*options, "--resume"], tmp_path / "second", 2)
    assert resumed.statuses == [0, 0] and "epoch 2, step 1" in resumed.said[0]
    assert_same_run(tmp_path / "run", unharmed[2])


@pytest.mark.parametrize(
    ("fault", "half"),
    [("kill-write 100000 10", ["state.pt.*"]), ("kill-rename 10", ["state.json", "state.pt"])],
    ids=["within state.pt", "before the rename"],
)
def test_killed_while_a_checkpoint_is_written(
    fault: str, half: list[str], drawn_set: Path, unharmed: dict[int, Path], tmp_path: Path
):
    options = train_options(drawn_set, tmp_path / "run", *TWO_EPOCHS)
    assert ended(options, tmp_path / "first", 1, fault).statuses == [-9]
    (left,) = (tmp_path / "run" / "checkpoints").glob("step-00000010.*.partial")
    found = sorted(path.name for path in left.iterdir())
    assert len(found) == len(half) and all(Path(name).match(wanted) for name, wanted in zip(found, half, strict=True))
    if len(half) == 1:
        assert next(left.iterdir()).stat().st_size == 100_000
    assert newest(tmp_path / "run") == "step-00000008"
    resumed = ended([*options, "--resume"], tmp_path / "second")
    assert resumed.statuses == [0] and "step-00000008: epoch 2, step 1" in resumed.said[0]
    assert_no_half_files(tmp_path / "run")
    assert_same_run(tmp_path / "run", unharmed[1])


def test_a_stop_at_the_end_of_an_epoch_and_a_kill_when_it_is_saved_again(
    drawn_set: Path, unharmed: dict[int, Path], tmp_path: Path
):
    """The same step is saved before and after its validation: the first stays in reach until the second is there."""
    options = train_options(drawn_set, tmp_path / "run", *TWO_EPOCHS, "--train.keep_checkpoints=1")
    stopped = ended(options, tmp_path / "first", 1, "term 0 7")
    assert stopped.statuses == [75] and newest(tmp_path / "run") == "step-00000007"
    assert ended([*options, "--resume"], tmp_path / "second", 1, "kill-rename 7").statuses == [-9]
    assert not list((tmp_path / "run" / "checkpoints").glob("step-00000007"))
    resumed = ended([*options, "--resume"], tmp_path / "third")
    assert resumed.statuses == [0] and "step-00000007: epoch 1, step 7" in resumed.said[0]
    assert_no_half_files(tmp_path / "run")
    assert_same_run(tmp_path / "run", unharmed[1])


def test_one_of_two_ranks_is_told_to_stop(drawn_set: Path, unharmed: dict[int, Path], tmp_path: Path):
    """After update 9; both vote then, and read the vote after the next one."""
    options = train_options(drawn_set, tmp_path / "run", "--train.epochs=2", "--train.checkpoint_steps=2")
    stopped = ended(options, tmp_path / "first", 2, "term 1 9")
    assert stopped.statuses == [75, 75] and stopped.errors == []
    assert "stopped by a signal; checkpoint saved: the same command with --resume continues" in stopped.said[0]
    assert newest(tmp_path / "run") == "step-00000010"
    resumed = ended([*options, "--resume"], tmp_path / "second", 2)
    assert resumed.statuses == [0, 0] and "epoch 2, step 3" in resumed.said[0]
    assert_same_run(tmp_path / "run", unharmed[2])


DAMAGES = {
    "truncated": lambda path: (path / "state.pt").write_bytes((path / "state.pt").read_bytes()[:-1000]),
    "flipped byte": lambda path: _flip(path / "state.pt"),
    "no state.json": lambda path: (path / "state.json").unlink(),
    "empty": lambda path: [file.unlink() for file in path.iterdir()],
}


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_checkpoint_is_damaged(
    damage: str, drawn_set: Path, two_checkpoints: Path, unharmed: dict[int, Path], tmp_path: Path
):
    shutil.copytree(two_checkpoints, tmp_path / "run")
    DAMAGES[damage](tmp_path / "run/checkpoints/step-00000008")
    options = train_options(drawn_set, tmp_path / "run", *TWO_EPOCHS, "--resume")
    resumed = ended(options, tmp_path / "said")
    assert resumed.statuses == [0] and resumed.errors == []
    assert "step-00000008 is damaged and skipped" in resumed.said[0]
    assert "resumed from" in resumed.said[0] and "step-00000007: epoch 2, step 0" in resumed.said[0]
    assert_same_run(tmp_path / "run", unharmed[1])


def test_all_checkpoints_are_damaged(drawn_set: Path, two_checkpoints: Path, tmp_path: Path):
    shutil.copytree(two_checkpoints, tmp_path / "run")
    for path in (tmp_path / "run/checkpoints").iterdir():
        _flip(path / "state.pt")
    before = contents(tmp_path / "run")
    options = train_options(drawn_set, tmp_path / "run", *TWO_EPOCHS, "--resume")
    refused = ended(options, tmp_path / "said")
    assert refused.statuses == [2]
    assert "none of the 2 checkpoints in" in refused.errors[0] and "is valid" in refused.errors[0]
    assert contents(tmp_path / "run") == before


def test_two_runs_start_into_one_folder_at_the_same_moment(drawn_set: Path, tmp_path: Path):
    gate, options = tmp_path / "gate", train_options(drawn_set, tmp_path / "run", "--train.epochs=4")
    runs = [Run(options, tmp_path / name, 1, f"gate {gate}") for name in ("a", "b")]
    runs[0].until(lambda: len(list(tmp_path.glob("gate.*"))) == 2)
    gate.touch()
    outcomes = [run.ended() for run in runs]
    assert sorted(outcome.statuses[0] for outcome in outcomes) == [0, 2]
    (line,) = [line for outcome in outcomes for line in outcome.errors]
    assert f"another process is working in {tmp_path / 'run'}" in line
    with open(tmp_path / "run" / "epochs.csv") as stream:
        assert len(stream.readlines()) == 5  # of the one that came first, and whole


def test_a_second_run_of_two_ranks_is_refused_on_both(drawn_set: Path, tmp_path: Path):
    options = train_options(drawn_set, tmp_path / "run", "--train.epochs=2", "--train.checkpoint_steps=2")
    first = Run(options, tmp_path / "first", 2, f"hold 3 {tmp_path / 'held'}")
    first.until(lambda: (tmp_path / "held.0").exists() and (tmp_path / "held.1").exists())
    before = contents(tmp_path / "run")
    second = ended([*options, "--resume"], tmp_path / "second", 2)
    assert all(status not in (0, -9) for status in second.statuses), second
    assert any("another process is working in" in line for line in second.errors)
    assert contents(tmp_path / "run") == before
    first.kill()
    state = json.loads((tmp_path / "run/checkpoints/step-00000002/state.json").read_text())
    assert state["progress"]["updates"] == 2
