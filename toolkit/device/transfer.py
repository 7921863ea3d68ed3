"""Asynchronous copies to a device."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch

#: Arrays that are copied together start at multiples of this number of bytes. It fits every type and vector load.
ALIGNMENT = 64


def to_device(values: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a small array to ``device`` without waiting. Later operations on the device can use the copy at once.

    For a GPU the array is first copied to pinned memory. A direct copy can wait until the GPU has finished all its
    work.
    """
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def to_device_together(device: torch.device, *arrays: np.ndarray) -> list[torch.Tensor]:
    """Copy small arrays of any types to ``device`` without waiting, in one copy. Return one tensor for each array.

    On a CPU, the tensors use the memory of the arrays.
    """
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    return _parts(_packed(arrays, device.type == "cuda").to(device, non_blocking=True), arrays)


def _packed(arrays: Sequence[np.ndarray], pinned: bool) -> torch.Tensor:
    """Return the bytes of all arrays as one uint8 tensor, in pinned memory if ``pinned``."""
    packed = torch.empty(_starts(arrays)[-1], dtype=torch.uint8, pin_memory=pinned)
    for part, array in zip(_parts(packed, arrays), arrays, strict=True):
        part.numpy()[...] = array
    return packed


def _parts(packed: torch.Tensor, arrays: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """Return the parts of ``packed``, with the types and shapes of ``arrays``."""
    return [
        packed[start : start + array.nbytes].view(torch.from_numpy(array).dtype).view(array.shape)
        for start, array in zip(_starts(arrays), arrays, strict=False)
    ]


def _starts(arrays: Sequence[np.ndarray]) -> list[int]:
    """Return the first byte of each array in the packed memory, and the number of all bytes."""
    sizes = [-(-array.nbytes // ALIGNMENT) * ALIGNMENT for array in arrays]
    return [0, *accumulate(sizes)]
