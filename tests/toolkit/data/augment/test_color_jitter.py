"""Colour changes are torchvision's, each sample by its own factor; jitter draws its factors as ColorJitter does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms.v2 import functional as TF

from toolkit.config.augmentation_registry import AugmentConfig
from toolkit.data.augment.color_jitter import brightness, contrast, jitter, saturation, sharpness
from toolkit.data.sampling.rng import Stream, uniforms

CHANGES: list[tuple[Callable, Callable]] = [
    (brightness, TF.adjust_brightness),
    (contrast, TF.adjust_contrast),
    (saturation, TF.adjust_saturation),
    (sharpness, TF.adjust_sharpness),
]
CLOSE = 1e-3  # grey levels: nothing but the order of sums and products differs


def levels(n: int, side: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, 3, side, side))).float()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(CHANGES),
    st.lists(st.floats(0.0, 2.0, width=32), min_size=1, max_size=4),
    st.sampled_from([1, 2, 3, 17]),
    st.integers(0, 99),
)
def test_each_sample_is_changed_as_torchvision_does_by_its_factor(change, factors, side, seed):
    ours, theirs = change
    images = levels(len(factors), side, seed)
    found = ours(images, torch.tensor(factors))
    expected = torch.stack([theirs(i / 255, f) * 255 for i, f in zip(images, factors, strict=True)])
    assert (found - expected).abs().max() <= CLOSE


@pytest.mark.parametrize("change", [brightness, contrast, saturation, sharpness])
def test_factor_one_changes_nothing_and_others_do(change: Callable):
    images = levels(2, 16)
    assert torch.equal(change(images, torch.ones(2)), images)
    assert not torch.equal(change(images, torch.full((2,), 0.6)), images)


@pytest.mark.parametrize("change", [brightness, contrast, saturation, sharpness])
def test_a_sample_does_not_see_its_batch(change: Callable):
    images, factors = levels(9, 33), torch.linspace(0.2, 1.9, 9)
    together = change(images, factors)
    for row in range(9):
        assert torch.equal(change(images[row : row + 1], factors[row : row + 1])[0], together[row])


def test_jitter_changes_brightness_then_contrast_then_saturation():
    images, keys = levels(5, 12), np.array([3, 1, 4, 15, 9])
    config = AugmentConfig(brightness=0.4, contrast=0.3, saturation=0.9)
    u = uniforms(7, 2, keys, 3, Stream.COLOUR)
    found = jitter(images, config, 7, 2, keys)
    for row in range(5):
        one = images[row] / 255
        one = TF.adjust_brightness(one, 0.6 + 0.8 * u[row, 0])
        one = TF.adjust_contrast(one, 0.7 + 0.6 * u[row, 1])
        one = TF.adjust_saturation(one, 0.1 + 1.8 * u[row, 2])
        assert (found[row] - one * 255).abs().max() <= CLOSE


def test_brightness_factors_are_distributed_as_colorjitters():
    """Of grey 100 the brightness factor is what is left over 100: uniform from 0.6 to 1.4."""
    images = torch.full((4000, 3, 1, 1), 100.0)
    factors = jitter(images, AugmentConfig(brightness=0.4), 0, 0, np.arange(4000))[:, 0, 0, 0].numpy() / 100
    assert stats.kstest(factors, "uniform", args=(0.6, 0.8)).pvalue > 1e-4


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_each_option_switches_one_change_on(name: str):
    config = AugmentConfig()
    setattr(config, name, 0.5)
    images = levels(3, 8)
    assert not torch.equal(jitter(images, config, 0, 0, np.arange(3)), images)
