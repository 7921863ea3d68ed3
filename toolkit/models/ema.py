"""Exponential moving average of the weights (EMA), which is validated and saved instead of the last weights.

This is timm's ModelEmaV3 with its warm-up: after t updates the decay is at most 1 - t^(-2/3), so that the random start
has little weight in short runs (Crowson's rule; 0.99 is reached after 1,000 updates, 0.999 after 32,000). The whole
state is averaged, including frozen parts, which do not change. BatchNorm's running statistics are averaged too, because
those of the current weights do not match the activations of the averaged weights.
"""

from __future__ import annotations

from timm.utils import ModelEmaV3
from torch import nn


def build_ema(model: nn.Module, decay: float) -> ModelEmaV3 | None:
    """Return the average of ``model`` (unwrapped, with its initial weights), or None if ``decay`` is 0.

    Call ``update(model, step=N)`` after update N, from 1. ``.module`` is the averaged model, in evaluation mode.
    """
    if not decay:
        return None
    return ModelEmaV3(model, decay=decay, use_warmup=True).requires_grad_(False)
