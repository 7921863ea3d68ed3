"""A head on the last two stages of a backbone instead of the last stage only.

The last stage of an ImageNet model mainly represents objects. Genres also depend on style and colour, which the stage
before represents better. Both stages are averaged over the image and concatenated. A signed square root reduces the
influence of a few strong channels (Perronnin, Sánchez, Mensink 2010, "power normalisation"). docs/results/recipes.md
has the gain on posters.

The class of the timm model is extended in place, so that names of modules and weights stay the same. Only the
classifier becomes wider.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from shards.errors import UserError, one_line
from toolkit.device.compat import change_class

STAGES = 2


class _MultiStage:
    """Methods for a timm model whose features are the concatenated averages of its stages."""

    def forward_features(self: Any, x: torch.Tensor) -> torch.Tensor:
        """(n, 3, S, S) → (n, F)."""
        stages = self.forward_intermediates(x, indices=STAGES, intermediates_only=True, norm=True)
        pooled = torch.cat([stage.float().mean(dim=(2, 3)) for stage in stages], dim=1)
        # The derivative of the root is infinite at 0: a backbone that is trained needs a lower bound.
        return pooled.sign() * (pooled.abs() + 1e-6).sqrt()

    def forward_head(self: Any, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(n, F) → (n, G) logits, or (n, F) with ``pre_logits``."""
        x = F.dropout(x, p=float(self.drop_rate), training=self.training)
        return x if pre_logits else self.get_submodule(self.pretrained_cfg["classifier"])(x)

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        """(n, 3, S, S) → (n, G) logits."""
        return self.forward_head(self.forward_features(x))


def use_stages(model: nn.Module, classifier: str, num_classes: int, image_size: int, dropout: float) -> None:
    """Replace the Linear ``classifier`` of a timm model by a Linear on its last two stages, with ``dropout`` before it.

    Raises UserError for models of timm without access to their stages.
    """
    kind = type(model)
    if not hasattr(kind, "forward_intermediates"):
        raise UserError("model-unfit", _no_stages(kind))
    change_class(model, type(f"Levels{kind.__name__}", (_MultiStage, kind), {}))
    setattr(model, "drop_rate", dropout)  # noqa: B010 - a plain attribute, which some models of timm lack
    ghost = _ghost(model).eval()
    try:
        features = ghost.forward_features(torch.zeros(1, 3, image_size, image_size, device="meta"))
    except AssertionError as error:  # timm raises it for options that a family does not support
        raise UserError("model-unfit", f"{_no_stages(kind)} ({one_line(error)})") from None
    width = features.shape[1]
    # Layers between the last stage and timm's classifier are not used any more. They stay, so that weights fit, but are
    # frozen: DistributedDataParallel would wait for their gradients forever.
    used = [p for p in ghost.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(features.sum(), used, allow_unused=True)
    for parameter, gradient in zip([p for p in model.parameters() if p.requires_grad], gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    parent, _, attribute = classifier.rpartition(".")
    setattr(model.get_submodule(parent), attribute, nn.Linear(width, num_classes))
    model.num_features = width


def _no_stages(kind: type) -> str:
    return f"model.head levels and ensemble: timm gives no access to the stages of {kind.__name__}; use mlp or linear"


def _ghost(model: nn.Module) -> Any:
    """Return a copy of a model on the device "meta": its forward pass computes shapes only and needs no memory."""
    memo: dict[int, Any] = {id(tensor): tensor.detach().to("meta") for tensor in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    return copy.deepcopy(model, memo)
