"""Optimiser, learning-rate schedule and loss."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from toolkit.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Optimiser over the parameters that are not frozen; weight decay spares vectors (biases, normalisation)."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr)


def lr_factor(config: OptimConfig, total_steps: int) -> Callable[[int], float]:
    """Update number → factor on the peak learning rate. Counted in updates, never in processes."""

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        if config.schedule == "constant":
            return 1.0
        progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))

    return factor


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups. A pure function of the step needs no scheduler state."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def sample_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(n,) float32 binary cross-entropy, mean over genres. In float32 whatever the autocast type."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none").mean(dim=1)
