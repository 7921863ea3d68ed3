"""A metric of the user selects the best epoch (train.monitor), also after a resume with other code."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from failing import fails
from forked import run_forked
from toolkit_helpers import TINY, clean_env, error_lines, parse_train

from shards.errors import UserError
from toolkit.config import extensions
from toolkit.evaluation.results import own_metrics
from toolkit.metrics.weighted import Outcome, Weighed

#: The same number for both classes, with opposite directions. Sum is without a direction.
CODE = """
class Sum:
    def __init__(self, scale: float = -1.0, nan: bool = False):
        self.scale, self.nan = scale, nan

    def __call__(self, truth, named, probabilities):
        return float("nan") if self.nan else self.scale * float(abs(probabilities - truth).sum())


class High(Sum):
    better = "higher"


class Low(Sum):
    better = "lower"


class Odd(Sum):
    better = "max"


class mAP(High):
    pass
"""
SHORT = [*TINY, "--train.epochs=4", "--train.patience=0", "--train.batch_size=14", "--optim.lr=0.01"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own_figures.py").write_text(CODE)
    return tmp_path


def train(folder: Path, shard_set: Path, kind: str, *words: str) -> CompletedProcess[str]:
    own = [f"--metric.name=own_figures:{kind}", f"--train.monitor=own_figures:{kind}"]
    command = ["-m", "toolkit", "train", "--shards", str(shard_set), "--out", kind, *SHORT, *own, *words]
    return run_forked(command, [clean_env()], 240, folder)


def column(run: Path, name: str) -> list[float]:
    with open(run / "epochs.csv") as stream:
        return [float(row[name]) for row in csv.DictReader(stream)]


def test_the_direction_of_the_class_selects_the_epoch(folder: Path, shard_set: Path):
    kept = {}
    for kind, best in (("High", max), ("Low", min)):
        done = train(folder, shard_set, kind)
        assert done.returncode == 0, done.stderr
        values = column(folder / kind, f"val_{kind}")
        facts = json.loads((folder / kind / "model/config.json").read_text())["poster_toolkit"]
        kept[kind] = facts["epoch"]
        assert facts["epoch"] == values.index(best(values)) + 1 and facts["monitor"] == f"own_figures:{kind}"
        assert facts["score"] == pytest.approx(best(values), rel=1e-5)
        newest = max((folder / kind / "checkpoints").glob("*/state.json"))
        progress = json.loads(newest.read_text())["progress"]
        assert progress["best_score"] == facts["score"] and progress["scored"].startswith("cross-fit ")
        assert f"{kind} {best(values):.3f}" in done.stderr  # the last line names its value
    assert len(set(kept.values())) == 2  # else the direction had no effect


def test_other_code_measures_the_best_epoch_again(folder: Path, shard_set: Path):
    assert train(folder, shard_set, "High", "--train.epochs=1").returncode == 0
    (before,) = column(folder / "High", "val_High")
    same = train(folder, shard_set, "High", "--train.epochs=2", "--resume")
    assert same.returncode == 0 and "measured again" not in same.stderr, same.stderr
    # On the new scale, the old score could never be reached.
    (folder / "own_figures.py").write_text(CODE.replace("probabilities - truth", "2 * (probabilities - truth)"))
    other = train(folder, shard_set, "High", "--train.epochs=3", "--resume")
    assert other.returncode == 0, other.stderr
    (line,) = [line for line in other.stderr.splitlines() if "measured again" in line]
    best = max(before, column(folder / "High", "val_High")[1])
    assert "the code of the metric differ" in line
    assert float(line.rpartition(": ")[2]) == pytest.approx(2 * best, rel=1e-3)


def test_a_resumed_run_must_name_the_metric(folder: Path, shard_set: Path):
    """The checkpoint names the class. Its module is imported only if the user names it."""
    assert train(folder, shard_set, "High", "--train.epochs=1").returncode == 0
    (folder / "own_figures.py").write_text("open('imported', 'w').close()\n" + CODE)
    words = ["-m", "toolkit", "train", "--shards", str(shard_set), "--out", "High", *SHORT, "--resume"]
    (line,) = error_lines(run_forked(words, [clean_env()], 240, folder))
    assert "cannot resume" in line and not (folder / "imported").exists()


def test_an_epoch_without_a_value_is_one_line(folder: Path, shard_set: Path):
    (line,) = error_lines(train(folder, shard_set, "High", "--metric.options.nan=true"))
    assert "the metric own_figures:High returned NaN" in line and "continue with --resume" in line


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["--train.monitor=own_figures:High"], ["metric.name is null", "--metric.name own_figures:High"]),
        (["--train.monitor=own_figures:High", "--metric.name=own_figures:Low"], ["metric.name is own_figures:Low"]),
        (["--train.monitor=own_figures:Sum", "--metric.name=own_figures:Sum"], ['better = "higher"', '"lower"']),
        (["--train.monitor=own_figures:Odd", "--metric.name=own_figures:Odd"], ['better = "higher"']),
        (["--train.monitor=High", "--metric.name=own_figures:High"], ["loss, mAP, macro_f1 or MODULE:CLASS"]),
    ],
)
def test_what_cannot_be_monitored(folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], facts: list[str]):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(extensions, "_USED", {})
    with pytest.raises(UserError) as found:
        parse_train(["--shards", "S", "--out", "R", *TINY, *words])
    assert all(fact in str(found.value) for fact in facts), found.value


def test_names_and_values_that_would_mislead(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(extensions, "_USED", {})
    for kind in ("mAP", "Low"):
        extensions.use("metric", f"own_figures:{kind}", "--metric")
    with fails("option-value", "own_figures:mAP", "name of a known metric"):
        own_metrics("own_figures:mAP", {})
    (metric,) = own_metrics("own_figures:Low", {"scale": 1e308})
    truth = np.ones((40, 3), dtype=bool)
    with fails("option-value", "own_figures:Low returned inf"):
        metric.value(Weighed(Outcome(truth, truth, np.zeros((40, 3)))))
