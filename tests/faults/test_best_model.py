"""RUN/model and the checkpoint that knows of it, killed between the two: the best model stays, and a state knows it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fault_tools import assert_no_half_files, assert_same_run, ended, train_options

pytest_plugins = ("fault_fixtures",)

TWO_EPOCHS = ["--train.epochs=2", "--train.checkpoint_steps=2"]
#: A rate at which the rest of an epoch spoils what was learnt: another machine's arithmetic does it more gently.
SPOILT = "--optim.lr=3"


def model(run: Path) -> tuple[bytes, dict[str, Any]]:
    """Weights of RUN/model, and what it says of itself."""
    facts: dict[str, Any] = json.loads((run / "model" / "config.json").read_text())["poster_toolkit"]
    return (run / "model" / "model.safetensors").read_bytes(), facts


def last_progress(run: Path) -> dict[str, Any]:
    path = sorted(p for p in (run / "checkpoints").iterdir() if "partial" not in p.name)[-1]
    progress: dict[str, Any] = json.loads((path / "state.json").read_text())["progress"]
    return progress


@pytest.fixture(scope="module")
def killed_between(drawn_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose first model is there, with the checkpoint of update 6 of 7 beside it. Read-only."""
    folder = tmp_path_factory.mktemp("between")
    options = train_options(drawn_set, folder / "run", *TWO_EPOCHS)
    assert ended(options, folder / "said", 1, "kill-after toolkit.training.trainer:export_model").statuses == [-9]
    assert last_progress(folder / "run")["updates"] == 6 and model(folder / "run")[1]["epoch"] == 1
    return folder / "run"


def test_killed_between_model_and_checkpoint(
    drawn_set: Path, killed_between: Path, unharmed: dict[int, Path], tmp_path: Path
):
    shutil.copytree(killed_between, tmp_path / "run")
    options = train_options(drawn_set, tmp_path / "run", *TWO_EPOCHS, "--resume")
    resumed = ended(options, tmp_path / "said")
    assert resumed.statuses == [0] and resumed.errors == []
    score = f"loss {model(killed_between)[1]['score']:.6g}"
    assert (
        f"has the model of epoch 1 with {score}, but the checkpoint has no best epoch; a later epoch replaces"
        in resumed.said[0]
    )
    assert_same_run(tmp_path / "run", unharmed[1])
    ours, theirs = last_progress(tmp_path / "run"), last_progress(unharmed[1])
    assert ours == theirs and ours["best_sha256"] == model(tmp_path / "run")[1]["weights_sha256"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_better_model_than_the_epoch_gives_the_second_time_stays(
    drawn_set: Path, killed_between: Path, tmp_path: Path, ranks: int
):
    shutil.copytree(killed_between, tmp_path / "run")
    weights, facts = model(killed_between)
    options = train_options(drawn_set, tmp_path / "run", *TWO_EPOCHS, SPOILT, "--train.epochs=1", "--resume")
    resumed = ended(options, tmp_path / "said", ranks)
    assert resumed.statuses == [0] * ranks, resumed.said
    assert model(tmp_path / "run") == (weights, facts)
    progress = last_progress(tmp_path / "run")
    assert progress["epoch"] == 1 and progress["bad_epochs"] == 0
    assert (progress["best_epoch"], progress["best_score"]) == (0, facts["score"])
    assert progress["best_sha256"] == facts["weights_sha256"]


def test_killed_between_the_names_of_two_models(
    drawn_set: Path, killed_between: Path, unharmed: dict[int, Path], tmp_path: Path
):
    """The older one is brought back, and is made again."""
    shutil.copytree(killed_between, tmp_path / "run")
    options = train_options(drawn_set, tmp_path / "run", *TWO_EPOCHS, "--resume")
    assert ended(options, tmp_path / "first", 1, "kill-between-models").statuses == [-9]
    assert not (tmp_path / "run/model").exists() and (tmp_path / "run/model.old").exists()
    resumed = ended(options, tmp_path / "second")
    assert resumed.statuses == [0] and resumed.errors == []
    assert_no_half_files(tmp_path / "run")
    assert not (tmp_path / "run/model.old").exists()
    assert_same_run(tmp_path / "run", unharmed[1])


def test_the_newest_checkpoint_is_damaged_and_the_best_model_is_of_its_epoch(
    drawn_set: Path, unharmed: dict[int, Path], tmp_path: Path
):
    """The epoch is trained again, worse: the model is still the best, and the state says so."""
    shutil.copytree(unharmed[1], tmp_path / "run")
    before = model(tmp_path / "run")
    assert before[1]["epoch"] == 2
    newest = sorted((tmp_path / "run/checkpoints").iterdir())[-1]
    (newest / "state.json").unlink()
    options = train_options(drawn_set, tmp_path / "run", *TWO_EPOCHS, SPOILT, "--resume")
    resumed = ended(options, tmp_path / "said")
    assert resumed.statuses == [0] and "is damaged and skipped: " in resumed.said[0]
    assert "has the model of epoch 2 with loss" in resumed.said[0]
    assert model(tmp_path / "run") == before
    progress = last_progress(tmp_path / "run")
    assert (progress["best_epoch"], progress["best_score"]) == (1, before[1]["score"])


def test_a_lost_model_is_made_by_the_next_epoch(drawn_set: Path, two_checkpoints: Path, tmp_path: Path):
    shutil.copytree(two_checkpoints, tmp_path / "run")
    (tmp_path / "run/model/model.safetensors").write_bytes(b"")
    options = train_options(drawn_set, tmp_path / "run", *TWO_EPOCHS, "--resume")
    resumed = ended(options, tmp_path / "said")
    assert resumed.statuses == [0] and "the run's best model is lost (" in resumed.said[0]
    assert model(tmp_path / "run")[1]["epoch"] == 2
    shutil.rmtree(tmp_path / "run/model")
    refused = ended(options, tmp_path / "again")
    assert refused.statuses == [2]
    (line,) = refused.errors
    assert "but no epoch is left: set --train.epochs to more than 2" in line
