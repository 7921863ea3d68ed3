"""Multi-label losses, listed in toolkit/config/loss_registry.py. The loss of a sample is the sum over its labels.

An element is one label of one sample, with logit x and target y. Its loss is w * (y * positive(x) + (1 - y) *
negative(x)). Each loss defines positive(x), negative(x) and w. For targets 0 and 1 these are the losses of the
papers. With soft targets (between 0 and 1, from mixup or label smoothing), the loss is the weighted mean of both costs.
timm and torchvision also use soft targets in the focusing factor, so their losses differ from the losses here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from shards.errors import UserError
from shards.extras import load_object
from toolkit.config.extensions import checked_tensor, is_place, make
from toolkit.config.loss_registry import LOSSES, WeightedOptions
from toolkit.config.schema import LossConfig
from toolkit.metrics.helpers import FloatArray

# Constants of the distribution-balanced loss: the authors' values for VOC-LT, whose 20 classes are most similar to a
# set of genres (github.com/wutong16/DistributionBalancedLoss, configs/voc/LT_resnet50_pfc_DB.py). For COCO-LT, with 80
# classes, BALANCED_MU is 0.2 and BALANCED_LAMBDA 2.
BALANCED_ALPHA = 0.1  # least weight of an element
BALANCED_BETA = 10.0  # how steeply the weight rises
BALANCED_MU = 0.3  # ratio r at which the weight rises
# The authors' code divides kappa by lambda, the paper does not. The authors say the paper is right (their issue 8).
BALANCED_KAPPA = 0.05
BALANCED_LAMBDA = 5.0  # the gradient of a negative vanishes faster by this factor


def build_loss(config: LossConfig, positives: np.ndarray, num_samples: int) -> nn.Module:
    """Return the loss module ``config.name``. It is called like `MultiLabelLoss`.

    positives: (G,) number of training samples with each label. num_samples: number of training samples. The losses
    ``weighted`` and ``balanced`` compute weights from these counts. The other losses only use the number of labels G.
    Raises ValueError if the counts are not between 0 and ``num_samples``.
    """
    counts = np.asarray(positives, dtype=np.float64)
    if counts.ndim != 1 or counts.size == 0:
        raise ValueError(f"positives must contain one count per label, got shape {counts.shape}")
    if num_samples < 1:
        raise ValueError(f"num_samples must be positive, got {num_samples}")
    if not ((counts >= 0) & (counts <= num_samples)).all():
        raise ValueError(f"positives must lie in [0, {num_samples}], got {counts.min():g} to {counts.max():g}")
    if is_place(config.name):
        given = {"counts": counts, "num_samples": num_samples, "smoothing": config.smoothing}
        own: nn.Module = make("loss", config.name, config.options, "loss.options", **given)
        if config.smoothing and not isinstance(own, MultiLabelLoss):
            raise UserError("option-conflict", f"loss.smoothing has no effect on {config.name}: set --loss.smoothing 0")
        return OwnLoss(own, config.name, len(counts))
    entry = LOSSES[config.name]
    kind: type[MultiLabelLoss] = load_object(entry.computed_by)
    return kind(counts, num_samples, config.smoothing, entry.options(**config.options))


def positive_weights(counts: np.ndarray, num_samples: int, cap: float) -> FloatArray:
    """Return the weights (G,) of positives: number of negatives / number of positives, limited to [1, cap].

    ``counts`` (G,) are the numbers of positives. A label without positives has the weight ``cap``. If at least
    half of the samples have a label, the weight of this label is 1.
    """
    ratios = np.full(counts.shape, np.inf)
    np.divide(num_samples - counts, counts, out=ratios, where=counts > 0)
    weights: FloatArray = np.clip(ratios, 1.0, cap)
    return weights


class MultiLabelLoss(nn.Module):
    """Binary cross-entropy of each sample. The other losses are subclasses that override `costs` or `weights`.

    smoothing: label smoothing s changes a target y to y + s * (0.5 - y). Buffers (such as label weights) are not in the
    state dict, because they are computed from the config and the training set.
    """

    def __init__(self, counts: FloatArray, num_samples: int, smoothing: float, options: Any = None) -> None:
        """``counts`` (G,): number of positives in training. ``options``: options of this loss (loss_registry.py)."""
        super().__init__()
        self.num_labels, self.smoothing, self.options = len(counts), smoothing, options

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the losses (n,) of logits (n, G) and targets (n, G) in [0, 1], in nats and summed over labels.

        Inputs can have any dtype. Losses are computed in float32, without autocast. Raises ValueError if a shape is
        wrong. The range of targets is not checked, because this check must wait for the device.
        """
        if logits.ndim != 2 or logits.shape[1] != self.num_labels:
            raise ValueError(f"logits must have shape (n, {self.num_labels}), got {tuple(logits.shape)}")
        if targets.shape != logits.shape:
            raise ValueError(f"targets must have shape {tuple(logits.shape)}, got {tuple(targets.shape)}")
        with torch.autocast(logits.device.type, enabled=False):
            share = targets = targets.float()
            if self.smoothing:
                share = targets * (1.0 - self.smoothing) + 0.5 * self.smoothing
            positive, negative = self.costs(logits.float())
            losses = share * positive + (1.0 - share) * negative
            if type(self).weights is not MultiLabelLoss.weights:  # a factor of 1 changes nothing
                losses = losses * self.weights(targets)
            return losses.sum(dim=1)

    def costs(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return two (n, G) tensors: the costs of the elements for target 1, and the costs for target 0."""
        return -F.logsigmoid(logits), -F.logsigmoid(-logits)

    def weights(self, targets: torch.Tensor) -> torch.Tensor:
        """Return the factor w of each element, in a shape that broadcasts to (n, G). ``targets`` are not smoothed."""
        return targets.new_ones(())


class OwnLoss(nn.Module):
    """Calls a loss of the user in float32, and checks the shape of its result."""

    def __init__(self, own: nn.Module, name: str, num_labels: int) -> None:
        super().__init__()
        self.own, self.name, self.num_labels = own, name, num_labels

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the (n,) float32 losses of (n, G) logits and targets. Raises UserError for another shape."""
        with torch.autocast(logits.device.type, enabled=False):
            losses = self.own(logits.float(), targets.float())
        shape, what = tuple(logits.shape), f"loss.name {self.name}"
        checked: torch.Tensor = checked_tensor(
            losses, shape[:1], what, f"logits of shape {shape}", "one loss per sample"
        )
        return checked.float()


class WeightedLoss(MultiLabelLoss):
    """Cross-entropy with positives weighted by ``pos_weight`` (G,), as in torch.nn.BCEWithLogitsLoss."""

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
        # exp of the logarithm, because pow() has an infinite derivative at 0 for exponents under 1.
        gamma = self.options.focal_gamma
        return -torch.exp(gamma * log_not_p) * log_p, -torch.exp(gamma * log_p) * log_not_p


class AsymmetricLoss(MultiLabelLoss):
    """Asymmetric loss: a focal loss with two exponents. Negatives with probability under ``clip`` cost nothing.

    A positive costs (1 - p)^gamma_pos * -log p. A negative costs q^gamma_neg * -log(1 - q) with q = max(p - clip, 0).
    Gradients pass through the focusing factors, as in the paper's gradient analysis.

    Ridnik et al. 2021, "Asymmetric Loss For Multi-Label Classification" (arXiv 2009.14119).
    """

    def costs(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_p, log_not_p = F.logsigmoid(logits), F.logsigmoid(-logits)
        positive = -torch.exp(self.options.gamma_pos * log_not_p) * log_p
        # log(1 - q) = min(log((1 - p) + clip), 0), computed from logarithms: exact for any logit.
        log_clip = math.log(self.options.clip) if self.options.clip > 0 else -math.inf
        log_not_q = torch.logaddexp(log_not_p, logits.new_full((), log_clip)).clamp(max=0.0)
        # q is slightly above 0, because exponents under 1 have an infinite derivative at 0.
        q = (torch.sigmoid(logits) - self.options.clip).clamp(min=torch.finfo(torch.float32).tiny)
        return positive, -(q**self.options.gamma_neg) * log_not_q


class DistributionBalancedLoss(MultiLabelLoss):
    """Distribution-balanced loss without a focal factor: equation 9 of the paper, summed over labels.

    Re-balanced weighting: n_i is the number of training samples with label i. For a sample and a label k, r is 1 / n_k
    divided by the sum of 1 / n_i over the sample's labels i. The weight of label k is alpha + sigmoid(beta * (r - mu)).
    A common label beside a rare label therefore has a low weight. Soft targets multiply the terms 1 / n_i.

    Negative-tolerant regularisation: nu = kappa * log(1 / prior - 1) is large for rare labels. A positive costs log(1 +
    exp(-(x - nu))). A negative costs log(1 + exp(lambda * (x - nu))) / lambda, whose gradient vanishes faster.

    For a sample without labels the sum is 0 and r is infinite. All its labels have the largest weight, alpha + 1, as in
    the authors' code. Counts are kept between 0.5 and num_samples - 0.5, so that the logarithm stays finite.

    Wu et al. 2020, "Distribution-Balanced Loss for Multi-Label Classification in Long-Tailed Datasets" (ECCV, arXiv
    2007.09654). The authors also use label-balanced sampling, which is not part of the loss.
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
        # Not a matrix product, because a GPU with TF32 enabled rounds its inputs.
        rates = (targets * self.inverse_counts).sum(dim=1, keepdim=True)
        ratios = self.inverse_counts / rates
        return BALANCED_ALPHA + torch.sigmoid(BALANCED_BETA * (ratios - BALANCED_MU))


def _float32(values: FloatArray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))
