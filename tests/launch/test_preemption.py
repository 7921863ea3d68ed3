"""SIGTERM outside of updates: while validating, while computing features. It stops at once and loses no update."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from launch_tools import EPOCHS, PROBE, SPEED, UPDATES, accelerate_launch, newest_step, options_of, rows, weights
from toolkit_helpers import weights_option

from toolkit.cli.main import main
from toolkit.distributed.votes import StopSignal
from toolkit.training.cached.feature_cache import FeatureBank

pytest_plugins = ("launch_fixtures",)

STEPS = UPDATES // EPOCHS
#: Of the backbone's features, two views of training and one of validation: three passes of the loader.
CACHED = ["--model.freeze=[backbone]", weights_option(), "--train.feature_views=2", "--train.epochs=2"]


@pytest.fixture(autouse=True)
def one_thread():
    """The same arithmetic as in the runs of other processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def term_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have the n-th look at the stop signal, outside of updates, come right after a SIGTERM. Returns the looks."""

    def install(number: int) -> list[int]:
        check = StopSignal.check
        looks: list[int] = []

        def checked(self: StopSignal, *arguments: Any, **options: Any) -> None:
            looks.append(len(looks))
            if len(looks) == number:
                os.kill(os.getpid(), signal.SIGTERM)
            check(self, *arguments, **options)

        monkeypatch.setattr(StopSignal, "check", checked)
        return looks

    return install


def facts(out: Path) -> tuple[bytes, list[dict[str, str]], list[dict[str, str]]]:
    """What a run must come to, interrupted or not."""
    return weights(out), rows(out / "epochs.csv", *SPEED), rows(out / "log.csv", *SPEED)


@pytest.mark.parametrize(
    "more",
    [pytest.param([], marks=pytest.mark.long), ["--train.ema=0.9", "--train.checkpoint_steps=0"]],
    ids=["raw", "average"],
)
def test_stopped_while_validating(launch_set: Path, tmp_path: Path, term_at: Any, more: list[str]):
    uninterrupted, out = tmp_path / "whole", tmp_path / "run"
    before = set(threading.enumerate())  # a loader that another test did not close keeps its threads
    assert main(["train", *options_of(launch_set, uninterrupted, *more)]) == 0
    looks = term_at(2)
    assert main(["train", *options_of(launch_set, out, *more)]) == 75
    assert len(looks) == 2  # of the four batches, two more are never asked for
    assert newest_step(out) == STEPS and not (out / "model").exists()
    assert not [t for t in set(threading.enumerate()) - before if t.name.startswith("decode")]
    assert rows(out / "epochs.csv") == []  # its epoch is not told before it is judged
    assert main(["train", *options_of(launch_set, out, *more), "--resume"]) == 0
    assert facts(out) == facts(uninterrupted)


def test_stopped_while_validating_the_last_epoch(launch_set: Path, tmp_path: Path, term_at: Any):
    uninterrupted, out = tmp_path / "whole", tmp_path / "run"
    assert main(["train", *options_of(launch_set, uninterrupted)]) == 0
    term_at(5)
    assert main(["train", *options_of(launch_set, out)]) == 75
    assert newest_step(out) == UPDATES and len(rows(out / "epochs.csv")) == 1
    term_at(1)  # and again, at the first batch after the resume
    assert main(["train", *options_of(launch_set, out), "--resume"]) == 75
    assert main(["train", *options_of(launch_set, out), "--resume"]) == 0
    assert facts(out) == facts(uninterrupted)


@pytest.mark.long
def test_one_of_two_processes_is_told_while_both_validate(launch_set: Path, pair: Path, tmp_path: Path):
    out = tmp_path / "run"
    options = options_of(launch_set, out)
    stopped = accelerate_launch(PROBE, tmp_path, "term validate 1 1", *options)
    assert stopped.returncode == 1 and "exitcode  : 75" in stopped.stderr, stopped.stderr
    assert "stopped by a signal; checkpoint saved" in stopped.stderr and "lost" not in stopped.stderr
    assert newest_step(out) == STEPS and not (out / "model").exists()
    resumed = accelerate_launch("launch/train.py", *options, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert facts(out) == facts(pair)


def test_stopped_while_computing_features(
    launch_set: Path, tmp_path: Path, term_at: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    uninterrupted, out = tmp_path / "whole", tmp_path / "run"
    looks = term_at(10**6)
    assert main(["train", *options_of(launch_set, uninterrupted, *CACHED)]) == 0
    of_one_view = 38 // 4 + 2  # after each batch of at most four of 38 training samples, and at its end
    assert len(looks) >= 2 * of_one_view
    term_at(of_one_view + 3)
    with caplog.at_level("WARNING"):
        assert main(["train", *options_of(launch_set, out, *CACHED)]) == 75
    assert "features of train (view 2) must be computed again" in caplog.text and "--resume" in caplog.text
    assert len(list((out / "features").glob("train-*.npy"))) == 1 and not list(out.rglob("*.partial"))
    assert not (out / "checkpoints").exists()

    computed, compute = [], FeatureBank._compute

    def noted(self: FeatureBank, view: Any, *rest: Any) -> Any:
        computed.append(view.title)
        return compute(self, view, *rest)

    monkeypatch.setattr(FeatureBank, "_compute", noted)
    assert main(["train", *options_of(launch_set, out, *CACHED), "--resume"]) == 0
    assert computed == ["features of train (view 2)", "features of val (evaluation view)"]
    assert facts(out) == facts(uninterrupted)


def test_a_signal_between_two_views_is_not_lost(launch_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It comes after the last look of a view, while its file is being written."""
    compute = FeatureBank._compute
    struck: list[str] = []

    def computed(self: FeatureBank, *arguments: Any) -> Any:
        found = compute(self, *arguments)
        struck.append(arguments[0].title)
        os.kill(os.getpid(), signal.SIGTERM)
        return found

    monkeypatch.setattr(FeatureBank, "_compute", computed)
    assert main(["train", *options_of(launch_set, tmp_path / "run", *CACHED)]) == 75
    assert len(struck) == 1 and len(list((tmp_path / "run" / "features").glob("*.npy"))) == 1
