"""Mixup (Zhang, Cissé, Dauphin, Lopez-Paz 2018) and cutmix (Yun et al. 2019) for multi-hot targets, in fixed pairs.

Partners are positions 2k and 2k+1 of an update, which the plan puts into one micro-batch (TrainPlan.group_size 2) as
rows 2j and 2j+1. A batch is not shuffled to find partners, because that would depend on the world size. The random
numbers of a pair are hashed from both keys. A pair with a padding or masked row is not mixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import betaincinv

from toolkit.config.augmentations import AugmentConfig
from toolkit.data.augment.color_jitter import beside
from toolkit.data.augment.random_erasing import box_masks
from toolkit.data.sampling.plan import MicroBatch
from toolkit.data.sampling.rng import Stream, mix64, uniforms
from toolkit.device.transfer import to_device


@dataclass(frozen=True)
class Pairs:
    """The m pairs of a micro-batch that are mixed."""

    first: np.ndarray
    """(m,) int64 rows; the partner of each is the next row."""
    kept: np.ndarray
    """(m,) float64: the share of its own target that each partner keeps, lambda."""
    cut: np.ndarray
    """(m,) bool: cutmix; else mixup."""
    boxes: np.ndarray
    """(m, 4) int64 left, top, right, bottom: what partners exchange by cutmix; all zero for mixup."""


def draw_pairs(config: AugmentConfig, side: int, micro_batch: MicroBatch, seed: int, epoch: int) -> Pairs:
    """Which pairs are mixed, and how: a pure function of (seed, epoch) and both keys.

    Lambda is Beta(alpha, alpha). A cutmix box has the image's shape and 1 - lambda of its area around a uniform centre;
    what lies outside of the image is cut off, and lambda becomes what is left of the image, exactly.
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
    # The paper's algorithm: cut off at the image's border.
    halves = (side * np.sqrt(1.0 - kept)).astype(np.int64)[:, None] // 2
    middles = np.floor(u[:, 3:5] * side).astype(np.int64)
    boxes = np.concatenate([middles - halves, middles + halves], axis=1).clip(0, side)
    boxes = np.where(cut[:, None], boxes, 0)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return Pairs(first, np.where(cut, 1.0 - areas / side**2, kept), cut, boxes)


def mix(images: torch.Tensor, targets: torch.Tensor, pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixed (images (n, 3, S, S) float32, targets (n, G) float); both partners of a pair, each mostly itself or not.

    mixup: lambda * own + (1 - lambda) * partner's; cutmix: the partner's pixels inside of the box, one's own outside.
    """
    if len(pairs.first) == 0:
        return images, targets
    device = images.device
    kept = beside(pairs.kept, images)
    cut = to_device(pairs.cut, device)[:, None, None, None]
    outside = ~box_masks(pairs.boxes, images.shape[3], device)
    weights = torch.where(cut, outside.float(), kept[:, None, None, None])
    first = to_device(pairs.first, device)
    return _mixed(images, first, weights), _mixed(targets, first, kept[:, None].to(targets.dtype))


def _mixed(values: torch.Tensor, first: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """``values`` with rows ``first`` and the rows after exchanging 1 - ``weights`` of themselves."""
    a, b = values.index_select(0, first), values.index_select(0, first + 1)
    out = values.clone()
    out.index_copy_(0, first, weights * a + (1.0 - weights) * b)
    out.index_copy_(0, first + 1, weights * b + (1.0 - weights) * a)
    return out
