"""The head "ensemble": several small networks. Each sample trains one network. The output is the mean of all networks.

A network with a hidden layer can represent more than a linear layer. On a few thousand posters, however, the
outputs of such a network for rare genres depend on the random initial weights. The mean of several networks varies less
(Lakshminarayanan, Pritzel, Blundell 2017, "deep ensembles"). For each sample of a training batch, one network is drawn
at random. If the loss used the mean output instead, the networks would act as one wide network.
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
        """Build ``members`` networks with dropout before each layer. Each network maps ``width`` inputs to logits."""
        super().__init__()
        self.members = nn.ModuleList(
            nn.Sequential(nn.Dropout(dropout), *mlp(width, hidden, num_classes, dropout)) for _ in range(members)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, F) features to (n, G) logits: the mean of all members. In training, a random member maps each row."""
        if not self.training:
            return torch.stack([member(x) for member in self.members]).mean(dim=0)
        return self._random_members(x)

    @torch.compiler.disable  # the number of samples of each member changes in every pass
    def _random_members(self, x: torch.Tensor) -> torch.Tensor:
        # Draw on the CPU, because `split` needs the counts there. Otherwise the CPU would have to wait for the GPU.
        which = torch.randint(len(self.members), (len(x),)).numpy()
        order = np.argsort(which, kind="stable")
        counts = np.bincount(which, minlength=len(self.members)).tolist()
        rows = x[to_device(order, x.device)].split(counts)
        # Members without samples are called, too. They get zero gradients, for which DistributedDataParallel waits.
        logits = torch.cat([member(own) for member, own in zip(self.members, rows, strict=True)])
        return logits[to_device(np.argsort(order), x.device)]


def mlp(width: int, hidden: Sequence[int], num_classes: int, dropout: float) -> list[nn.Module]:
    """Return the layers of a perceptron: Linear, ReLU and Dropout for each width in ``hidden``, then a last Linear."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU(inplace=True), nn.Dropout(dropout)]
        width = size
    return [*layers, nn.Linear(width, num_classes)]


def networks(classifier: nn.Module) -> list[nn.Module]:
    """Return the members of an ensemble. Return any other classifier as a list with one element."""
    return list(classifier.members) if isinstance(classifier, Ensemble) else [classifier]


def linears(network: nn.Module) -> list[nn.Linear]:
    """Return the Linear layers of a network in order. The network may be a single Linear."""
    return [module for module in network.modules() if isinstance(module, nn.Linear)]
