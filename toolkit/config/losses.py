"""The registry of losses: the name of each, its own options, and the class that computes it.

A new loss is a row of LOSSES with a dataclass of its options, and a class like those of toolkit/training/losses.py.
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
    """Binary cross-entropy with positives weighted up."""

    pos_weight_cap: Annotated[float, at_least(1)] = 20.0
    """Largest weight of a positive; uncapped: the split's negatives / positives, in the hundreds."""


@dataclass
class FocalOptions:
    """Focal loss."""

    focal_gamma: NotNegative = 2.0
    """Exponent that quietens easy elements."""


@dataclass
class AsymmetricOptions:
    """Asymmetric loss."""

    gamma_pos: NotNegative = 0.0
    """Exponent for positives."""
    gamma_neg: NotNegative = 4.0
    """Exponent for negatives; more than gamma_pos lets the few positives be heard."""
    clip: UnderOne = 0.05
    """Negatives under this probability cost nothing."""


@dataclass
class BalancedOptions:
    """Distribution-balanced loss. No options."""


class Loss(NamedTuple):
    """One entry of the registry."""

    options: type
    """A dataclass; check_config holds loss.options to its fields."""
    computed_by: str
    """MODULE:CLASS, of a MultiLabelLoss."""


#: By loss.name.
LOSSES = {
    "bce": Loss(BceOptions, "toolkit.training.losses:MultiLabelLoss"),
    "weighted": Loss(WeightedOptions, "toolkit.training.losses:WeightedLoss"),
    "focal": Loss(FocalOptions, "toolkit.training.losses:FocalLoss"),
    "asl": Loss(AsymmetricOptions, "toolkit.training.losses:AsymmetricLoss"),
    "balanced": Loss(BalancedOptions, "toolkit.training.losses:DistributionBalancedLoss"),
}
