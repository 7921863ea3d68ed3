"""Asynchronous copies to a device."""

from __future__ import annotations

import numpy as np
import torch


def to_device(values: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a small array to ``device`` without a wait; operations that are queued later can use it.

    For a GPU the array is pinned first: a copy from other memory may wait for all queued work of the device.
    """
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
