"""The last layer in float32, even under autocast.

bfloat16 has only eight significant bits. In bfloat16, 400 posters have only about 200 different logits, so that
rankings have ties. With train.standardize, logits are differences of large numbers, so rounding errors are larger.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import nn
from torch.nn import functional as F

from toolkit.device.compat import change_class
from toolkit.models.ensemble import linears, networks


class Float32Linear(nn.Linear):
    """nn.Linear that disables autocast, with the same parameters under the same names."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., G) float32 logits of (..., F) inputs of any floating-point type."""
        device = x.device.type
        outside = torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
        with outside:
            bias = None if self.bias is None else self.bias.float()
            return F.linear(x.float(), self.weight.float(), bias)


def keep_float32(model: nn.Module, prefixes: tuple[str, ...]) -> None:
    """Convert the layers of `last_linears` to Float32Linear, in place."""
    for layer in last_linears(model, prefixes):
        if type(layer) is nn.Linear:  # subclasses may have another forward pass
            change_class(layer, Float32Linear)


def last_linears(model: nn.Module, prefixes: tuple[str, ...]) -> list[nn.Linear]:
    """Return the last Linear of each network in the classifiers. ``prefixes``: names with a dot, e.g. ``("fc.",)``."""
    modules = dict(model.named_modules())
    classifiers = [modules[prefix.rstrip(".")] for prefix in prefixes if prefix.rstrip(".") in modules]
    return [layer for classifier in classifiers for network in networks(classifier) for layer in linears(network)[-1:]]
