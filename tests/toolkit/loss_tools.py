"""What the tests of losses share: every kind of loss, counts of genres, logits and targets."""

from __future__ import annotations

import numpy as np
import torch

from toolkit.config.schema import LossConfig
from toolkit.training.losses import build_loss

POSITIVES = np.array([600, 250, 40, 3, 0])  # a head, a tail, and a genre that nobody has
NUM_SAMPLES = 1000
GENRES = len(POSITIVES)
BCE = LossConfig(name="bce")
KINDS = {
    "bce": BCE,
    "weighted": LossConfig(name="weighted"),
    "focal": LossConfig(name="focal"),
    "focal-half": LossConfig(name="focal", options={"focal_gamma": 0.5}),
    "asl": LossConfig(name="asl"),
    "asl-both": LossConfig(name="asl", options={"gamma_pos": 1.0, "gamma_neg": 3.0, "clip": 0.2}),
    "asl-half": LossConfig(name="asl", options={"gamma_pos": 0.5, "gamma_neg": 0.25, "clip": 0.0}),
    "balanced": LossConfig(name="balanced"),
}
LINEAR = [kind for kind in KINDS if kind != "balanced"]  # balanced weighs a sample by its targets


def loss_of(config, logits, targets, positives=POSITIVES, num_samples=NUM_SAMPLES):
    loss = build_loss(config, positives, num_samples)
    return loss(torch.as_tensor(logits), torch.as_tensor(targets))


def example(rows=6, seed=0, soft=False):
    """Float32 logits and targets; the last row has no genre."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=4.0, size=(rows, GENRES)).astype(np.float32)
    targets = rng.random((rows, GENRES))
    targets = (targets if soft else targets < 0.4).astype(np.float32)
    targets[-1] = 0
    return logits, targets
