"""Operations on lists of tensors. On a GPU, one operation on a list starts a few kernels in place of one per tensor."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from toolkit.device.compat import copy_tensors


class Copies:
    """Copies the values of some tensors to other tensors of the same types and shapes, one list per type."""

    def __init__(self, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """``pairs``: tensors, and the tensors to which `forward` copies their values."""
        self.lists: dict[torch.dtype, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        for tensor, other in pairs:
            tensors, others = self.lists.setdefault(tensor.dtype, ([], []))
            tensors.append(tensor)
            others.append(other)

    @torch.no_grad()
    def forward(self) -> None:
        """Copy from the first tensor of each pair to the second tensor."""
        for tensors, others in self.lists.values():
            copy_tensors(others, tensors)

    @torch.no_grad()
    def back(self) -> None:
        """Copy from the second tensor of each pair to the first tensor."""
        for tensors, others in self.lists.values():
            copy_tensors(tensors, others)
