"""The baselines, and the evaluation report in which they stand beside the model."""

from __future__ import annotations

import ast
import dataclasses
import fcntl
import io
import json
import math
import os
import struct
import termios
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from metric_tools import threshold_metrics

from toolkit.decisions.decisions import Decisions
from toolkit.evaluation.results import evaluate_arrays
from toolkit.evaluation.tables import json_types, report_console
from toolkit.metrics.baselines import baselines, commonest_labels, threshold_label
from toolkit.metrics.helpers import cross_entropy, sigmoid

pytestmark = pytest.mark.filterwarnings("error")

POSTERS = Path(__file__).resolve().parents[3].parent / "shared" / "posters" / "meta_processed.csv"

# Evaluated split: prevalence A 3/4, B 1/4, C 0. Training: A 0.6, B 0.4, C 0.1.
TARGETS = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0]], dtype=bool)
AT_HALF = [("0.50", 0.5)]
OF: dict[str, Any] = {"split": "test", "shard_set": "f00d"}
TRAIN_PREVALENCE = np.array([0.6, 0.4, 0.1])


def rows_by_label(rows):
    return {row.label: row for row in rows}


def test_prevalence_baseline_by_hand():
    row = rows_by_label(baselines(TRAIN_PREVALENCE, TARGETS, AT_HALF, [1]))["prevalence @ 0.50"]
    assert row.threshold == 0.5
    assert row.ranking["mAP"] == pytest.approx((3 / 4 + 1 / 4) / 2)  # of the evaluated split, A and B
    assert row.ranking["roc_auc"] == 0.5
    # A: 3 positives at 0.6, 1 negative; B: 1 positive at 0.4, 3 negatives; C: 4 negatives at 0.1
    nats = 3 * math.log(0.6) + math.log(0.4) + math.log(0.4) + 3 * math.log(0.6) + 4 * math.log(0.9)
    assert row.ranking["loss"] == pytest.approx(-nats / 12)
    # A is named every time: TP 3, predicted 4, support 4.
    assert row.metrics["micro_f1"] == pytest.approx(6 / 8)
    assert row.metrics["macro_f1"] == pytest.approx((6 / 7 + 0) / 2)
    assert row.metrics["subset_accuracy"] == 2 / 4


def test_top_k_baseline_by_hand():
    rows = rows_by_label(baselines(TRAIN_PREVALENCE, TARGETS, [], [1, 2]))
    assert rows["always top-1"].genre_indices == [0]
    row = rows["always top-2"]
    assert (row.genre_indices, row.ranking, row.threshold) == ([0, 1], None, None)
    # A: TP 3 of 4 predicted; B: TP 1 of 4 predicted; support 3 and 1.
    assert row.metrics["micro_f1"] == pytest.approx(8 / 12)
    assert row.metrics["macro_f1"] == pytest.approx((6 / 7 + 2 / 5) / 2)
    assert row.metrics["predicted_per_sample"] == 2.0


def test_top_k_goes_by_training_not_by_the_evaluated_split():
    rows = baselines(np.array([0.1, 0.2, 0.9]), TARGETS, [], [1])
    assert rows[0].genre_indices == [2]
    assert rows[0].metrics["micro_f1"] == 0.0


def test_equally_common_genres_go_in_column_order():
    assert commonest_labels(np.array([0.2, 0.5, 0.5, 0.2]), 3) == [1, 2, 0]
    assert commonest_labels(np.tile([0.2, 0.5], 50), 50) == list(range(1, 100, 2))


def test_prevalence_baseline_with_one_threshold_per_genre():
    limits = [0.7, 0.4, 0.05]  # names B and C, not A
    row = baselines(TRAIN_PREVALENCE, TARGETS, [("per genre", np.array(limits))], [])[0]
    assert (row.label, row.threshold) == ("prevalence @ per genre", limits)
    assert row.metrics["micro_precision"] == pytest.approx(1 / 8)


