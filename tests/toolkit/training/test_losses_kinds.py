"""What single kinds of loss are chosen for: weights of positives, the margin, the balance of rare and common genres."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from loss_tools import GENRES, KINDS, POSITIVES, loss_of

from toolkit.config.schema import LossConfig
from toolkit.training.losses import (
    BALANCED_ALPHA,
    BALANCED_BETA,
    BALANCED_KAPPA,
    BALANCED_LAMBDA,
    BALANCED_MU,
    positive_weights,
)


def test_positive_weights():
    weights = positive_weights(np.array([0, 1, 50, 100, 200, 500, 900, 1000]), 1000, 15.0)
    np.testing.assert_allclose(weights, [15, 15, 15, 9, 4, 1, 1, 1])
    np.testing.assert_allclose(positive_weights(np.array([1]), 1000, 1e6), [999])


def test_the_cap_reaches_the_loss():
    logits, targets = np.zeros((1, GENRES), np.float32), np.eye(GENRES, dtype=np.float32)[[3]]
    for cap in (1.0, 8.0, 1000.0):
        loss = loss_of(LossConfig("weighted", options={"pos_weight_cap": cap}), logits, targets)
        weight = min(cap, 997 / 3)
        assert float(loss) == pytest.approx((weight + GENRES - 1) * math.log(2), rel=1e-6)


def test_a_negative_under_the_margin_costs_nothing():
    p = torch.tensor([[0.001, 0.01, 0.049, 0.051, 0.5]])
    logits = torch.logit(p).requires_grad_()
    targets = torch.zeros(1, GENRES)
    config = LossConfig("asl", options={"gamma_neg": 0.0, "clip": 0.05})
    loss_of(config, logits, targets).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[0, :3] == 0).all() and (logits.grad[0, 3:] > 0).all()
    assert float(loss_of(config, logits.detach()[:, [0] * 5], targets)) == 0.0
    unclipped = LossConfig("asl", options={"gamma_neg": 0.0, "clip": 0.0})
    assert float(loss_of(unclipped, logits.detach()[:, [0] * 5], targets)) > 0.0


# --- balanced -------------------------------------------------------------------------------------


def test_balanced_by_hand():
    # 100 samples, counts 50 and 5; the sample has both genres: 1/n = 0.02 and 0.2, their sum 0.22.
    # r = 1/11 and 10/11; weights 0.1 + sigmoid(10 * (r - 0.3)) = 0.2099836, 1.0977418.
    # nu = 0.05 * log(1) and 0.05 * log(19) = 0 and 0.1472219.
    # At logits 0: log(2) and log(1 + exp(0.1472219)) = 0.6931472, 0.7694650.
    loss = loss_of(KINDS["balanced"], torch.zeros(1, 2), torch.ones(1, 2), np.array([50, 5]), 100)
    assert float(loss) == pytest.approx(0.2099836 * 0.6931472 + 1.0977418 * 0.7694650, rel=1e-6)
    # With neither: r infinite, weights 1.1; log(2) / 5 and log(1 + exp(-5 * 0.1472219)) / 5.
    loss = loss_of(KINDS["balanced"], torch.zeros(1, 2), torch.zeros(1, 2), np.array([50, 5]), 100)
    assert float(loss) == pytest.approx(1.1 * (0.6931472 + 0.3913484) / 5, rel=1e-6)


def balanced_gradients(targets, positives=POSITIVES):
    logits = torch.zeros(1, len(positives), requires_grad=True)
    loss_of(KINDS["balanced"], logits, torch.tensor([targets]), positives).sum().backward()
    assert logits.grad is not None
    return logits.grad[0]


def test_balanced_rare_positives_pull_harder_than_common_ones():
    pull = -balanced_gradients([1.0] * GENRES)
    assert (pull[1:] > pull[:-1]).all()
    # A common genre counts for less where a rare one has brought it along.
    alone, brought = balanced_gradients([1.0, 0, 0, 0, 0])[0], balanced_gradients([1.0, 0, 0, 1.0, 0])[0]
    assert abs(brought) < 0.2 * abs(alone)


def test_balanced_negatives_fall_silent():
    logits = torch.tensor([[-2.0] * GENRES], requires_grad=True)
    loss_of(KINDS["balanced"], logits, torch.zeros(1, GENRES)).sum().backward()
    assert logits.grad is not None
    assert (logits.grad > 0).all() and (logits.grad < 1e-4).all()
    assert (logits.grad[0, 1:] < logits.grad[0, :-1]).all()  # the rarer, the sooner


def test_balanced_weights_see_targets_before_smoothing():
    # Smoothed targets would give each of the absent genres a part in the sum of rates.
    logits, targets = np.zeros((1, 2), np.float32), np.array([[1.0, 0.0]], np.float32)
    config, counts = LossConfig(name="balanced", smoothing=0.2), np.array([50, 5])
    weights = BALANCED_ALPHA + 1 / (1 + np.exp(-BALANCED_BETA * (np.array([1.0, 10.0]) - BALANCED_MU)))
    nu = BALANCED_KAPPA * np.log(100 / counts - 1)
    positive = np.log1p(np.exp(nu))
    negative = np.log1p(np.exp(-BALANCED_LAMBDA * nu)) / BALANCED_LAMBDA
    moved = np.array([0.9, 0.1])
    wanted = (weights * (moved * positive + (1 - moved) * negative)).sum()
    assert float(loss_of(config, logits, targets, counts, 100)) == pytest.approx(wanted, rel=1e-6)
