"""The registry of augmentations, and their options.

To add one, add its options to AugmentConfig and to configs/poster_resnet50.yaml, a row to AUGMENTATIONS, its function
to toolkit/data/augment, and its Stream to toolkit/data/sampling/rng.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from shards.values import FromZeroToOne, between, or_more
from toolkit.config import values


@dataclass
class AugmentConfig:
    """Augmentation of training pixels after the crop, on the device, a function of (seed, epoch, sample)."""

    brightness: FromZeroToOne = 0.0
    """Range x of the brightness factor, which is drawn from 1 - x to 1 + x (torchvision's ColorJitter)."""
    contrast: FromZeroToOne = 0.0
    """Range x of the contrast factor."""
    saturation: FromZeroToOne = 0.0
    """Range x of the saturation factor."""
    randaugment: Annotated[int, or_more("none")] = 0
    """Number of RandAugment operations per sample; 0: none."""
    magnitude: Annotated[float, between(0, 30)] = 9.0
    """Strength of the RandAugment operations, 0 to 30 as in torchvision."""
    erase: values.Probability = 0.0
    """Probability that a rectangle of a sample is filled with noise (random erasing)."""
    mixup: values.Alpha = 0.0
    """Alpha of the Beta distribution of mixup; 0: no mixup. Targets are mixed as well."""
    cutmix: values.Alpha = 0.0
    """Alpha of the Beta distribution of cutmix; 0: no cutmix. With both, each pair gets one of them at random."""

    @property
    def mixes(self) -> bool:
        """Whether samples are mixed, for which TrainPlan.group_size must be 2."""
        return self.mixup > 0 or self.cutmix > 0


class Augmentation(NamedTuple):
    """An operation that changes the pixels of each sample independently."""

    on: Callable[[AugmentConfig], bool]
    """Return whether an AugmentConfig enables the operation."""
    done_by: str
    """MODULE:FUNCTION of (images (n, 3, S, S) float32 from 0 to 255, config, seed, epoch, keys (n,)) → images."""


#: Applied in this order, before mixing.
AUGMENTATIONS = (
    Augmentation(
        lambda config: max(config.brightness, config.contrast, config.saturation) > 0,
        "toolkit.data.augment.color_jitter:jitter",
    ),
    Augmentation(lambda config: config.randaugment > 0, "toolkit.data.augment.rand_augment:rand_augment"),
    Augmentation(lambda config: config.erase > 0, "toolkit.data.augment.random_erasing:erase"),
)
