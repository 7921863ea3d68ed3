"""Copies to a device that nothing waits for."""

from __future__ import annotations

import numpy as np
import torch


def to_device(values: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """A small array of the host on ``device``, for the kernels that are queued next; nothing waits for it.

    A GPU takes it from pinned memory: of other memory the driver may first wait for all that the device has to do.
    """
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
