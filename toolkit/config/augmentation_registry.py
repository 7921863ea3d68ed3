"""The registry of augmentations, and their options.

To add an augmentation, add its options to AugmentConfig and to configs/poster_resnet50.yaml. Then add a row to
AUGMENTATIONS, a function to toolkit/data/augment, and a Stream to toolkit/data/sampling/rng.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

from shards.values import FromZeroToOne, between, or_more
from toolkit.config import values


@dataclass
class AugmentConfig:
    """Augmentation of training images after the crop, on the device. It depends only on seed, epoch and sample."""

    brightness: FromZeroToOne = 0.0
    """With a value x, the brightness factor is drawn from 1 - x to 1 + x, as in torchvision's ColorJitter."""
    contrast: FromZeroToOne = 0.0
    """With a value x, the contrast factor is drawn from 1 - x to 1 + x."""
    saturation: FromZeroToOne = 0.0
    """With a value x, the saturation factor is drawn from 1 - x to 1 + x."""
    randaugment: Annotated[int, or_more("none")] = 0
    """Number of RandAugment operations per sample. 0 switches RandAugment off."""
    magnitude: Annotated[float, between(0, 30)] = 9.0
    """Strength of the RandAugment operations, from 0 to 30 as in torchvision."""
    erase: values.Probability = 0.0
    """Probability that a rectangle of a sample is filled with noise (random erasing)."""
    mixup: values.Alpha = 0.0
    """Alpha of the Beta distribution of mixup, which mixes images and their targets. 0 switches mixup off."""
    cutmix: values.Alpha = 0.0
    """Alpha of cutmix's Beta distribution. 0 switches cutmix off. If mixup is also on, a pair gets mixup or cutmix."""
    name: values.Place = None
    """Your own augmentation, MODULE:CLASS. It comes after the other augmentations, and before mixup and cutmix."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of your own augmentation."""

    @property
    def mixes(self) -> bool:
        """Whether mixup or cutmix is on. TrainPlan.group_size must then be 2."""
        return self.mixup > 0 or self.cutmix > 0


class Augmentation(NamedTuple):
    """An operation that changes each sample independently of other samples."""

    on: Callable[[AugmentConfig], bool]
    """Return whether an AugmentConfig switches the operation on."""
    done_by: str
    """MODULE:FUNCTION of a function (images, config, seed, epoch, keys) → (n, 3, S, S) float32 images from 0 to 255."""


#: All augmentations, in the order in which they are applied. Mixup and cutmix come after them.
AUGMENTATIONS = (
    Augmentation(
        lambda config: max(config.brightness, config.contrast, config.saturation) > 0,
        "toolkit.data.augment.color_jitter:jitter",
    ),
    Augmentation(lambda config: config.randaugment > 0, "toolkit.data.augment.rand_augment:rand_augment"),
    Augmentation(lambda config: config.erase > 0, "toolkit.data.augment.random_erasing:erase"),
)
