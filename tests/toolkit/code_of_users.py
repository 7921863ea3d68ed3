"""What a user writes: tests copy this file as own_code.py into the current folder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from shards.values import Positive
from toolkit.prediction.formats import Format
from toolkit.training.losses import MultiLabelLoss


class Loss(nn.Module):
    def __init__(self, gamma: float = 1.0, widths: tuple[int, ...] = (), mode: str | None = None):
        super().__init__()
        self.gamma = gamma

    def forward(self, logits, targets):
        return self.gamma * bce(logits, targets, reduction="none").sum(dim=1)


class Scalar(Loss):
    def forward(self, logits, targets):
        return super().forward(logits, targets).mean()


@dataclass
class GammaOptions:
    gamma: Positive = 2.0


class Focal(MultiLabelLoss):
    Options = GammaOptions

    def costs(self, logits):
        positive, negative = super().costs(logits)
        return self.options.gamma * positive, negative


class Needy(nn.Module):
    def __init__(self, level: int):
        super().__init__()


class Invert:
    def __init__(self, probability: float = 0.5):
        self.probability = probability

    def __call__(self, images, draws):
        hit = torch.from_numpy(draws(1)[:, 0] < self.probability).to(images.device)
        return torch.where(hit[:, None, None, None], 255 - images, images)


class Grey(Invert):
    def __call__(self, images, draws):
        return images.mean(dim=1)


class FBeta:
    def __init__(self, beta: float = 2.0):
        self.beta = beta

    def __call__(self, truth, named, probabilities):
        square = self.beta**2
        return (1 + square) * (truth & named).sum() / (square * truth.sum() + named.sum())


class Head(nn.Module):
    def __init__(self, features, labels, width: int = 8):
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, width), nn.Linear(width, labels))

    def forward(self, features):
        return self.layers(features)


class Wrong(nn.Module):
    def __init__(self, features, labels):
        super().__init__()
        self.layer = nn.Linear(features, labels + 1)

    def forward(self, features):
        return self.layer(features)


class Broken(Wrong):
    def forward(self, features):
        raise ZeroDivisionError("no such thing")


class Nothing:
    def __init__(self, rank: int = 1):
        self.rank = rank

    def __call__(self, model):
        self.model = model

    def merge(self, model):
        assert model is not self.model


class Sgd(torch.optim.Optimizer):
    def __init__(self, params, lr: float = 0.1, sign: bool = False):
        super().__init__(params, {"lr": lr, "sign": sign})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight -= group["lr"] * (weight.grad.sign() if group["sign"] else weight.grad)


class Tabs(Format):
    ending, screen = ".tsv", "printable"

    def __init__(self, between: str = "|"):
        self.between = between

    def text(self, rows, shown):
        pairs = zip(rows.ids, rows.names(), strict=True)
        return "".join(f"{image}\t{self.between.join(names)}\n" for image, names in pairs)


class Taken(Tabs):
    ending = ".csv"


CONSTANT = 3
