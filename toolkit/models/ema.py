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

from toolkit.device.compat import copy_tensors, lerp_tensors


class MovingAverage(ModelEmaV3):
    """timm's average, with the same values, in two operations per update.

    timm collects the tensors of both models in each update, and copies every counter of BatchNorm by an operation of
    its own. A ResNet50 has 53 counters.
    """

    _pairs: _Pairs | None = None

    def apply_update_(self, model: nn.Module, decay: float) -> None:
        """Move the average towards ``model``."""
        if not self.foreach:  # the tensors are sharded
            super().apply_update_(model, decay)
            return
        if self._pairs is None or self._pairs.model is not model:
            self._pairs = _Pairs(self.module, model)
        own, values = self._pairs.averaged, self._pairs.values()
        lerp_tensors(own, values[: len(own)], weight=1.0 - decay)
        if self._pairs.copied:
            copy_tensors(self._pairs.copied, values[len(own) :])


class _Pairs:
    """The tensors of an average and the tensors of its model, found once.

    ``averaged`` are floating-point tensors of the average, and ``copied`` are its other tensors (counters).
    """

    def __init__(self, average: nn.Module, model: nn.Module) -> None:
        self.model = model
        states = (part.state_dict(keep_vars=True).values() for part in (average, model))
        pairs = sorted(zip(*states, strict=True), key=lambda pair: not pair[0].is_floating_point())
        self.averaged = [own for own, _ in pairs if own.is_floating_point()]
        self.copied = [own for own, _ in pairs if not own.is_floating_point()]
        buffers = {id(b): (m, name) for m in model.modules() for name, b in m.named_buffers(recurse=False)}
        self.sources = [buffers.get(id(value), value) for _, value in pairs]
        """For a buffer its module and name, because a forward pass can put another tensor in its place."""

    def values(self) -> list[torch.Tensor]:
        """Return the model's tensors, first those that are averaged."""
        return [getattr(*source) if isinstance(source, tuple) else source for source in self.sources]


def build_ema(model: nn.Module, decay: float) -> MovingAverage | None:
    """Return a moving average that starts at the weights of the unwrapped ``model``. None if ``decay`` is 0.

    Call ``update(model, step=N)`` after update N, counted from 1. ``.module`` is the averaged model in evaluation mode.
    """
    if not decay:
        return None
    return MovingAverage(model, decay=decay, use_warmup=True).requires_grad_(False)
