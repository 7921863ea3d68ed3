"""What goes to a device together arrives as it was, and constants are what they are called."""

from __future__ import annotations

import numpy as np
import torch

from toolkit.device.constants import pixel_centres, whole_numbers
from toolkit.device.transfer import _packed, _parts, to_device_together

ARRAYS = [
    np.arange(5, dtype=np.int64),
    np.array([[True, False, True]]),
    np.random.default_rng(0).normal(size=(3, 2, 7)).astype(np.float32),
    np.zeros((0, 4), dtype=np.float32),
    np.arange(12.0).reshape(3, 4).T,  # not contiguous
    np.array([7], dtype=np.uint8),
]


def test_packed_arrays_come_out_as_they_went_in():
    packed = _packed(ARRAYS, pinned=False)
    assert packed.dtype == torch.uint8
    for array, part in zip(ARRAYS, _parts(packed, ARRAYS), strict=True):
        assert part.shape == array.shape and torch.equal(part, torch.from_numpy(array))
        assert part.data_ptr() % 16 == packed.data_ptr() % 16 or not part.numel()


def test_shapes_and_types_are_the_same_on_every_device():
    for device in (torch.device("cpu"), torch.device("meta")):
        for array, tensor in zip(ARRAYS, to_device_together(device, *ARRAYS), strict=True):
            assert tensor.device == device and tensor.shape == array.shape
            assert tensor.dtype == torch.from_numpy(array).dtype


def test_constants_are_numbers_and_centres_of_pixels():
    for count in (1, 512, 513, 1300):
        numbers, centres = (make(count, torch.device("cpu")) for make in (whole_numbers, pixel_centres))
        assert numbers.dtype == torch.int64 and numbers.tolist() == list(range(count))
        assert centres.dtype == torch.float32 and torch.equal(centres, numbers + 0.5)
    with torch.inference_mode():
        assert not whole_numbers(70_000, torch.device("cpu")).is_inference()
