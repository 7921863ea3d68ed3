"""Losses for many genres at once: what one sample costs, summed over its genres.

All kinds have one form, ``y * positive(x) + (1 - y) * negative(x)`` per element, and differ in the two costs and in
the elements' weights. Where targets are 0 or 1 this is each paper's loss. Mixup and label smoothing make targets that
lie between: the form gives such an element the mix of both costs, which is what mixing targets means. timm's and
torchvision's losses put the mix inside the focusing factor instead and agree with these only on 0 and 1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from toolkit.config.losses import LOSSES, WeightedOptions
from toolkit.config.registry import named
from toolkit.config.schema import LossConfig
from toolkit.metrics.multilabel import FloatArray

# Distribution-balanced loss: the authors' values for VOC-LT, whose 20 classes are nearest to a set of genres
# (github.com/wutong16/DistributionBalancedLoss, configs/voc/LT_resnet50_pfc_DB.py; for COCO-LT, with 80 classes,
# BALANCED_MU is 0.2 and BALANCED_LAMBDA 2).
BALANCED_ALPHA = 0.1  # least weight of an element
BALANCED_BETA = 10.0  # how steeply the weight rises
BALANCED_MU = 0.3  # where it rises
# The authors' code divides it by lambda, the paper does not; they call the paper right (issue 8 of their repository).
BALANCED_KAPPA = 0.05
BALANCED_LAMBDA = 5.0  # how much sooner a negative falls silent


def build_loss(config: LossConfig, positives: np.ndarray, num_samples: int) -> nn.Module:
    """The loss module of ``config.name``: (n, G) logits and targets → (n,) float32, see `MultiLabelLoss`.

    positives (G,): training samples of each genre; num_samples: training samples in all. Kinds ``weighted`` and
    ``balanced`` take their weights from these counts, the other kinds only G.

    Raises ValueError on counts that are no counts of ``num_samples`` samples.
    """
    counts = np.asarray(positives, dtype=np.float64)
    if counts.ndim != 1 or counts.size == 0:
        raise ValueError(f"positives must hold one count per genre, got shape {counts.shape}")
    if num_samples < 1:
        raise ValueError(f"num_samples must be positive, got {num_samples}")
    if not ((counts >= 0) & (counts <= num_samples)).all():
        raise ValueError(f"positives must lie in [0, {num_samples}], got {counts.min():g} to {counts.max():g}")
    entry = LOSSES[config.name]
    kind: type[MultiLabelLoss] = named(entry.computed_by)
    return kind(counts, num_samples, config.smoothing, entry.options(**config.options))


def positive_weights(counts: np.ndarray, num_samples: int, cap: float) -> FloatArray:
    """(G,) weights of positives, from their ``counts`` (G,): negatives / positives, within [1, cap]; ``cap`` for 0.

    Not under 1: the weights are there to have rare genres heard, not to quieten one that most samples have.
    """
    ratios = np.full(counts.shape, np.inf)
    np.divide(num_samples - counts, counts, out=ratios, where=counts > 0)
    weights: FloatArray = np.clip(ratios, 1.0, cap)
    return weights


class MultiLabelLoss(nn.Module):
    """Binary cross-entropy per sample, and the frame of the other kinds, which override `costs` or `weights`.

    smoothing: every target moves this share of the way to 0.5. Buffers move with ``.to(device)`` and are not part of
    the state dict: they follow from the config and the training set.
    """

    def __init__(self, counts: FloatArray, num_samples: int, smoothing: float, options: Any = None) -> None:
        """(G,) ``counts`` of positives among a training split's ``num_samples``; options of its entry in LOSSES."""
        super().__init__()
        self.num_genres, self.smoothing, self.options = len(counts), smoothing, options

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(n,) float32 losses in nats, summed over genres, from logits (n, G) and targets (n, G) in [0, 1].

        Any dtypes and any autocast: everything here is computed in float32. Raises ValueError on other shapes. That
        targets lie in [0, 1] is not checked, since looking would wait for the device.
        """
        if logits.ndim != 2 or logits.shape[1] != self.num_genres:
            raise ValueError(f"logits must have shape (n, {self.num_genres}), got {tuple(logits.shape)}")
        if targets.shape != logits.shape:
            raise ValueError(f"targets must have shape {tuple(logits.shape)}, got {tuple(targets.shape)}")
        with torch.autocast(logits.device.type, enabled=False):
            targets = targets.float()
            share = targets * (1.0 - self.smoothing) + 0.5 * self.smoothing
            positive, negative = self.costs(logits.float())
            losses = share * positive + (1.0 - share) * negative
            return (losses * self.weights(targets)).sum(dim=1)

    def costs(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What each element costs if it is a positive and if it is a negative: twice (n, G), from float32 logits."""
        return -F.logsigmoid(logits), -F.logsigmoid(-logits)

    def weights(self, targets: torch.Tensor) -> torch.Tensor:
        """Factor on each element's loss, broadcast to (n, G), from the float32 targets before smoothing."""
        return targets.new_ones(())


