"""The transforms of a ShardLoader: random crops and augmentation, the crop of evaluation, or the user's function."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import torch

from shards.errors import UserError
from toolkit.config import values
from toolkit.config.augmentation_registry import AugmentConfig
from toolkit.config.extensions import checked
from toolkit.config.schema import CropConfig
from toolkit.data.augment.pipeline import Augmenter
from toolkit.data.loader.loader import Batch
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.data.transforms.batch_transform import Transforms, eval_transforms, train_transforms
from toolkit.data.transforms.own_transform import OwnFunction, OwnTransforms
from toolkit.data.transforms.preprocessing import Preprocessing

Rgb: TypeAlias = tuple[float, float, float]
C = TypeVar("C", bound="Normalisation")


@dataclass(kw_only=True)
class Normalisation:
    """How pixels become numbers: uint8 from 0 to 255, or (pixel / 255 - mean) / std as float32."""

    mean: Rgb | None = None
    """Mean of each colour, from 0 to 1. If it is None, images are uint8."""
    std: Rgb | None = None
    """Standard deviation of each colour, from 0 to 1. It is given if and only if ``mean`` is given."""


@dataclass
class TrainTransform(Normalisation, AugmentConfig, CropConfig):
    """Random crops, flips and augmentation. Images are (n, 3, S, S), and S is ``image_size``.

    The options have the names, meanings and defaults of the sections ``data`` and ``augment`` of the configuration.
    All random numbers depend only on seed, epoch and sample. Mixup and cutmix also mix the targets.
    """


@dataclass
class EvalTransform(Normalisation):
    """The crop of evaluation, without random numbers. Images are (n, 3, S, S), and S is ``image_size``."""

    image_size: values.Side = CropConfig.image_size
    """S, the side of the square images in pixels."""
    crop_pct: values.CropPct = CropConfig.crop_pct
    """Side of the central square that is used (fit "crop"), as a share of the short side."""
    fit: values.Fit = CropConfig.fit
    """"crop" uses the central square of an image. "stretch" resizes the whole image to a square."""
    geometry: values.Geometry = CropConfig.geometry
    """"device": crop and resize on the device. "cpu": in the threads. "auto": on the device if it is a GPU."""


Transform: TypeAlias = TrainTransform | EvalTransform | OwnFunction


class Prepared:
    """A transform for one set, seed and device."""

    def __init__(
        self,
        of_epoch: Callable[[int], Transforms],
        normalisation: Normalisation | None = None,
        augmenter: Augmenter | None = None,
    ) -> None:
        """``of_epoch``: the transforms of an epoch, for the decoding threads and the device.

        normalisation: None for a function of the user, whose results do not change.
        """
        self.of_epoch, self.augmenter, self.keep = of_epoch, augmenter, normalisation is None
        mean, std = (normalisation.mean, normalisation.std) if normalisation else (None, None)
        self.preprocessing = Preprocessing(1, 1.0, mean, std) if mean and std else None

    @property
    def group_size(self) -> int:
        """Number of successive samples that must be in one batch: 2 if samples are mixed in pairs."""
        return 2 if self.augmenter is not None and self.augmenter.config.mixes else 1

    def finish(self, batch: Batch, targets: torch.Tensor, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images of a decoded batch, which stay unchanged, and the (n, C) targets, which mixing changes."""
        images = batch.images
        if self.keep:
            return images, targets
        if self.augmenter is not None:
            images, targets = self.augmenter(images, targets, batch.micro_batch, epoch)
        if self.preprocessing is not None:
            normal = _normalised if images.device.type == "cpu" else Preprocessing.normalize
            return normal(self.preprocessing, images), targets
        if images.dtype != torch.uint8:
            images = images.round().clamp(0, 255).to(torch.uint8)
        elif images.device.type != "cpu":
            images = images.clone()  # a later batch overwrites this memory
        return images.permute(0, 3, 1, 2), targets


def _normalised(preprocessing: Preprocessing, images: torch.Tensor) -> torch.Tensor:
    """Return the values of ``Preprocessing.normalize`` on a CPU, to the bit, in contiguous memory.

    NumPy computes one colour at a time in this thread. torch would use several threads, which take the cores of the
    decoding threads, and needs four times as much time for a mean and a deviation per colour.
    """
    pixels = images.permute(0, 3, 1, 2).numpy()
    out = np.empty(pixels.shape, dtype=np.float32)
    mean, std = (np.float32(255) * np.array(part, dtype=np.float32) for part in (preprocessing.mean, preprocessing.std))
    for image, planes in zip(pixels, out, strict=True):
        for colour in range(3):
            np.subtract(image[colour], mean[colour], out=planes[colour])
            planes[colour] /= std[colour]
    return torch.from_numpy(out)


def prepare(transform: Transform, reader: ShardReader, seed: int, device: torch.device) -> Prepared:
    """Return the transform for a set, a seed and a device. Raises UserError for an option that does not fit."""
    if isinstance(transform, TrainTransform):
        train = _checked(transform)
        return Prepared(
            lambda epoch: train_transforms(reader, train, seed, epoch, device), train, Augmenter(train, seed)
        )
    if isinstance(transform, EvalTransform):
        ours = _checked(transform)
        crop = Preprocessing(ours.image_size, ours.crop_pct, (0.0,) * 3, (1.0,) * 3, ours.fit)
        fixed = eval_transforms(reader, crop, ours.geometry, device)
        return Prepared(lambda epoch: fixed, ours)
    if isinstance(transform, type) and issubclass(transform, Normalisation):
        name = transform.__name__
        raise UserError("option-value", f"transform must be an object of {name}, such as {name}(), not the class")
    try:
        inspect.signature(transform).bind(None, None)
    except (TypeError, ValueError):
        what = "TrainTransform, EvalTransform or a function (image, generator)"
        raise UserError("option-value", f"transform must be {what}, not {transform!r}") from None
    return Prepared(OwnTransforms(transform, reader, seed).of_epoch)


def _checked(transform: C) -> C:
    """Return the transform with checked options. Raises UserError for a wrong value."""
    name = type(transform).__name__
    ours: C = checked(type(transform), dict(vars(transform)), name, name)
    if getattr(ours, "image_size", 1) == 0:
        raise UserError("option-value", f"{name}.image_size must be from 16 pixels, not 0")
    if (ours.mean is None) != (ours.std is None):
        raise UserError("option-conflict", f"{name} needs both mean and std, or neither")
    for option, least in (("mean", 0.0), ("std", 1e-6)):
        values_of = getattr(ours, option) or ()
        if not all(least <= value <= 1 for value in values_of):
            what = f"{name}.{option} must be numbers from {least:g} to 1, not {values_of}"
            raise UserError("option-value", f"{what}: divide numbers for pixels from 0 to 255 by 255")
    return ours
