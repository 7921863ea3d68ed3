"""The registry of losses: the name of each loss, its options, and the class that computes it.

To add a loss, add a row to LOSSES, a dataclass of its options, and a class like those in toolkit/training/losses.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

from shards.values import NotNegative, UnderOne, at_least


@dataclass
class BceOptions:
    """Binary cross-entropy, which has no options."""


@dataclass
class WeightedOptions:
    """Options of binary cross-entropy with a larger weight for positives."""

    pos_weight_cap: Annotated[float, at_least(1)] = 20.0
    """Largest weight of a positive. The weight is the genre's negatives / positives, but at least 1."""


@dataclass
class FocalOptions:
    """Options of focal loss."""

    focal_gamma: NotNegative = 2.0
    """Focusing exponent. A larger value lowers the loss of genres that are already predicted well."""


@dataclass
class AsymmetricOptions:
    """Options of asymmetric loss."""

    gamma_pos: NotNegative = 0.0
    """Focusing exponent for positives."""
    gamma_neg: NotNegative = 4.0
    """Focusing exponent for negatives. A value above gamma_pos gives more weight to the rare positives."""
    clip: UnderOne = 0.05
    """Negatives with a probability below this value have zero loss."""


@dataclass
class BalancedOptions:
    """Distribution-balanced loss, which has no options."""


class Loss(NamedTuple):
    """One entry of the registry."""

    options: type
    """Dataclass of the loss's options. check_config accepts only its fields as keys of loss.options."""
    computed_by: str
    """MODULE:CLASS of MultiLabelLoss or of its subclass."""


#: Value of loss.name → the loss.
LOSSES = {
    "bce": Loss(BceOptions, "toolkit.training.losses:MultiLabelLoss"),
    "weighted": Loss(WeightedOptions, "toolkit.training.losses:WeightedLoss"),
    "focal": Loss(FocalOptions, "toolkit.training.losses:FocalLoss"),
    "asl": Loss(AsymmetricOptions, "toolkit.training.losses:AsymmetricLoss"),
    "balanced": Loss(BalancedOptions, "toolkit.training.losses:DistributionBalancedLoss"),
}
