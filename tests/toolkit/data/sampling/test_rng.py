"""Random crops: inside the image, distributed as torchvision's, and a function of (seed, epoch, sample) alone."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from toolkit.data.sampling.rng import Stream, random_crops, uniforms

SCALE, RATIO = (0.35, 1.0), (3 / 4, 4 / 3)


def crops(samples: np.ndarray, h: int, w: int, seed: int = 0, epoch: int = 0, flip: float = 0.5):
    n = len(samples)
    return random_crops(seed, epoch, samples, np.full(n, h), np.full(n, w), SCALE, RATIO, flip)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 800), st.integers(1, 800), st.integers(0, 2**40), st.integers(0, 100))
def test_boxes_lie_inside_and_are_not_empty(h, w, seed, epoch):
    boxes, flips = crops(np.arange(50), h, w, seed, epoch)
    left, top, right, bottom = boxes.T
    assert (left >= 0).all() and (top >= 0).all() and (right <= w).all() and (bottom <= h).all()
    assert (right > left).all() and (bottom > top).all()
    assert flips.dtype == bool


def test_parameters_depend_on_the_sample_not_on_its_place():
    samples = np.random.default_rng(0).permutation(1000)
    boxes, flips = crops(np.arange(1000), 268, 182)
    shuffled_boxes, shuffled_flips = crops(samples, 268, 182)
    assert (shuffled_boxes == boxes[samples]).all() and (shuffled_flips == flips[samples]).all()
    other, _ = crops(np.arange(1000), 268, 182, epoch=1)
    assert (other != boxes).any(axis=1).mean() > 0.99


def test_uniforms_are_uniform_and_independent():
    u = uniforms(5, 2, np.arange(20_000), 4)
    for column in range(4):
        assert stats.kstest(u[:, column], "uniform").pvalue > 1e-4
    correlation = np.corrcoef(np.concatenate([u[:-1], u[1:]], axis=1).T)
    assert np.abs(correlation - np.eye(8)).max() < 0.03
    assert abs(np.corrcoef(uniforms(5, 3, np.arange(20_000), 1)[:, 0], u[:, 0])[0, 1]) < 0.03


def test_streams_are_independent_and_more_columns_change_none():
    every = np.concatenate([uniforms(5, 2, np.arange(20_000), 1, stream) for stream in Stream], axis=1)
    assert np.abs(np.corrcoef(every.T) - np.eye(len(Stream))).max() < 0.03
    assert np.array_equal(uniforms(5, 2, np.arange(9), 7)[:, :4], uniforms(5, 2, np.arange(9), 4))


def test_the_numbers_of_crops_are_the_same_as_ever():
    """Golden: runs of other versions stay comparable."""
    expected = [[0.8216223399098967, 0.08209969332185107], [0.81387297066837, 0.3064322616303422]]
    assert uniforms(5, 2, np.array([0, 7]), 2).tolist() == expected


def test_crops_are_distributed_as_torchvisions():
    boxes, flips = crops(np.arange(4000), 268, 182, seed=1)
    torch.manual_seed(0)
    image = torch.zeros(3, 268, 182)
    theirs = np.array([RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(4000)])
    ours = np.stack([boxes[:, 1], boxes[:, 0], boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]], axis=1)
    for column in range(4):  # top, left, height, width
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-4
    assert abs(flips.mean() - 0.5) < 0.03


def test_impossible_ratios_fall_back_to_a_central_crop():
    boxes, _ = random_crops(0, 0, np.arange(3), np.full(3, 1000), np.full(3, 10), (0.9, 1.0), RATIO, 0.0)
    assert boxes.tolist() == [[0, 493, 10, 506]] * 3  # 10 wide, 10 / (3/4) = 13 high, centred
