"""Moving average of the weights (EMA): smoother than the last update, and what is then validated and saved.

timm's ModelEmaV3, with its warm-up: after t updates the decay is at most 1 - t^(-2/3), so the average of a short run is
not its random start (Crowson's rule; decay 0.99 is reached after 1,000 updates, 0.999 after 32,000). The whole state
is averaged, frozen parts included, which stay what they are. BatchNorm's running statistics are averaged like weights:
those of the live weights describe activations that the averaged weights do not give.
"""

from __future__ import annotations

from timm.utils import ModelEmaV3
from torch import nn


def build_ema(model: nn.Module, decay: float) -> ModelEmaV3 | None:
    """The average of ``model`` (unwrapped, with its first weights), or None for decay 0: no average is wanted.

    ``update(model, step=N)`` after update N, counted from 1; ``.module`` is the averaged model, in evaluation mode.
    """
    if not decay:
        return None
    return ModelEmaV3(model, decay=decay, use_warmup=True).requires_grad_(False)
