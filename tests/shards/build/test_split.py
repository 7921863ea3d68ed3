"""Splits: pure, whole groups, and near the due share of every label."""

import ast
import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shards.build.split import split_samples

ROOT = Path(__file__).resolve().parents[3]
SHARED = ROOT.parent / "shared"
FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}
Labels = list[list[int]]


def generated(seed: int, n: int, n_labels: int, grouped: float = 0.15) -> tuple[list[str], Labels, NDArray]:
    """Correlated, long-tailed labels; a share `grouped` of the samples is in groups of 2 to 5."""
    rng = np.random.default_rng(seed)
    topics = rng.normal(size=(n, 4)) @ rng.normal(size=(4, n_labels))
    has = rng.random((n, n_labels)) < 1 / (1 + np.exp(np.linspace(-0.6, 6, n_labels) - topics))
    groups, order, at = np.arange(n), rng.permutation(n), 0
    while at < n * grouped:
        size = int(rng.integers(2, 6))
        groups[order[at : at + size]] = order[at]
        at += size
    return [f"tt{k:07d}" for k in range(n)], [np.flatnonzero(row).tolist() for row in has], groups


def real(path: Path, column: int) -> tuple[list[str], Labels]:
    if not path.is_file():
        pytest.skip(f"real labels are not at {path}")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    genres = [ast.literal_eval(row[column]) for row in rows]
    number = {name: k for k, name in enumerate(sorted({name for row in genres for name in row}))}
    return [row[0] for row in rows], [[number[name] for name in row] for row in genres]


def tally(labels: Labels, split: NDArray[np.int8], splits: int = 3) -> NDArray[np.int64]:
    """Samples per split and label, (splits, labels)."""
    width = 1 + max((label for row in labels for label in row), default=-1)
    counts = np.zeros((splits, width), dtype=np.int64)
    for s, row in zip(split.tolist(), labels, strict=True):
        counts[s, row] += 1
    return counts


def assert_near_due(labels: Labels, split: NDArray[np.int8]) -> None:
    shares = np.array(list(FRACTIONS.values()))
    counts = tally(labels, split)
    support = counts.sum(0)
    due = shares[:, None] * support
    common = support >= 30
    assert (np.abs(counts - due)[:, common] <= 0.2 * due[:, common] + 1e-9).all()
    sizes = np.bincount(split, minlength=3)
    assert (np.abs(sizes - shares * len(split)) <= max(0.01 * len(split), 2)).all()


def assert_whole(groups: NDArray[np.int64], split: NDArray[np.int8]) -> None:
    assert len(set(zip(groups.tolist(), split.tolist(), strict=True))) == len(set(groups.tolist()))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(1, 300), st.integers(1, 25), st.integers(-5, 5))
def test_result_depends_on_the_set_of_samples_only(seed: int, n: int, n_labels: int, split_seed: int) -> None:
    ids, labels, groups = generated(seed, n, n_labels)
    split = split_samples(ids, labels, groups, FRACTIONS, split_seed)
    assert split.shape == (n,) and split.dtype == np.int8
    assert_whole(groups, split)
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    renamed = rng.permutation(n)[groups[order]]  # group numbers are names too
    mixed = [labels[k][::-1] + labels[k][:1] for k in order]
    moved = split_samples([ids[k] for k in order], mixed, renamed, FRACTIONS, split_seed)
    assert (moved == split[order]).all()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(200, 1000), st.integers(2, 25), st.floats(0, 0.25))
def test_generated_sets_are_near_their_due(seed: int, n: int, n_labels: int, grouped: float) -> None:
    ids, labels, groups = generated(seed, n, n_labels, grouped)
    split = split_samples(ids, labels, groups, FRACTIONS, seed)
    assert_whole(groups, split)
    assert_near_due(labels, split)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.lists(st.integers(0, 40), max_size=5), st.integers(0, 30)), max_size=60),
    st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any),
)
def test_any_input_is_assigned_and_empty_splits_stay_empty(rows: list[tuple[list[int], int]], parts: list[int]) -> None:
    groups = np.array([group for _, group in rows], dtype=np.int64)
    fractions = {str(k): part / sum(parts) for k, part in enumerate(parts)}
    split = split_samples([str(k) for k in range(len(rows))], [row for row, _ in rows], groups, fractions, 0)
    assert split.shape == (len(rows),)
    assert all(parts[s] > 0 for s in split.tolist())
    assert_whole(groups, split)


@pytest.mark.parametrize("seed", range(6))
def test_real_labels(seed: int) -> None:
    ids, labels = real(SHARED / "posters" / "meta_processed.csv", 3)
    groups = generated(seed, len(ids), 1, 0.1 * (seed % 2))[2]
    split = split_samples(ids, labels, groups, FRACTIONS, seed)
    assert_near_due(labels, split)
    assert_whole(groups, split)
    counts = tally(labels, split)
    assert (counts[:, counts.sum(0) >= 3] > 0).all()
    assert (counts[0] > 0).all()  # a genre of one poster is in train


@pytest.mark.parametrize("seed", range(6))
def test_few_real_labels(seed: int) -> None:
    ids, labels = real(SHARED / "posters_large" / "meta.csv", 1)
    split = split_samples(ids, labels, np.arange(len(ids)), FRACTIONS, seed)
    assert_near_due(labels, split)
    counts = tally(labels, split)
    assert (counts[:, counts.sum(0) >= 5] > 0).all()
    assert (counts[0] > 0).all()  # a genre of one poster is in train


@pytest.mark.parametrize("support", range(1, 40))
def test_every_support(support: int) -> None:
    labels = [[0] if k < support else [1] for k in range(400)]
    split = split_samples([str(k) for k in range(400)], labels, np.arange(400), FRACTIONS, 3)
    assert_near_due(labels, split)
    rare = tally(labels, split)[:, 0]
    if support < 3:
        assert rare.tolist() == [support, 0, 0]
    else:
        assert rare.min() >= 1


def test_seeds_differ_and_fractions_order_counts() -> None:
    ids, labels, groups = generated(0, 400, 8)
    first = split_samples(ids, labels, groups, FRACTIONS, 0)
    assert (first != split_samples(ids, labels, groups, FRACTIONS, 1)).any()
    reverse = split_samples(ids, labels, groups, {"test": 0.1, "train": 0.9}, 0)
    assert np.bincount(reverse).tolist() == pytest.approx([40, 360], abs=4)


def test_a_huge_group_goes_where_it_fits() -> None:
    groups = np.where(np.arange(1000) < 300, 0, np.arange(1000))
    labels = [[k % 7] for k in range(1000)]
    split = split_samples([str(k) for k in range(1000)], labels, groups, FRACTIONS, 0)
    assert set(split[:300].tolist()) == {0}
    assert_near_due(labels, split)


def test_result_does_not_depend_on_the_process() -> None:
    code = (
        "import numpy as np; from shards.build.split import split_samples\n"
        "print(split_samples([f'a{k}' for k in range(90)], [[k % 4, k % 5] for k in range(90)],"
        " np.arange(90) // 2, {'train': .8, 'val': .1, 'test': .1}, 7).tolist())"
    )
    outputs = set()
    for hash_seed in ("0", "1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=env, check=True, capture_output=True, text=True
        )
        outputs.add(done.stdout)
    here = split_samples(
        [f"a{k}" for k in range(90)], [[k % 4, k % 5] for k in range(90)], np.arange(90) // 2, FRACTIONS, 7
    )
    assert outputs == {f"{here.tolist()}\n"}
