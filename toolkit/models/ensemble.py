"""A head of several small networks: each sample trains one of them, and all of them answer.

A network with a hidden layer sees what a linear layer cannot, but on some thousand posters it is as unsure as it is
clever: another start gives other answers for rare genres. The mean of several is surer than each (Lakshminarayanan,
Pritzel, Blundell 2017, "deep ensembles"). Trained on their mean they would lean on each other and end as one wide
network; so a training batch is dealt out over them at random, and they learn from different samples in different order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from toolkit.device.transfer import to_device


class Ensemble(nn.Module):
    """K multi-layer perceptrons on the same features."""

    def __init__(self, width: int, hidden: Sequence[int], num_classes: int, members: int, dropout: float) -> None:
        """``width`` features in, ``hidden`` widths, ``num_classes`` logits out; dropout before each layer."""
        super().__init__()
        self.members = nn.ModuleList(
            nn.Sequential(nn.Dropout(dropout), *mlp(width, hidden, num_classes, dropout)) for _ in range(members)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, F) → (n, G) logits: in training each row's are those of a random member, otherwise the members' mean."""
        if not self.training:
            return torch.stack([member(x) for member in self.members]).mean(dim=0)
        return self._dealt(x)

    @torch.compiler.disable  # the members' numbers of rows are others in every pass
    def _dealt(self, x: torch.Tensor) -> torch.Tensor:
        # Drawn on the host, which must know how many rows each gets and would wait for the device to say so.
        which = torch.randint(len(self.members), (len(x),)).numpy()
        order = np.argsort(which, kind="stable")
        counts = np.bincount(which, minlength=len(self.members)).tolist()
        rows = x[to_device(order, x.device)].split(counts)
        # A member without rows gets gradients of zero all the same: DistributedDataParallel waits for them.
        logits = torch.cat([member(own) for member, own in zip(self.members, rows, strict=True)])
        return logits[to_device(np.argsort(order), x.device)]


def mlp(width: int, hidden: Sequence[int], num_classes: int, dropout: float) -> list[nn.Module]:
    """Layers of a perceptron: Linear, ReLU, Dropout for each of ``hidden``, then the last Linear."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU(inplace=True), nn.Dropout(dropout)]
        width = size
    return [*layers, nn.Linear(width, num_classes)]


def networks(classifier: nn.Module) -> list[nn.Module]:
    """What stands side by side in a classifier: the members of an ensemble, or the classifier itself."""
    return list(classifier.members) if isinstance(classifier, Ensemble) else [classifier]


def linears(network: nn.Module) -> list[nn.Linear]:
    """The Linear layers of a network, itself if it is one, in order."""
    return [module for module in network.modules() if isinstance(module, nn.Linear)]