class WeightedLoss(MultiLabelLoss):
    """Cross-entropy whose positives count ``pos_weight`` (G,) times: pos_weight of torch.nn.BCEWithLogitsLoss."""

    pos_weight: torch.Tensor

    def __init__(self, counts: FloatArray, num_samples: int, smoothing: float, options: WeightedOptions) -> None:
        super().__init__(counts, num_samples, smoothing, options)
        pos_weight = positive_weights(counts, num_samples, options.pos_weight_cap)
        self.register_buffer("pos_weight", _float32(pos_weight), persistent=False)

    def costs(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        positive, negative = super().costs(logits)
        return self.pos_weight * positive, negative


class FocalLoss(MultiLabelLoss):
    """Focal loss without alpha: (1 - p)^gamma * -log p for positives, p^gamma * -log(1 - p) for negatives.

    Lin et al. 2017, "Focal Loss for Dense Object Detection" (arXiv 1708.02002), equation 4.
    """

    def costs(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_p, log_not_p = F.logsigmoid(logits), F.logsigmoid(-logits)
        # Powers by exp of the logarithm: pow() has an infinite derivative at 0 for exponents under 1.
        gamma = self.options.focal_gamma
        return -torch.exp(gamma * log_not_p) * log_p, -torch.exp(gamma * log_p) * log_not_p


class AsymmetricLoss(MultiLabelLoss):
    """Asymmetric loss: a focal loss with an exponent for either side and a margin under which negatives cost nothing.

    With q = max(p - clip, 0): (1 - p)^gamma_pos * -log p for positives, q^gamma_neg * -log(1 - q) for negatives.
    Gradients pass through the focusing factors, as in the paper's gradient analysis.

    Ridnik et al. 2021, "Asymmetric Loss For Multi-Label Classification" (arXiv 2009.14119).
    """

    def costs(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_p, log_not_p = F.logsigmoid(logits), F.logsigmoid(-logits)
        positive = -torch.exp(self.options.gamma_pos * log_not_p) * log_p
        # log(1 - q) = min(log((1 - p) + clip), 0), added up in logarithms: exact for any logit, without a floor.
        log_clip = math.log(self.options.clip) if self.options.clip > 0 else -math.inf
        log_not_q = torch.logaddexp(log_not_p, logits.new_full((), log_clip)).clamp(max=0.0)
        # Not quite 0, where exponents under 1 have an infinite derivative.
        q = (torch.sigmoid(logits) - self.options.clip).clamp(min=torch.finfo(torch.float32).tiny)
        return positive, -(q**self.options.gamma_neg) * log_not_q


class DistributionBalancedLoss(MultiLabelLoss):
    """Distribution-balanced loss without a focal factor: equation 9 of the paper, summed over genres.

    Re-balanced weighting: were samples drawn evenly by genre, a sample would come in proportion to the sum of 1 / n_i
    over its genres; genre k alone accounts for 1 / n_k of that. An element's weight is alpha + sigmoid(beta * (r -
    mu)) with r the latter divided by the former: a common genre that a rare one brings along counts little. Soft
    targets count in the sum by their share, which is what mixing the samples' rates gives.

    Negative-tolerant regularisation: with nu = kappa * log(1 / prior - 1), large for rare genres, positives cost
    log(1 + exp(-(x - nu))) and negatives log(1 + exp(lambda * (x - nu))) / lambda: they fall silent sooner.

    A sample without genres has a sum of 0 and r infinite, so its elements weigh alpha + 1, the most there is, as in
    the authors' code. A genre that no sample or that every sample has counts as half a sample off that: its logarithm
    stays finite.

    Wu et al. 2020, "Distribution-Balanced Loss for Multi-Label Classification in Long-Tailed Datasets" (ECCV, arXiv
    2007.09654). The authors draw samples evenly by genre besides, which is not the loss's to do.
    """

    inverse_counts: torch.Tensor
    nu: torch.Tensor

    def __init__(self, counts: FloatArray, num_samples: int, smoothing: float, options: object) -> None:
        super().__init__(counts, num_samples, smoothing, options)
        counts = np.clip(counts, 0.5, num_samples - 0.5)
        self.register_buffer("inverse_counts", _float32(1.0 / counts), persistent=False)
        nu = BALANCED_KAPPA * np.log(num_samples / counts - 1.0)
        self.register_buffer("nu", _float32(nu), persistent=False)

    def costs(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shifted = logits - self.nu
        return -F.logsigmoid(shifted), -F.logsigmoid(-BALANCED_LAMBDA * shifted) / BALANCED_LAMBDA

    def weights(self, targets: torch.Tensor) -> torch.Tensor:
        # Not a matrix product: that would be rounded to TF32 on a GPU that is set to it.
        rates = (targets * self.inverse_counts).sum(dim=1, keepdim=True)
        ratios = self.inverse_counts / rates
        return BALANCED_ALPHA + torch.sigmoid(BALANCED_BETA * (ratios - BALANCED_MU))


def _float32(values: FloatArray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))
