"""Exponential moving average (EMA) of the weights. The average is validated and saved instead of the last weights.

The average is timm's ModelEmaV3 with warm-up. After t updates the decay is at most 1 - t^(-2/3) (Crowson's rule), so
that the random initial weights have little influence in short runs. The decay reaches 0.99 after 1,000 updates and
0.999 after 32,000. BatchNorm's running statistics are averaged, too, because the statistics of the current weights do
not match the activations of the averaged weights.
"""

from __future__ import annotations

import torch
from timm.utils import ModelEmaV3
from torch import nn

from toolkit.device.compat import lerp_tensors
from toolkit.device.tensor_lists import Copies


class MovingAverage(ModelEmaV3):
    """timm's average, with the same values, in two operations per update.

    timm collects the tensors of both models in each update, and copies every counter of BatchNorm by an operation of
    its own. A ResNet50 has 53 counters.
    """

    _found: tuple[nn.Module, list[torch.Tensor], list[torch.Tensor], Copies] | None = None
    """A model, the averaged tensors and their values in this model, and the tensors that are only copied."""

    def apply_update_(self, model: nn.Module, decay: float) -> None:
        """Move the average towards ``model``. After the first call, both models must keep their tensors."""
        if not self.foreach:  # the tensors are sharded
            super().apply_update_(model, decay)
            return
        if self._found is None or self._found[0] is not model:
            states = (part.state_dict(keep_vars=True).values() for part in (model, self.module))
            pairs = list(zip(*states, strict=True))
            floats = [pair for pair in pairs if pair[1].is_floating_point()]
            copies = Copies(pair for pair in pairs if not pair[1].is_floating_point())
            self._found = model, [own for _, own in floats], [value for value, _ in floats], copies
        _, own, values, copies = self._found
        lerp_tensors(own, values, weight=1.0 - decay)
        copies.forward()


def build_ema(model: nn.Module, decay: float) -> MovingAverage | None:
    """Return a moving average that starts at the weights of the unwrapped ``model``. None if ``decay`` is 0.

    Call ``update(model, step=N)`` after update N, counted from 1. ``.module`` is the averaged model in evaluation mode.
    """
    if not decay:
        return None
    return MovingAverage(model, decay=decay, use_warmup=True).requires_grad_(False)
