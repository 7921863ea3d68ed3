"""Rectangles are distributed as torchvision's and timm's; their noise is uniform and depends on key and pixel alone."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import RandomErasing

from toolkit.config.augmentation_registry import AugmentConfig
from toolkit.data.augment.random_erasing import AREA, ASPECTS, box_masks, erase, erased_boxes, noise, noise_words


@settings(max_examples=100, deadline=None)
@given(st.integers(4, 300), st.floats(0.0, 1.0), st.integers(0, 2**40))
def test_rectangles_lie_inside_and_spare_something(side, probability, seed):
    boxes = erased_boxes(side, probability, seed, 1, np.arange(40))
    left, top, right, bottom = boxes.T
    some = right > left
    assert (boxes[~some] == 0).all()
    assert (bottom[some] > top[some]).all() and (boxes >= 0).all() and (boxes <= side).all()
    assert (right - left < side).all() and (bottom - top < side).all()


def test_rectangles_are_distributed_as_torchvisions():
    boxes = erased_boxes(64, 1.0, 0, 0, np.arange(4000))
    torch.manual_seed(0)
    image = torch.zeros(3, 64, 64)
    theirs = np.array([RandomErasing.get_params(image, AREA, ASPECTS, [0.0])[:4] for _ in range(4000)])
    ours = np.stack([boxes[:, 1], boxes[:, 0], boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]], axis=1)
    for column in range(4):  # top, left, height, width
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-4


def test_the_share_of_erased_samples_is_the_probability():
    for probability in (0.0, 0.25, 1.0):
        boxes = erased_boxes(64, probability, 3, 0, np.arange(8000))
        assert abs((boxes[:, 2] > 0).mean() - probability) <= 0.02 * (0 < probability < 1)


def test_noise_is_uniform_and_its_pixels_channels_and_samples_are_independent():
    found = noise(torch.from_numpy(noise_words(5, 2, np.arange(6))), 96).float().numpy()
    assert found.shape == (6, 3, 96, 96)
    counts = np.bincount(found.astype(int).ravel(), minlength=256)
    assert len(counts) == 256 and stats.chisquare(counts).pvalue > 1e-4
    pixels = found[:, :, :-1, :-1].reshape(18, -1)
    beside = np.concatenate([pixels, found[:, :, :-1, 1:].reshape(18, -1), found[:, :, 1:, :-1].reshape(18, -1)])
    correlation = np.corrcoef(beside) - np.eye(len(beside))
    assert np.abs(correlation).max() < 0.05


def test_inside_of_the_rectangle_is_the_keys_noise_and_outside_nothing_changes():
    keys = np.array([5, 17, 99, 3])
    images = torch.full((4, 3, 32, 32), 300.0)  # no level that noise could have
    config = AugmentConfig(erase=0.6)
    found = erase(images, config, 1, 2, keys)
    boxes = erased_boxes(32, 0.6, 1, 2, keys)
    assert 0 < (boxes[:, 2] > 0).sum() < 4
    expected = noise(torch.from_numpy(noise_words(1, 2, keys)), 32).float()
    for row, (left, top, right, bottom) in enumerate(boxes.tolist()):
        inside = torch.zeros(32, 32, dtype=torch.bool)
        inside[top:bottom, left:right] = True
        assert torch.equal(found[row][:, inside], expected[row][:, inside])
        assert (found[row][:, ~inside] == 300).all()
    assert (images == 300).all()
    order = np.array([2, 0, 3, 1])
    assert torch.equal(erase(images, config, 1, 2, keys[order]), found[order])


def test_masks_are_the_pixels_of_boxes():
    mask = box_masks(torch.tensor([[1, 2, 4, 3], [0, 0, 0, 0]]), 5)
    assert mask.shape == (2, 1, 5, 5) and not mask[1].any()
    assert torch.nonzero(mask[0, 0]).tolist() == [[2, 1], [2, 2], [2, 3]]
