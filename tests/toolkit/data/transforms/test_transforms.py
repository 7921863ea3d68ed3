"""The reference transform is torchvision's to the byte; normalisation is its formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from toolkit.data.transforms.preprocessing import Preprocessing, center_crop, stretch


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 400), st.integers(8, 400), st.sampled_from([16, 31, 96]), st.sampled_from([1.0, 0.95, 0.875]))
def test_evaluation_crop_is_torchvisions(width, height, size, crop_pct):
    image = noise(width, height)
    short = max(size, round(size / crop_pct))
    reference = Compose([Resize(short, InterpolationMode.BILINEAR, antialias=True), CenterCrop(size)])
    assert np.array_equal(center_crop(image, size, crop_pct), np.asarray(reference(image)))


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 400), st.integers(8, 400), st.sampled_from([16, 31, 96]))
def test_stretching_is_torchvisions(width, height, size):
    image = noise(width, height)
    reference = Resize((size, size), InterpolationMode.BILINEAR, antialias=True)
    assert np.array_equal(stretch(image, size), np.asarray(reference(image)))


def test_the_preprocessing_fits_as_it_says():
    image = noise(40, 70)
    plain = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    cropped, stretched = Preprocessing(16, 0.8, *plain), Preprocessing(16, 0.8, *plain, fit="stretch")
    assert np.array_equal(cropped.square(image), center_crop(image, 16, 0.8))
    assert np.array_equal(stretched.square(image), stretch(image, 16))
    assert not np.array_equal(stretched.square(image), cropped.square(image))
    with pytest.raises(ValueError, match="crop, stretch"):
        Preprocessing(16, 0.8, *plain, fit="squash")


def test_normalisation():
    preprocessing = Preprocessing(4, 1.0, (0.5, 0.25, 0.0), (0.5, 0.25, 1.0))
    images = torch.randint(0, 256, (2, 4, 4, 3), dtype=torch.uint8)
    out = preprocessing.normalize(images)
    expected = (images.permute(0, 3, 1, 2) / 255.0 - torch.tensor([0.5, 0.25, 0.0]).view(3, 1, 1)) / torch.tensor(
        [0.5, 0.25, 1.0]
    ).view(3, 1, 1)
    assert out.shape == (2, 3, 4, 4) and out.dtype == torch.float32
    torch.testing.assert_close(out, expected)
    assert out.is_contiguous(memory_format=torch.channels_last)
