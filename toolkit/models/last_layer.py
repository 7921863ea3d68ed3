"""The last layer in float32, whatever autocast says.

Logits of bfloat16 have eight bits: of 400 posters hardly 200 get a logit of their own, so that rankings tie, and a
layer that standardising was folded into subtracts large numbers from each other. The layer costs next to nothing.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import nn
from torch.nn import functional as F

from toolkit.device.compat import change_class
from toolkit.models.ensemble import linears, networks


class Float32Linear(nn.Linear):
    """nn.Linear that leaves autocast; the same parameters under the same names."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., F) of any floating type → (..., G) float32."""
        device = x.device.type
        outside = torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
        with outside:
            bias = None if self.bias is None else self.bias.float()
            return F.linear(x.float(), self.weight.float(), bias)


def keep_float32(model: nn.Module, prefixes: tuple[str, ...]) -> None:
    """Make the last Linear below each of ``prefixes`` (``("fc.",)``) one that leaves autocast, in place."""
    for layer in last_linears(model, prefixes):
        if type(layer) is nn.Linear:  # a subclass knows what it does
            change_class(layer, Float32Linear)


def last_linears(model: nn.Module, prefixes: tuple[str, ...]) -> list[nn.Linear]:
    """The last Linear below each prefix, of each member where an ensemble is; none for classifiers that have none."""
    modules = dict(model.named_modules())
    classifiers = [modules[prefix.rstrip(".")] for prefix in prefixes if prefix.rstrip(".") in modules]
    return [layer for classifier in classifiers for network in networks(classifier) for layer in linears(network)[-1:]]
