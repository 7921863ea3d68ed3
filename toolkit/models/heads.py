"""The registry of heads, and the input features of heads. A head is the classifier at the end of a timm model.

The layers of the heads are in ensemble.py (mlp, ensemble) and multi_stage.py (levels).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from shards.errors import UserError
from toolkit.config.extensions import checked_tensor, explained, is_place, make
from toolkit.config.schema import ModelConfig
from toolkit.models.ensemble import Ensemble, mlp
from toolkit.models.last_layer import last_linears
from toolkit.models.multi_stage import use_stages


@dataclass(frozen=True)
class Head:
    """A kind of head."""

    build: Callable[[HeadSpec, int, int], nn.Module] | None = None
    """Function (spec, number of features, number of labels) → classifier. None keeps timm's Linear layer."""
    levels: bool = False
    """Whether the head uses features of the last two stages of the backbone (multi_stage.py)."""
    networks: Callable[[HeadSpec], int] = lambda spec: 1
    """Function that returns the number of parallel networks in the head."""


@dataclass(frozen=True)
class HeadSpec:
    """Options of a head."""

    kind: str = "mlp"
    """Name in HEADS, or MODULE:CLASS."""
    hidden: tuple[int, ...] = (1024, 512)
    """Widths of the hidden layers of an mlp or ensemble."""
    dropout: float = 0.5
    members: int = 1
    """Number of networks of an ensemble."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of a class of the user."""

    @classmethod
    def of(cls, config: ModelConfig) -> HeadSpec:
        return cls(config.head, tuple(config.hidden), config.dropout, config.members, config.head_options)

    @property
    def head(self) -> Head:
        """The kind of head."""
        return Head(_own) if is_place(self.kind) else HEADS[self.kind]

    @property
    def least_tensors(self) -> int:
        """Smallest possible number of tensors in the head: a weight and a bias for each layer. 0 if it is unknown."""
        if is_place(self.kind):
            return 0
        layers = len(self.hidden) + 1 if self.drops_within else 1
        return 2 * layers * self.head.networks(self)

    @property
    def drops_within(self) -> bool:
        """Whether the head contains its own dropout. timm's dropout before the classifier must then be 0."""
        return self.head.build is not None


def _mlp(head: HeadSpec, width: int, num_classes: int) -> nn.Module:
    return nn.Sequential(*mlp(width, head.hidden, num_classes, head.dropout))


def _ensemble(head: HeadSpec, width: int, num_classes: int) -> nn.Module:
    return Ensemble(width, head.hidden, num_classes, head.members, head.dropout)


def _own(head: HeadSpec, width: int, num_classes: int) -> nn.Module:
    """Build a head of the user. Raises UserError if it does not map (2, F) features to (2, G) logits."""
    built: nn.Module = make("head", head.kind, head.options, "model.head", width, num_classes)
    if any(tensor.is_meta for tensor in (*built.parameters(), *built.buffers())):
        return built
    features, what = torch.zeros(2, width), f"model.head {head.kind}"
    with torch.no_grad():
        logits = explained(what, lambda: built.eval()(features))
    checked_tensor(logits, (2, num_classes), what, f"features of shape {(2, width)}", "one logit per genre")
    return built.train()


#: Heads by name. To add a head, add an entry here and its name to HeadKind (config/values.py).
HEADS: dict[str, Head] = {
    "linear": Head(),
    "mlp": Head(_mlp),
    "levels": Head(levels=True),
    "ensemble": Head(_ensemble, levels=True, networks=lambda spec: spec.members),
}


def classifier_name(model: nn.Module) -> str:
    """Return the dotted name of timm's classifier, e.g. ``head.fc``. Raises UserError if it is not a single Linear."""
    name = model.pretrained_cfg.get("classifier")  # type: ignore[union-attr, operator]
    if not isinstance(name, str) or not isinstance(dict(model.named_modules()).get(name), nn.Linear):
        raise UserError(
            "model-unfit", f"{type(model).__name__} has no single Linear classifier: use --model.head linear"
        )
    return name


def put_head(model: nn.Module, head: HeadSpec, num_classes: int, image_size: int) -> None:
    """Replace the classifier of a timm model by a head. The heads "levels" and "ensemble" use two stages."""
    kind = head.head
    if kind.levels:
        dropout = 0.0 if head.drops_within else head.dropout
        use_stages(model, classifier_name(model), num_classes, image_size, dropout)
    if kind.build is not None:
        parent_name, _, attribute = classifier_name(model).rpartition(".")
        parent = model.get_submodule(parent_name)
        setattr(parent, attribute, kind.build(head, getattr(parent, attribute).in_features, num_classes))


def head_prefixes(model: nn.Module) -> tuple[str, ...]:
    """Return the name prefixes of the classifier's parameters, e.g. ``("fc.",)``. Distilled models have two."""
    name = model.pretrained_cfg.get("classifier")  # type: ignore[union-attr, operator]
    names = [name] if isinstance(name, str) else list(name or [])
    return tuple(f"{name}." for name in names)


def set_prior(model: nn.Module, prevalence: np.ndarray) -> None:
    """Set the last layer's biases to the log-odds of (G,) ``prevalence`` (Lin et al. 2017, "Focal loss", section 4.1).

    Prevalences are clipped to [0.0001, 0.9999], so that the log-odds are finite.
    """
    share = torch.from_numpy(np.clip(prevalence, 1e-4, 1 - 1e-4)).float()
    for layer in last_linears(model, head_prefixes(model)):
        if layer.bias is not None:
            layer.bias.data.copy_(torch.logit(share))


def logits_and_features(model: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (n, G) logits of a timm model in evaluation mode, and the (n, F) input features of its classifier."""
    maps = model.forward_features(images)
    return model.forward_head(maps), model.forward_head(maps, pre_logits=True)


def backbone_features(model: Any, images: torch.Tensor) -> torch.Tensor:
    """Return the (n, F) input features of the classifier for (n, 3, S, S) images. Evaluation mode is required."""
    return model.forward_head(model.forward_features(images), pre_logits=True)


def classifier_path(model: nn.Module) -> str:
    """Return the dotted name of the classifier, e.g. ``head.fc``. Raises UserError for a model with two classifiers."""
    prefixes = head_prefixes(model)
    if len(prefixes) != 1:
        raise UserError("model-unfit", f"{type(model).__name__} has no single classifier: set --train.feature_views 0")
    return prefixes[0].rstrip(".")
