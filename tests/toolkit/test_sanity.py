"""What no honest training can do and what every sound one must: shuffled labels, labels as pixels, sealed test data.

All runs are whole ones, through the commands, on small drawn pictures in which each genre is a coloured square.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import expit
from sklearn.metrics import average_precision_score, f1_score, fbeta_score
from toolkit_helpers import TINY, launch_2, reverse_labels
from train_tools import TINY_VIT

from shards.build.run import BuildOptions, build_shards
from shards.dataset.manifest import Manifest
from toolkit.cli.main import main
from toolkit.evaluation.results import train_prevalence
from toolkit.metrics.baselines import baselines
from toolkit.metrics.bootstrap import bootstrap, paired_difference
from toolkit.metrics.weighted import Outcome

SIDE = 48
NUM_POSTERS = 320
#: Genre: its square's colour and prevalence. The last comes twice in all, so never outside training
#: (shards/build/split.py).
SQUARES = {
    "Action": ((220, 30, 30), 0.5),
    "Comedy": ((30, 200, 30), 0.35),
    "Drama": ((40, 40, 230), 0.25),
    "Horror": ((230, 220, 20), 0.15),
    "Noir": ((200, 20, 210), 0.0),
}
OPTIONS = [
    *TINY, "--model.head=linear", "--model.dropout=0", "--model.freeze=[]", "--data.crop_scale=[0.9, 1.0]",
    "--optim.lr=0.005", "--train.epochs=9", "--train.patience=0", "--decide.thresholds=genre",
    "--decide.calibration=platt",
]  # fmt: skip


def draw(rng: np.random.Generator, genres: list[str]) -> Image.Image:
    """Grey patches, other ones in every picture lest it be taken for a duplicate, and the genres' squares."""
    patches = rng.integers(40, 216, size=(6, 6, 1), dtype=np.uint8)
    pixels = patches.repeat(SIDE // 6, axis=0).repeat(SIDE // 6, axis=1).repeat(3, axis=2)
    for number, (name, (colour, _)) in enumerate(SQUARES.items()):
        if name in genres:
            top, left = divmod(number, 3)
            pixels[top * 20 + 6 : top * 20 + 20, left * 15 + 2 : left * 15 + 14] = colour
    return Image.fromarray(pixels)


@pytest.fixture(scope="module", autouse=True)
def one_thread_each() -> Iterator[None]:
    """The same arithmetic in this process as in two launched ones, which have a thread each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with images/, the true metadata.csv, and shuffled.csv in which posters have each other's genres."""
    folder = tmp_path_factory.mktemp("squares")
    (folder / "images").mkdir()
    rng = np.random.default_rng(11)
    drawn = rng.random((NUM_POSTERS, len(SQUARES))) < [share for _, share in SQUARES.values()]
    drawn[:2, -1] = True
    drawn[~drawn.any(axis=1), 2] = True
    genres = [[name for name, has in zip(SQUARES, row, strict=True) if has] for row in drawn]
    for number, own in enumerate(genres):
        draw(rng, own).save(folder / "images" / f"p{number:03}.png")
    for name, order in (("metadata", range(NUM_POSTERS)), ("shuffled", rng.permutation(NUM_POSTERS))):
        with open(folder / f"{name}.csv", "w", newline="") as stream:
            rows = [(f"p{number:03}", "|".join(genres[other])) for number, other in enumerate(order)]
            csv.writer(stream).writerows([("id", "genres"), *rows])
    return folder


def build(pictures: Path, name: str) -> Path:
    out = pictures / f"shards-{name}"
    options = BuildOptions(
        metadata=pictures / f"{name}.csv",
        images=pictures / "images",
        out=out,
        genre_column="genres",
        fractions=(0.5, 0.25, 0.25),
        samples_per_shard=100,
        workers=1,
    )
    manifest = build_shards(options)
    assert manifest.split_summary()["test"]["samples"] > 70  # no picture was taken for another's duplicate
    return out


@dataclass(frozen=True)
class Trained:
    """A run and what `posters evaluate` left of it."""

    shards: Path
    run: Path

    @property
    def model(self) -> Path:
        return self.run / "model"

    @property
    def metrics(self) -> dict[str, Any]:
        return json.loads((self.model / "metrics-test.json").read_text())

    @property
    def chosen(self) -> dict[str, float]:
        """Metrics at the model's own thresholds."""
        return self.metrics["thresholds"][-1]["metrics"]

    @property
    def predictions(self) -> tuple[np.ndarray, np.ndarray]:
        """(targets (N, G) bool, uncalibrated logits (N, G) float64) of test."""
        with np.load(self.model / "predictions-test.npz", allow_pickle=False) as kept:
            return kept["targets"] == 1, kept["logits"].astype(np.float64)

    def probabilities(self) -> tuple[np.ndarray, np.ndarray]:
        """(probabilities (N, G), thresholds (G,)) with labels.json applied by hand."""
        labels = json.loads((self.model / "labels.json").read_text())
        calibration = labels["calibration"]
        scores = np.array(calibration["scale"]) * self.predictions[1] + np.array(calibration["bias"])
        return expit(scores), np.array(labels["thresholds"])


def train(shards: Path, run: Path, *options: str) -> Trained:
    assert main(["train", "--shards", str(shards), "--out", str(run), *OPTIONS, *options]) == 0
    return Trained(shards, run)


def evaluated(trained: Trained) -> Trained:
    options = ["--model", str(trained.model), "--shards", str(trained.shards), "--workers", "1"]
    assert main(["evaluate", *options]) == 0
    return trained


@pytest.fixture(scope="module")
def learnt(pictures: Path) -> Trained:
    """Trained on true labels."""
    return evaluated(train(build(pictures, "metadata"), pictures / "learnt"))


@pytest.fixture(scope="module")
def shuffled(pictures: Path) -> Trained:
    """Trained on labels that have nothing to do with the pictures."""
    return evaluated(train(build(pictures, "shuffled"), pictures / "shuffled"))


#: Neither BatchNorm nor dropout: samples do not meet in the network (train_tools.py). Thresholds surely differ.
ALONE_OR_NOT = [*TINY_VIT, "--train.epochs=2", "--optim.lr=0.002", "--decide.aim=recall>=0.8"]


@pytest.fixture(scope="module")
def alone(learnt: Trained, pictures: Path) -> Trained:
    """Half-learnt by one process, with another threshold for every genre."""
    return evaluated(train(learnt.shards, pictures / "alone", *ALONE_OR_NOT))


def mean_ap(targets: np.ndarray, scores: np.ndarray) -> float:
    supported = targets.any(axis=0)
    return float(average_precision_score(targets[:, supported], scores[:, supported], average="macro"))


def furthest_by_chance(targets: np.ndarray, scores: np.ndarray, rounds: int = 500) -> float:
    """The furthest from prevalence that the mAP of these scores comes when pictures and labels are paired by lot."""
    rng = np.random.default_rng(0)
    prevalence = targets.mean(axis=0)[targets.any(axis=0)].mean()
    return max(abs(mean_ap(rng.permutation(targets), scores) - prevalence) for _ in range(rounds))


# --- what cannot be learnt, and what must be --------------------------------------------------------------------------


def test_shuffled_labels_give_the_map_of_prevalence(shuffled: Trained):
    targets, logits = shuffled.predictions
    assert (np.ptp(logits, axis=0) > 0.1).all()  # it did learn something, by heart
    prevalence = shuffled.metrics["baselines"][0]["ranking"]["mAP"]
    assert abs(shuffled.metrics["ranking"]["mAP"] - prevalence) <= furthest_by_chance(targets, logits)


def test_shuffled_labels_do_not_beat_what_looks_at_no_picture(shuffled: Trained):
    targets, _ = shuffled.predictions
    probabilities, thresholds = shuffled.probabilities()
    prevalence = train_prevalence(Manifest.read(shuffled.shards))
    rows = baselines(prevalence, targets, [], k_values=range(1, targets.shape[1] + 1))
    for metric in ("micro_f1", "macro_f1"):
        best = max(rows, key=lambda row: row.metrics[metric])
        always = np.zeros_like(targets)
        always[:, best.genre_indices or []] = True
        draws = bootstrap({"model": Outcome(targets, probabilities >= thresholds), "always": Outcome(targets, always)})
        difference = paired_difference(draws["model"], draws["always"])[metric]
        assert difference.value == pytest.approx(shuffled.chosen[metric] - best.metrics[metric])
        assert difference.low is not None and difference.low <= 0, metric


def test_labels_as_pixels_are_learnt_to_the_full(learnt: Trained):
    targets, logits = learnt.predictions
    assert learnt.metrics["ranking"]["mAP"] == 1.0
    assert learnt.chosen["micro_f1"] == learnt.chosen["macro_f1"] == 1.0
    # The control of the controls: what shuffled labels are not allowed, true ones reach with ease.
    prevalence = learnt.metrics["baselines"][0]["ranking"]["mAP"]
    assert learnt.metrics["ranking"]["mAP"] - prevalence > 2 * furthest_by_chance(targets, logits, 100)


# --- the figures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["learnt", "shuffled", "alone"])
def test_metrics_are_scikit_learns(run: str, request: pytest.FixtureRequest):
    trained: Trained = request.getfixturevalue(run)
    targets, logits = trained.predictions
    probabilities, thresholds = trained.probabilities()
    named = probabilities >= thresholds
    supported = targets.any(axis=0)
    assert supported.tolist() == [True] * 4 + [False]
    got = trained.chosen
    assert trained.metrics["ranking"]["mAP"] == pytest.approx(mean_ap(targets, logits), abs=1e-9)
    assert got["micro_f1"] == pytest.approx(f1_score(targets, named, average="micro"), abs=1e-9)
    assert got["macro_f1"] == pytest.approx(
        f1_score(targets[:, supported], named[:, supported], average="macro", zero_division=0), abs=1e-9
    )
    half = fbeta_score(targets, named, beta=0.5, average="micro", zero_division=0)
    assert got["micro_f0.5"] == pytest.approx(half, abs=1e-9)
    if run == "alone":  # there all that labels.json holds matters
        assert len(set(thresholds)) > 3
        assert not np.array_equal(named, expit(logits) >= thresholds)


# --- test data are sealed ---------------------------------------------------------------------------------------------


def test_labels_of_test_change_no_bit_of_what_is_learnt_or_chosen(learnt: Trained, tmp_path: Path):
    other = shutil.copytree(learnt.shards, tmp_path / "set")
    reverse_labels(other, "test")
    again = train(other, tmp_path / "run")
    before = (again.model / "labels.json").read_bytes()
    for name in ("labels.json", "model.safetensors", "metrics-val.json"):
        assert (again.model / name).read_bytes() == (learnt.model / name).read_bytes(), name
    evaluated(again)
    assert (again.model / "labels.json").read_bytes() == before
    assert again.metrics["ranking"]["mAP"] < learnt.metrics["ranking"]["mAP"] - 0.1  # the labels are others


# --- two processes ----------------------------------------------------------------------------------------------------


def test_two_processes_give_the_figures_of_one(alone: Trained, tmp_path: Path):
    together = Trained(alone.shards, tmp_path / "two")
    for script, arguments in (
        ("train", ["--out", together.run, *OPTIONS, *ALONE_OR_NOT]),
        ("evaluate", ["--model", together.model, "--workers", 1]),
    ):
        done = launch_2(f"launch/{script}.py", "--shards", alone.shards, *arguments)
        assert done.returncode == 0, done.stderr

    one, two = (json.loads((run.model / "labels.json").read_text()) for run in (alone, together))
    assert one["calibration"]["method"] == two["calibration"]["method"] == "platt"
    assert len(set(one["thresholds"])) > 3
    np.testing.assert_allclose(two["thresholds"], one["thresholds"], rtol=1e-3, atol=1e-5)
    for part in ("scale", "bias"):
        np.testing.assert_allclose(two["calibration"][part], one["calibration"][part], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(together.predictions[1], alone.predictions[1], rtol=1e-3, atol=1e-4)
    assert together.chosen == alone.chosen
    ours, theirs = alone.metrics, together.metrics
    assert theirs["ranking"] == pytest.approx(ours["ranking"], abs=1e-6)
    assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4)
    for when in ("before", "after"):
        for name in ("loss", "ece", "ece_macro"):
            assert theirs["calibration"][when][name] == pytest.approx(ours["calibration"][when][name], abs=1e-4)