@pytest.mark.parametrize(
    ("threshold", "label"), [(0.3, "0.30"), (0.3412, "0.34"), (0, "0.00"), (0.0043, "0.0043"), (1, "1.00")]
)
def test_threshold_label(threshold, label):
    assert threshold_label(threshold) == label


def test_two_commonest_genres_on_the_real_posters():
    if not POSTERS.is_file():
        pytest.skip(f"the posters' metadata is not here: {POSTERS}")
    sets = [set(ast.literal_eval(cell)) for cell in pd.read_csv(POSTERS).iloc[:, 3]]
    genres = sorted(set.union(*sets))
    targets = np.array([[genre in names for genre in genres] for names in sets])
    row = rows_by_label(baselines(targets.mean(axis=0), targets, AT_HALF, [1, 2, 3]))["always top-2"]
    assert [genres[i] for i in row.genre_indices] == ["Drama", "Comedy"]
    # 4,000 posters, 7,040 labels; Drama 2,585 times and Comedy 1,833, both named for every poster:
    # 2 * 4,418 / (8,000 + 7,040) = 0.5875
    assert row.metrics["micro_f1"] == pytest.approx(8836 / 15040)


# --- the report -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_tailed():
    """Targets, logits, names and training prevalence: 19 genres, the last without positives."""
    rng = np.random.default_rng(3)
    genres = [f"Genre-{number:02d}" for number in range(17)] + ["[bold]Film[/bold]", "Never"]
    prevalence = np.append(0.6 / np.arange(1, 19) ** 1.3, 0.001)
    targets = rng.random((600, 19)) < prevalence
    targets[:, -1] = False
    logits = np.log(prevalence / (1 - prevalence)) + 2 * (targets - 0.2) + rng.normal(size=targets.shape)
    return targets, logits, genres, prevalence


def one_threshold(num_genres, threshold):
    return Decisions.plain(np.full(num_genres, threshold))


@pytest.fixture(scope="module")
def evaluation(long_tailed):
    targets, logits, genres, prevalence = long_tailed
    return evaluate_arrays(targets, logits, genres, prevalence, one_threshold(19, 0.3412), **OF)


def render(evaluation, width=100):
    stream = io.StringIO()
    evaluation.render(report_console(stream, width))
    return stream.getvalue()


def test_evaluation_holds_the_metrics_of_the_sigmoid(long_tailed, evaluation):
    targets, logits, genres, _ = long_tailed
    assert (evaluation.split, evaluation.num_samples, evaluation.genres) == ("test", 600, genres)
    assert [row.label for row in evaluation.thresholds] == ["0.30", "0.50", "0.70", "chosen 0.34"]
    for row, threshold in zip(evaluation.thresholds, (0.3, 0.5, 0.7, 0.3412), strict=True):
        assert row.threshold == threshold
        assert row.metrics == threshold_metrics(targets, sigmoid(logits), threshold)
    assert evaluation.loss == cross_entropy(logits, targets).mean()
    assert (evaluation.per_genre["threshold"] == 0.3412).all()
    assert evaluation.ranking["mAP"] == pytest.approx(evaluation.per_genre["ap"].dropna().mean())
    assert [row.label for row in evaluation.baselines] == [
        "prevalence @ 0.30",
        "prevalence @ 0.50",
        "prevalence @ 0.70",
        "prevalence @ chosen 0.34",
        "always top-1",
        "always top-2",
        "always top-3",
    ]


def test_json_round_trip(evaluation):
    plain = evaluation.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert list(plain) == [
        "split", "shard_set", "num_samples", "genres", "decisions", "loss", "ranking", "calibration", "thresholds",
        "baselines", "per_genre",
    ]  # fmt: skip
    never = plain["per_genre"][-1]
    assert (never["genre"], never["support"], never["ap"], never["f1"]) == ("Never", 0, None, None)
    assert plain["ranking"]["num_genres_ap"] == 18
    assert plain["thresholds"][3]["metrics"]["micro_f1"] == evaluation.thresholds[3].metrics["micro_f1"]


