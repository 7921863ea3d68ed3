"""Constant tensors on a device. They are made once, because making one in each update starts work on the device."""

from __future__ import annotations

import functools

import torch

#: Lengths of constants are multiples of this number, so that few of them are needed.
UNIT = 512


def whole_numbers(count: int, device: torch.device) -> torch.Tensor:
    """Return (count,) int64: 0 to ``count`` - 1. Do not change the values, because later calls return them again."""
    return _constants(-(-count // UNIT) * UNIT, device)[0][:count]


def pixel_centres(count: int, device: torch.device) -> torch.Tensor:
    """Return (count,) float32: 0.5 to ``count`` - 0.5. Do not change the values."""
    return _constants(-(-count // UNIT) * UNIT, device)[1][:count]


@functools.lru_cache(maxsize=64)
def _constants(count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode(False):  # training cannot use an inference tensor
        numbers = torch.arange(count, device=device)
        return numbers, numbers + 0.5
