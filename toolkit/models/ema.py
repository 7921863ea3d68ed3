"""Exponential moving average (EMA) of the weights. The average is validated and saved instead of the last weights.

The average is timm's ModelEmaV3 with warm-up. After t updates the decay is at most 1 - t^(-2/3) (Crowson's rule), so
that the random initial weights have little influence in short runs. The decay reaches 0.99 after 1,000 updates and
0.999 after 32,000. BatchNorm's running statistics are averaged, too, because the statistics of the current weights do
not match the activations of the averaged weights.
"""

from __future__ import annotations

from timm.utils import ModelEmaV3
from torch import nn


def build_ema(model: nn.Module, decay: float) -> ModelEmaV3 | None:
    """Return a moving average that starts at the weights of the unwrapped ``model``. None if ``decay`` is 0.

    Call ``update(model, step=N)`` after update N, counted from 1. ``.module`` is the averaged model in evaluation mode.
    """
    if not decay:
        return None
    return ModelEmaV3(model, decay=decay, use_warmup=True).requires_grad_(False)
