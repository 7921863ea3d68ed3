"""Classifiers in place of the one that a network came with, and what they are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from shards.errors import UserError
from toolkit.config.schema import ModelConfig
from toolkit.config.values import HeadKind
from toolkit.models.ensemble import Ensemble, mlp
from toolkit.models.last_layer import last_linears
from toolkit.models.multi_stage import use_stages


@dataclass(frozen=True)
class Head:
    """One entry of HEADS."""

    build: Callable[[HeadSpec, int, int], nn.Module] | None = None
    """(spec, features, genres) → what stands in the classifier's place; None: timm's Linear layer stays."""
    levels: bool = False
    """Whether it is given two stages (multi_stage.py)."""
    networks: Callable[[HeadSpec], int] = lambda spec: 1
    """How many networks stand side by side in it."""


@dataclass(frozen=True)
class HeadSpec:
    """The part of a model that timm does not know about."""

    kind: HeadKind = "mlp"
    """A name of HEADS."""
    hidden: tuple[int, ...] = (1024, 512)
    dropout: float = 0.5
    members: int = 1
    """Of an ensemble."""

    @classmethod
    def of(cls, config: ModelConfig) -> HeadSpec:
        return cls(config.head, tuple(config.hidden), config.dropout, config.members)

    @property
    def least_tensors(self) -> int:
        """How many tensors the weights of such a head have, or more."""
        layers = len(self.hidden) + 1 if self.drops_within else 1
        return 2 * layers * HEADS[self.kind].networks(self)

    @property
    def drops_within(self) -> bool:
        """Whether the classifier has its dropout within, so that timm's before it is to be off."""
        return HEADS[self.kind].build is not None


def _mlp(head: HeadSpec, width: int, num_classes: int) -> nn.Module:
    return nn.Sequential(*mlp(width, head.hidden, num_classes, head.dropout))


def _ensemble(head: HeadSpec, width: int, num_classes: int) -> nn.Module:
    return Ensemble(width, head.hidden, num_classes, head.members, head.dropout)


#: The registry of heads. A new one is a row here, and its name in HeadKind (config/values.py).
HEADS: dict[HeadKind, Head] = {
    "linear": Head(),
    "mlp": Head(_mlp),
    "levels": Head(levels=True),
    "ensemble": Head(_ensemble, levels=True, networks=lambda spec: spec.members),
}


def classifier_name(model: nn.Module) -> str:
    """Dotted name of the classifier module, e.g. ``fc`` or ``head.fc``. Raises UserError if there is not just one."""
    name = model.pretrained_cfg.get("classifier")  # type: ignore[union-attr, operator]
    if not isinstance(name, str) or not isinstance(dict(model.named_modules()).get(name), nn.Linear):
        raise UserError(
            "model-unfit", f"{type(model).__name__} has no single Linear classifier: only --model.head linear fits it"
        )
    return name


def put_head(model: nn.Module, head: HeadSpec, num_classes: int, image_size: int) -> None:
    """Put the head in the place of a timm model's classifier, with the stages of the model that it is given."""
    kind = HEADS[head.kind]
    if kind.levels:
        dropout = 0.0 if head.drops_within else head.dropout
        use_stages(model, classifier_name(model), num_classes, image_size, dropout)
    if kind.build is not None:
        parent_name, _, attribute = classifier_name(model).rpartition(".")
        parent = model.get_submodule(parent_name)
        setattr(parent, attribute, kind.build(head, getattr(parent, attribute).in_features, num_classes))


def head_prefixes(model: nn.Module) -> tuple[str, ...]:
    """What names of the classifier's parameters begin with, e.g. ``("fc.",)``; distilled models have two of them."""
    name = model.pretrained_cfg.get("classifier")  # type: ignore[union-attr, operator]
    names = [name] if isinstance(name, str) else list(name or [])
    return tuple(f"{name}." for name in names)


def set_prior(model: nn.Module, prevalence: np.ndarray) -> None:
    """Set the last layer's biases to the log-odds of (G,) ``prevalence`` (Lin et al. 2017, "Focal loss", section 4.1).

    A genre that is never or always there counts as one in ten thousand.
    """
    share = torch.from_numpy(np.clip(prevalence, 1e-4, 1 - 1e-4)).float()
    for layer in last_linears(model, head_prefixes(model)):
        if layer.bias is not None:
            layer.bias.data.copy_(torch.logit(share))


def logits_and_features(model: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, G) logits of a timm model in evaluation mode, and the (n, F) features that its classifier is given."""
    maps = model.forward_features(images)
    return model.forward_head(maps), model.forward_head(maps, pre_logits=True)


def backbone_features(model: Any, images: torch.Tensor) -> torch.Tensor:
    """(n, F) what the classifier of a timm model in evaluation mode is given for (n, 3, S, S) images."""
    return model.forward_head(model.forward_features(images), pre_logits=True)


def classifier_path(model: nn.Module) -> str:
    """Dotted name of a model's one classifier, whether timm's own layer or our layers in its place.

    Raises UserError for distilled models, which have two.
    """
    prefixes = head_prefixes(model)
    if len(prefixes) != 1:
        raise UserError(
            "model-unfit", f"{type(model).__name__} has no single classifier: train.feature_views does not fit it"
        )
    return prefixes[0].rstrip(".")