def test_json_types():
    given = {"a": np.float32(0.5), "b": np.array([1, 2]), "c": (math.nan, np.inf), 4: np.bool_(True)}
    assert json_types(given) == {"a": 0.5, "b": [1, 2], "c": [None, None], "4": True}


def test_chosen_threshold_per_genre(long_tailed):
    limits = np.linspace(0.1, 0.5, 19)
    targets, logits, genres, prevalence = long_tailed
    result = evaluate_arrays(targets, logits, genres, prevalence, Decisions.plain(limits), **OF)
    assert result.thresholds[-1].label == "chosen (per genre)"
    assert result.thresholds[-1].threshold == limits.tolist()
    assert result.per_genre["threshold"].tolist() == limits.tolist()
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False)) == result.to_dict()
    text = render(result)
    assert "prevalence @ chosen " in text and "chosen: the thresholds of the model, one per genre" in text
    assert "model @ single of val 0." in text and max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("width", [80, 120])
def test_rendering_cuts_no_row_on_a_terminal(evaluation, width):
    text = render(evaluation, width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\u2026" not in text and "\x1b" not in text
    for row in evaluation.thresholds:
        line = next(line for line in lines if line.startswith(f" model @ {row.label} "))
        keys = "subset_accuracy micro_precision micro_recall micro_f1 macro_f1 micro_f0.5 predicted_per_sample"
        assert line.split()[-7:] == [f"{row.metrics[key]:.3f}" for key in keys.split()]
    for row in evaluation.baselines:
        assert sum(line.startswith(f" {row.label} ") for line in lines) == 1
    assert "macro-F1: mean over the 18 of 19 genres with positives" in text


def test_rendering_puts_the_model_beside_the_prevalence_baseline(evaluation):
    lines = [line.split() for line in render(evaluation).splitlines()]
    ranking = evaluation.ranking
    assert ["model", *(f"{v:.4f}" for v in (ranking["mAP"], ranking["roc_auc"], evaluation.loss))] in lines
    base = evaluation.baselines[0].ranking
    assert ["prevalence", "baseline", f"{base['mAP']:.4f}", "0.5000", f"{base['loss']:.4f}"] in lines


def test_rendering_lists_genres_by_support_and_names_verbatim(evaluation):
    text = render(evaluation).split("per genre, at the chosen threshold")[1]
    rows = [line.split() for line in text.splitlines() if len(line.split()) == 8][1:]
    assert sorted(row[0] for row in rows) == sorted(evaluation.genres)  # "[bold]..." is not markup
    support = [int(row[1]) for row in rows]
    assert support == sorted(support, reverse=True)
    assert rows[-1] == ["Never", "0", "-", "-", "0.341", "-", "-", "-"]


def test_a_terminal_of_80_columns_shows_each_row_in_a_line(evaluation):
    """Names that do not fit are folded in their column. Without a terminal, no name of this length is folded."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    evaluation = dataclasses.replace(evaluation, per_genre=evaluation.per_genre.replace("Never", "Never " * 7))
    with os.fdopen(theirs, "w") as terminal:
        found = report_console(terminal)
        assert found.width == 80 and found.is_terminal
    os.close(ours)
    for width, rows in ((80, 3), (110, 1)):
        assert sum("Never" in line for line in render(evaluation, width).splitlines()) == rows


def test_rendering_to_an_ascii_stream(evaluation):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    evaluation.render(report_console(stream))
    stream.flush()
    assert b"always top-2" in raw.getvalue()


def test_rendering_on_a_narrow_stream_keeps_every_number_whole(evaluation):
    text = render(evaluation, width=60)
    for row in evaluation.thresholds:
        assert f"{row.metrics['micro_f1']:.3f}" in text
        assert f"{row.metrics['predicted_per_sample']:.3f}" in text


def test_fewer_genres_than_k():
    truth, scores = np.array([[True], [False]]), np.array([[2.0], [-1.0]])
    result = evaluate_arrays(truth, scores, ["A"], np.array([0.5]), one_threshold(1, 0.5), **OF)
    assert [row.label for row in result.baselines if row.kind == "top_k"] == ["always top-1"]
    assert "always top-1" in render(result)
