"""The registry of losses: the name of each loss, its options, and the class that computes it.

To add a loss, add a row to LOSSES, a dataclass of its options, and a class like those in toolkit/training/losses.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

from shards.values import NotNegative, UnderOne, at_least


@dataclass
class BceOptions:
    """Binary cross-entropy. No options."""


@dataclass
class WeightedOptions:
    """Binary cross-entropy with a larger weight for positives."""

    pos_weight_cap: Annotated[float, at_least(1)] = 20.0
    """Largest weight of a positive; the weight is negatives / positives in the split, limited to this value."""


@dataclass
class FocalOptions:
    """Focal loss."""

    focal_gamma: NotNegative = 2.0
    """Focusing exponent: the larger it is, the less easy elements count."""


@dataclass
class AsymmetricOptions:
    """Asymmetric loss."""

    gamma_pos: NotNegative = 0.0
    """Focusing exponent for positives."""
    gamma_neg: NotNegative = 4.0
    """Focusing exponent for negatives; a value above gamma_pos gives the rare positives more weight."""
    clip: UnderOne = 0.05
    """Negatives with a probability below this value have zero loss."""


@dataclass
class BalancedOptions:
    """Distribution-balanced loss. No options."""


class Loss(NamedTuple):
    """One entry of the registry."""

    options: type
    """A dataclass; check_config compares loss.options with its fields."""
    computed_by: str
    """MODULE:CLASS of a MultiLabelLoss."""


#: Value of loss.name → its entry.
LOSSES = {
    "bce": Loss(BceOptions, "toolkit.training.losses:MultiLabelLoss"),
    "weighted": Loss(WeightedOptions, "toolkit.training.losses:WeightedLoss"),
    "focal": Loss(FocalOptions, "toolkit.training.losses:FocalLoss"),
    "asl": Loss(AsymmetricOptions, "toolkit.training.losses:AsymmetricLoss"),
    "balanced": Loss(BalancedOptions, "toolkit.training.losses:DistributionBalancedLoss"),
}
