"""The learning-rate range test: what it suggests from a curve, and that it leaves no run behind, but features."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from failing import fails
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from toolkit_helpers import TINY, error_lines, launch_2, posters_command, weights_option
from train_tools import TINY_VIT, tiny_config

from shards.errors import Code
from toolkit.training.lr_finder import HIGH, LOW, LrCurve, diverged, save_curve
from toolkit.training.run import train

RECIPE = [*TINY, *TINY_VIT, "--optim.name=adamw", "--model.freeze=[]"]
RATES = np.geomspace(LOW, HIGH, 100)


def typical(noise: float = 0.0) -> np.ndarray:
    """Falls fastest at 1e-3, is lowest near 3e-2, rises steeply at 1."""
    x = np.log10(RATES)
    falling, rising = 0.4 / (1 + np.exp(-3 * (x + 3))), 0.3 * np.exp(4 * x)
    return 0.7 - falling + rising + noise * np.random.default_rng(0).standard_normal(len(x))


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_suggestions_from_a_typical_curve(noise: float):
    kept = typical() < 2
    curve = LrCurve.of(RATES[kept], typical(noise)[kept])
    assert curve.steepest == pytest.approx(1e-3, rel=0.6)
    assert 8e-3 < curve.lowest < 0.3
    assert curve.steepest < curve.lowest
    truth = typical()[kept]
    assert np.abs(curve.smoothed - truth)[:60].max() < np.abs(curve.losses - truth)[:60].max() + 1e-2


def test_a_last_explosion_does_not_reach_back():
    losses = np.append(typical()[:70], [50.0, 1e6])
    curve = LrCurve.of(RATES[:72], losses)
    assert curve.steepest == pytest.approx(1e-3, rel=0.6)


@pytest.mark.parametrize(
    ("losses", "code"), [([0.7, 0.8], "not-finite"), (np.linspace(0.7, 1.3, 50), "nothing-to-train")]
)
def test_nothing_to_suggest_is_one_line(losses: list[float], code: Code):
    with fails(code):
        LrCurve.of(RATES[: len(losses)], np.array(losses))


@given(st.lists(st.floats(0.5, 0.99), min_size=1, max_size=40))
def test_noise_is_no_divergence(losses: list[float]):
    assert not diverged(losses)


@given(st.lists(st.floats(0.5, 0.99), max_size=20), st.sampled_from([math.inf, math.nan, 1e6]))
def test_an_explosion_is(losses: list[float], last: float):
    assert diverged([0.5, *losses, last])


def test_files_hold_the_curve(tmp_path: Path):
    kept = typical() < 2
    curve = LrCurve.of(RATES[kept], typical()[kept])
    save_curve(curve, tmp_path)
    rows = read(tmp_path)
    assert [row["lr"] for row in rows] == pytest.approx(curve.rates, rel=1e-5)
    assert [row["loss"] for row in rows] == pytest.approx(curve.losses, rel=1e-5)
    assert [row["smoothed"] for row in rows] == pytest.approx(curve.smoothed, rel=1e-5)
    with Image.open(tmp_path / "find-lr.png") as image:
        assert image.format == "PNG" and min(image.size) > 500
        assert len(np.unique(np.asarray(image.convert("L")))) > 50  # something was drawn
    assert sorted(p.name for p in tmp_path.iterdir()) == ["find-lr.csv", "find-lr.png"]


def read(out: Path) -> list[dict[str, float]]:
    with open(out / "find-lr.csv") as stream:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]


@pytest.fixture(scope="module")
def searched(shard_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("search") / "run"
    run = posters_command("train", "--shards", shard_set, "--out", out, *RECIPE, "--find-lr")
    assert run.returncode == 0, run.stderr
    assert "suggested: --optim.lr " in run.stderr and "find-lr.png" in run.stderr
    return out


def test_rates_rise_exponentially_and_the_loss_falls(searched: Path):
    rows = read(searched)
    rates, losses = np.array([r["lr"] for r in rows]), np.array([r["loss"] for r in rows])
    assert rates[0] == pytest.approx(LOW) and len(rates) > 20
    ratios = rates[1:] / rates[:-1]
    assert ratios == pytest.approx(ratios[0], rel=1e-3) and ratios[0] > 1
    assert losses.min() < 0.9 * losses[0]  # updates were made


def test_two_processes_find_the_curve_of_one(searched: Path, shard_set: Path, tmp_path: Path):
    run = launch_2("launch/train.py", "--shards", shard_set, "--out", tmp_path / "run", *RECIPE, "--find-lr")
    assert run.returncode == 0, run.stderr
    alone, together = read(searched), read(tmp_path / "run")
    calm = [i for i, row in enumerate(alone) if row["lr"] < 0.01]  # chaos beyond
    for i in calm:
        assert together[i] == pytest.approx(alone[i], rel=1e-2)


def test_the_folder_holds_no_run_afterwards(searched: Path, shard_set: Path):
    assert {p.name for p in searched.iterdir()} <= {".lock", "find-lr.csv", "find-lr.png"}
    run = posters_command("train", "--shards", shard_set, "--out", searched, *RECIPE, "--train.epochs=1")
    assert run.returncode == 0, run.stderr
    assert (searched / "model").is_dir() and (searched / "find-lr.png").exists()


def test_cached_features_stay_for_the_training_that_follows(shard_set: Path, tmp_path: Path, one_thread: None):
    probe = [*TINY, "--model.freeze=[backbone]", weights_option(), "--train.feature_views=2", "--train.epochs=1"]
    out, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    assert train(tiny_config(*probe), shard_set, out, search_lr=True) == 0
    assert {p.name for p in out.iterdir()} - {".lock"} == {"features", "find-lr.csv", "find-lr.png"}
    made = {path: path.stat().st_mtime_ns for path in (out / "features").iterdir()}
    assert len(made) == 3

    cache = f"--train.feature_cache={out / 'features'}"
    assert train(tiny_config(*probe), shard_set, out) == 0
    assert train(tiny_config(*probe, cache), shard_set, elsewhere, search_lr=True) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "features").iterdir()} == made
    assert {p.name for p in elsewhere.iterdir()} - {".lock"} == {"find-lr.csv", "find-lr.png"}


def test_it_cannot_resume(shard_set: Path, tmp_path: Path):
    run = posters_command("train", "--shards", shard_set, "--out", tmp_path / "run", *RECIPE, "--find-lr", "--resume")
    (line,) = error_lines(run)
    assert run.returncode == 2 and "--find-lr" in line and not (tmp_path / "run").exists()
