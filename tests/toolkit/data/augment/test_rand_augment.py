"""RandAugment's operations and strengths are torchvision's; which one a sample gets depends on its key alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from scipy import stats
from torchvision.transforms.v2 import InterpolationMode, RandAugment

from toolkit.config.augmentation_registry import AugmentConfig
from toolkit.data.augment.rand_augment import OPERATIONS, apply_operations, rand_augment
from toolkit.data.sampling.rng import Stream, uniforms

TWO = AugmentConfig(randaugment=2)

REFERENCE = RandAugment(interpolation=InterpolationMode.BILINEAR)
#: torchvision has float formulas for all but these, whose thresholds and histograms are meant for whole levels.
WHOLE = ("Posterize", "Solarize", "Equalize")
CLOSE = 0.01  # grey levels: places in float32, computed in another order


def levels(n: int, side: int, seed: int = 0) -> torch.Tensor:
    """Smooth in the first image, noise in the others."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    images[0] = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
    return torch.from_numpy(images).permute(0, 3, 1, 2).float()


def by_torchvision(image: torch.Tensor, name: str, magnitude: int, sign: float) -> torch.Tensor:
    """One operation on one (3, S, S) image of levels, of torchvision's own table of strengths."""
    strengths, signed = REFERENCE._AUGMENTATION_SPACE[name]
    found = strengths(31, *image.shape[1:])
    strength = 0.0 if found is None else float(found[magnitude])
    given = image.to(torch.uint8) if name in WHOLE else image / 255
    out = REFERENCE._apply_image_or_video_transform(
        given, name, strength * (sign if signed else 1.0), InterpolationMode.BILINEAR, {torch.Tensor: None}
    )
    return out.float() if name in WHOLE else out * 255


@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=25, deadline=None)
@given(
    magnitude=st.integers(0, 30),
    sign=st.sampled_from([-1.0, 1.0]),
    side=st.sampled_from([8, 33, 40]),
    seed=st.integers(0, 9),
)
def test_each_operation_is_torchvisions(name, magnitude, sign, side, seed):
    images = levels(2, side, seed)
    chosen = np.full(2, OPERATIONS.index(name))
    found = apply_operations(images, chosen, np.full(2, sign), magnitude)
    expected = torch.stack([by_torchvision(image, name, magnitude, sign) for image in images])
    difference = (found - expected).abs()
    if name == "Solarize":
        # torchvision's threshold is a float32 fraction, on either side of the whole level that it means
        difference[(images - 255 * (1 - magnitude / 30)).abs() < 1e-3] = 0
    assert difference.max() <= CLOSE


def test_the_operations_are_torchvisions_all_of_them():
    assert sorted(OPERATIONS) == sorted(REFERENCE._AUGMENTATION_SPACE)


def test_equalize_is_pillows():
    images = levels(3, 31)
    found = apply_operations(images, np.full(3, OPERATIONS.index("Equalize")), np.ones(3), 9)
    for image, equalized in zip(images, found, strict=True):
        pixels = Image.fromarray(image.permute(1, 2, 0).to(torch.uint8).numpy())
        expected = np.asarray(ImageOps.equalize(pixels))
        assert np.array_equal(equalized.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "Identity"])
def test_each_operation_changes_a_dim_image(name: str):
    images = levels(2, 24)[1:] * 0.5 + 30
    chosen = np.array([OPERATIONS.index(name)])
    strength = 30 if name == "Solarize" else 9
    changed = apply_operations(images, chosen, np.ones(1), strength)
    assert (changed - images).abs().mean() > 0.5
    assert changed.min() >= 0 and changed.max() <= 255


def test_a_mixed_batch_is_its_samples_one_by_one():
    n = 3 * len(OPERATIONS)
    images, rng = levels(n, 19), np.random.default_rng(1)
    chosen = rng.permutation(np.repeat(np.arange(len(OPERATIONS)), 3))
    signs = rng.choice([-1.0, 1.0], n)
    together = apply_operations(images, chosen, signs, 11.5)
    for row in range(n):
        one = slice(row, row + 1)
        assert torch.equal(apply_operations(images[one], chosen[one], signs[one], 11.5)[0], together[row])


def test_the_arguments_stay_as_they_are():
    images = levels(20, 9)
    before = images.clone()
    rand_augment(images, AugmentConfig(randaugment=3, magnitude=20.0), 0, 0, np.arange(20))
    assert torch.equal(images, before)


def test_keys_decide_and_layers_follow_each_other():
    images, keys = levels(30, 11), np.arange(100, 130)
    u = uniforms(3, 5, keys, 4, Stream.RANDAUGMENT)
    expected = images
    for column in (0, 2):
        chosen = np.floor(u[:, column] * 14).astype(np.int64)
        expected = apply_operations(expected, chosen, np.where(u[:, column + 1] < 0.5, -1.0, 1.0), 9.0)
    found = rand_augment(images, TWO, 3, 5, keys)
    assert torch.equal(found, expected)
    order = np.random.default_rng(0).permutation(30)
    assert torch.equal(rand_augment(images[order], TWO, 3, 5, keys[order]), found[order])
    assert not torch.equal(rand_augment(images, TWO, 3, 6, keys), found)


def test_operations_are_equally_likely(monkeypatch: pytest.MonkeyPatch):
    seen: list[np.ndarray] = []

    def note(images, chosen, signs, magnitude):
        seen.append(chosen * 2 + (signs > 0))
        return images

    monkeypatch.setattr("toolkit.data.augment.rand_augment.apply_operations", note)
    rand_augment(torch.zeros(1), TWO, 0, 0, np.arange(20_000))
    for layer in seen:
        assert stats.chisquare(np.bincount(layer, minlength=28)).pvalue > 1e-4
