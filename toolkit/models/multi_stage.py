"""Features of the last two stages of a backbone, for the heads "levels" and "ensemble".

The last stage of an ImageNet model mainly represents objects. Genres also depend on style and colour. The second to
last stage represents style and colour better. Both stages are averaged over the image and concatenated. A signed square
root reduces the influence of a few strong channels (Perronnin, Sánchez, Mensink 2010, "power normalisation").
docs/results/recipes.md has measurements on posters.

A timm model is converted in place: its class is replaced by a subclass, and its classifier becomes wider. The names of
all modules and weights stay the same.
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
    """Methods of a converted timm model. The model's features are the concatenated averages of two stages."""

    def forward_features(self: Any, x: torch.Tensor) -> torch.Tensor:
        """Return (n, F) features of (n, 3, S, S) images."""
        stages = self.forward_intermediates(x, indices=STAGES, intermediates_only=True, norm=True)
        pooled = torch.cat([stage.float().mean(dim=(2, 3)) for stage in stages], dim=1)
        # The root's derivative is infinite at 0. Adding 1e-6 keeps the gradients of the backbone finite.
        return pooled.sign() * (pooled.abs() + 1e-6).sqrt()

    def forward_head(self: Any, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Return (n, G) logits of (n, F) features. With ``pre_logits``, return the features after dropout."""
        x = F.dropout(x, p=float(self.drop_rate), training=self.training)
        return x if pre_logits else self.get_submodule(self.pretrained_cfg["classifier"])(x)

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        """Return (n, G) logits of (n, 3, S, S) images."""
        return self.forward_head(self.forward_features(x))


def use_stages(model: nn.Module, classifier: str, num_classes: int, image_size: int, dropout: float) -> None:
    """Replace a timm model's Linear ``classifier`` by dropout and a Linear on the features of the last two stages.

    Raises UserError if timm gives no access to the model's stages.
    """
    kind = type(model)
    if not hasattr(kind, "forward_intermediates"):
        raise UserError("model-unfit", _no_stages(kind))
    change_class(model, type(f"Levels{kind.__name__}", (_MultiStage, kind), {}))
    setattr(model, "drop_rate", dropout)  # noqa: B010 - a plain attribute, which some models of timm lack
    copied = _meta_copy(model).eval()
    try:
        features = copied.forward_features(torch.zeros(1, 3, image_size, image_size, device="meta"))
    except AssertionError as error:  # timm raises it if the model does not support these arguments
        raise UserError("model-unfit", f"{_no_stages(kind)} ({one_line(error)})") from None
    width = features.shape[1]
    # Layers between the last stage and timm's classifier are no longer used. They stay in the model, because pretrained
    # weights contain them. They are frozen, because DistributedDataParallel waits for gradients of all other weights.
    used = [p for p in copied.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(features.sum(), used, allow_unused=True)
    for parameter, gradient in zip([p for p in model.parameters() if p.requires_grad], gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    parent, _, attribute = classifier.rpartition(".")
    setattr(model.get_submodule(parent), attribute, nn.Linear(width, num_classes))
    model.num_features = width


def _no_stages(kind: type) -> str:
    return f"model.head must be mlp or linear, because timm gives no access to the stages of {kind.__name__}"


def _meta_copy(model: nn.Module) -> Any:
    """Return a copy of a model on the device "meta". Its forward pass computes shapes only and needs no memory."""
    memo: dict[int, Any] = {id(tensor): tensor.detach().to("meta") for tensor in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    return copy.deepcopy(model, memo)
