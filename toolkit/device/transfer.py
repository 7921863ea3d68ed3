"""Asynchronous copies to a device."""

from __future__ import annotations

import numpy as np
import torch


def to_device(values: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a small array to ``device`` without waiting. Later operations on the device can use the copy at once.

    For a GPU the array is first copied to pinned memory. A direct copy can wait until the GPU has finished all its
    work.
    """
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
