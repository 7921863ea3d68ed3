"""Mixup (Zhang, Cissé, Dauphin, Lopez-Paz 2018) and cutmix (Yun et al. 2019) for multi-hot targets, in fixed pairs.

Samples 2k and 2k+1 of an update are a pair. With TrainPlan.group_size 2, both are neighbouring rows of the same
micro-batch, so the pairs do not depend on the world size. The random numbers of a pair are hashed from the keys of both
samples. A pair is not mixed if one of its rows has valid=False (padding, or an image that could not be decoded).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import betaincinv

from toolkit.config.augmentation_registry import AugmentConfig
from toolkit.data.augment.random_erasing import box_masks
from toolkit.data.sampling.plan import MicroBatch
from toolkit.data.sampling.rng import Stream, mix64, uniforms
from toolkit.device.transfer import to_device_together


@dataclass(frozen=True)
class Pairs:
    """The m pairs of samples of a micro-batch that are mixed, and how each pair is mixed."""

    first: np.ndarray
    """(m,) int64: the first row of each pair. The row after it is the second row of the pair."""
    kept: np.ndarray
    """(m,) float64: lambda, the weight of a sample's own target in its mixed target."""
    cut: np.ndarray
    """(m,) bool: True for cutmix, False for mixup."""
    boxes: np.ndarray
    """(m, 4) int64: left, top, right and bottom of the box that the two samples exchange. All are 0 for mixup."""


def draw_pairs(config: AugmentConfig, side: int, micro_batch: MicroBatch, seed: int, epoch: int) -> Pairs:
    """Draw how each pair is mixed. The result depends only on seed, epoch and the keys of both samples.

    Lambda is drawn from Beta(alpha, alpha). A cutmix box has the aspect ratio of the image, 1 - lambda of the image's
    area, and a random centre. It is cut at the border. Lambda then becomes the exact share of the area outside the box.
    """
    last = len(micro_batch.indices) // 2 * 2
    both = micro_batch.valid[0:last:2] & micro_batch.valid[1:last:2]
    first = np.flatnonzero(both) * 2
    keys = micro_batch.keys.astype(np.uint64)
    pair_keys = mix64(mix64(keys[first]) + keys[first + 1])
    u = uniforms(seed, epoch, pair_keys, 5, Stream.MIX)
    cut = u[:, 1] < (0.5 if config.mixup > 0 < config.cutmix else float(config.cutmix > 0))
    alpha = np.where(cut, config.cutmix, config.mixup)
    kept = betaincinv(alpha, alpha, u[:, 2])
    # As in the paper, the box is cut at the border of the image.
    halves = (side * np.sqrt(1.0 - kept)).astype(np.int64)[:, None] // 2
    middles = np.floor(u[:, 3:5] * side).astype(np.int64)
    boxes = np.concatenate([middles - halves, middles + halves], axis=1).clip(0, side)
    boxes = np.where(cut[:, None], boxes, 0)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return Pairs(first, np.where(cut, 1.0 - areas / side**2, kept), cut, boxes)


def mix(images: torch.Tensor, targets: torch.Tensor, pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mixed (n, 3, S, S) float32 images and (n, G) float targets. Both samples of each pair change.

    Mixup: lambda * own pixels + (1 - lambda) * pixels of the other sample. Cutmix: a rectangle is copied from the
    other sample. Targets are lambda * own targets + (1 - lambda) * targets of the other sample.
    """
    if len(pairs.first) == 0:
        return images, targets
    rows = np.concatenate([pairs.first, pairs.first + 1])
    partners, weights, kept = np.arange(len(images)), *np.ones((2, len(images), 1, 1, 1), dtype=np.float32)
    partners[rows] = np.concatenate([pairs.first + 1, pairs.first])
    kept[rows, 0, 0, 0] = np.tile(pairs.kept, 2)
    weights[rows, 0, 0, 0] = np.tile(np.where(pairs.cut, 1.0, pairs.kept), 2)
    boxes = np.zeros((len(images), 4), dtype=np.int64)
    boxes[rows] = np.tile(pairs.boxes, (2, 1))
    others, own, share, device_boxes = to_device_together(images.device, partners, weights, kept, boxes)
    if pairs.cut.any():
        own = torch.where(box_masks(device_boxes, images.shape[3]), 0.0, own)
    return _mixed(images, others, own), _mixed(targets, others, share[:, :, 0, 0].to(targets.dtype))


def _mixed(values: torch.Tensor, others: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mix each row with the row ``others`` of the same tensor. ``weights`` are of the row's own values."""
    return weights * values + (1.0 - weights) * values.index_select(0, others)
