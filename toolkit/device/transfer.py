"""Asynchronous copies to a device."""

from __future__ import annotations

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
    starts, size = [], 0
    for array in arrays:
        starts.append(size)
        size += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    packed = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    memory = packed.numpy()
    for start, array in zip(starts, arrays, strict=True):
        memory[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    copied = packed.to(device, non_blocking=True)
    return [
        copied[start : start + array.nbytes].view(torch.from_numpy(array).dtype).view(array.shape)
        for start, array in zip(starts, arrays, strict=True)
    ]
