"""A head of several small networks: each sample trains one of them, and the output is their mean.

A network with a hidden layer can represent more than a linear layer. On some thousand posters, however, its outputs for
rare genres vary with the random start. The mean of several networks varies less (Lakshminarayanan, Pritzel, Blundell
2017, "deep ensembles"). Networks trained on their mean output would become one wide network. So each sample of a
training batch trains one network at random, and the networks learn from different samples in different orders.
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
        """Build ``members`` networks of ``width`` inputs, ``hidden`` widths and ``num_classes`` logits.

        Each layer has dropout before it.
        """
        super().__init__()
        self.members = nn.ModuleList(
            nn.Sequential(nn.Dropout(dropout), *mlp(width, hidden, num_classes, dropout)) for _ in range(members)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, F) → (n, G) logits: in training each row is from a random member, otherwise the mean of the members."""
        if not self.training:
            return torch.stack([member(x) for member in self.members]).mean(dim=0)
        return self._dealt(x)

    @torch.compiler.disable  # the number of rows of each member changes in every pass
    def _dealt(self, x: torch.Tensor) -> torch.Tensor:
        # Drawn on the CPU, which needs the number of rows of each member: on a GPU it would wait for the device.
        which = torch.randint(len(self.members), (len(x),)).numpy()
        order = np.argsort(which, kind="stable")
        counts = np.bincount(which, minlength=len(self.members)).tolist()
        rows = x[to_device(order, x.device)].split(counts)
        # A member without rows gets gradients of zero too: DistributedDataParallel waits for them.
        logits = torch.cat([member(own) for member, own in zip(self.members, rows, strict=True)])
        return logits[to_device(np.argsort(order), x.device)]


def mlp(width: int, hidden: Sequence[int], num_classes: int, dropout: float) -> list[nn.Module]:
    """Return the layers of a perceptron: Linear, ReLU, Dropout for each of ``hidden``, then the last Linear."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU(inplace=True), nn.Dropout(dropout)]
        width = size
    return [*layers, nn.Linear(width, num_classes)]


def networks(classifier: nn.Module) -> list[nn.Module]:
    """Return the parallel networks of a classifier: the members of an ensemble, or the classifier itself."""
    return list(classifier.members) if isinstance(classifier, Ensemble) else [classifier]


def linears(network: nn.Module) -> list[nn.Linear]:
    """Return the Linear layers of a network in order, including the network itself if it is a Linear."""
    return [module for module in network.modules() if isinstance(module, nn.Linear)]
