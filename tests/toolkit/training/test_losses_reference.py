"""Losses against a scalar reference in float64, and against torch's, torchvision's and timm's where they exist."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from loss_tools import BCE, GENRES, KINDS, NUM_SAMPLES, POSITIVES, example, loss_of
from timm.loss import AsymmetricLossMultiLabel
from torch import nn
from torchvision.ops import sigmoid_focal_loss

from toolkit.config.schema import LossConfig
from toolkit.training.losses import BALANCED_ALPHA, BALANCED_BETA, BALANCED_KAPPA, BALANCED_LAMBDA, BALANCED_MU

# --- the reference --------------------------------------------------------------------------------


def logistic(x):
    return 1.0 / (1.0 + math.exp(-x))


def element(config, x, y, k, row):
    """One element by the papers' formulas, in Python floats; ``row`` is its sample's targets before smoothing."""
    p, not_p = logistic(x), logistic(-x)
    if config.name == "bce":
        return -y * math.log(p) - (1 - y) * math.log(not_p)
    if config.name == "weighted":
        weight = (NUM_SAMPLES - POSITIVES[k]) / POSITIVES[k] if POSITIVES[k] else math.inf
        weight = max(1.0, min(weight, config.options["pos_weight_cap"]))
        return -weight * y * math.log(p) - (1 - y) * math.log(not_p)
    if config.name == "focal":
        gamma = config.options["focal_gamma"]
        return -y * not_p**gamma * math.log(p) - (1 - y) * p**gamma * math.log(not_p)
    if config.name == "asl":
        q = max(p - config.options["clip"], 0.0)
        not_q = min(not_p + config.options["clip"], 1.0)
        positive = -(not_p ** config.options["gamma_pos"]) * math.log(p)
        return y * positive - (1 - y) * q ** config.options["gamma_neg"] * math.log(not_q)
    counts = [max(0.5, float(count)) for count in POSITIVES]
    rate = sum(share / count for share, count in zip(row, counts, strict=True))
    ratio = (1 / counts[k]) / rate if rate else math.inf
    weight = BALANCED_ALPHA + 1 / (1 + math.exp(-BALANCED_BETA * (ratio - BALANCED_MU)))
    z = x - BALANCED_KAPPA * math.log(NUM_SAMPLES / counts[k] - 1)
    negative = math.log(1 + math.exp(BALANCED_LAMBDA * z)) / BALANCED_LAMBDA
    return weight * (y * math.log(1 + math.exp(-z)) + (1 - y) * negative)


def reference(config, logits, targets):
    """(n,) float64 losses."""
    smoothing = config.smoothing
    totals = []
    for xs, row in zip(logits.astype(float), targets.astype(float), strict=True):
        moved = [y + smoothing * (0.5 - y) for y in row]
        totals.append(sum(element(config, x, y, k, row) for k, (x, y) in enumerate(zip(xs, moved, strict=True))))
    return np.array(totals)


float32 = st.floats(-20, 20, width=32)
share = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1, width=32))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(
    logits=arrays(np.float32, (2, GENRES), elements=float32),
    targets=arrays(np.float32, (2, GENRES), elements=share),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_losses_are_the_papers(kind, logits, targets, smoothing):
    config = replace(KINDS[kind], smoothing=smoothing)
    losses = loss_of(config, logits, targets)
    assert losses.shape == (2,) and losses.dtype == torch.float32
    np.testing.assert_allclose(losses.numpy(), reference(config, logits, targets), rtol=3e-6, atol=2e-6)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_papers(kind, soft):
    # Central differences of the reference: a factor that was cut off from the gradient would be found.
    config = replace(KINDS[kind], smoothing=0.1)
    logits, targets = example(soft=soft)
    x = torch.tensor(logits, requires_grad=True)
    loss_of(config, x, targets).sum().backward()
    step = 1e-5
    wanted = np.empty(logits.shape)
    for k in range(GENRES):
        shift = step * (np.arange(GENRES) == k)
        above, below = (reference(config, logits.astype(float) + s, targets) for s in (shift, -shift))
        wanted[:, k] = (above - below) / (2 * step)
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), wanted, rtol=1e-4, atol=2e-6)


# --- referees -------------------------------------------------------------------------------------


def values_and_gradients(loss, logits):
    x = torch.tensor(logits, requires_grad=True)
    values = loss(x)
    values.sum().backward()
    return values.detach(), x.grad


def assert_same(ours, theirs, logits, **tolerance):
    for mine, referee in zip(values_and_gradients(ours, logits), values_and_gradients(theirs, logits), strict=True):
        torch.testing.assert_close(mine, referee, **tolerance)


@pytest.mark.parametrize("soft", [False, True])
def test_torch_agrees_on_cross_entropy_with_and_without_weights(soft):
    logits, targets = example(32, soft=soft)
    y = torch.tensor(targets)
    plain = nn.BCEWithLogitsLoss(reduction="none")
    assert_same(lambda x: loss_of(BCE, x, y), lambda x: plain(x, y).sum(1), logits)
    pos_weight = torch.tensor([1.0, 3.0, 20.0, 20.0, 20.0])
    weighted = nn.BCEWithLogitsLoss(reduction="none", pos_weight=pos_weight)
    assert_same(lambda x: loss_of(KINDS["weighted"], x, y), lambda x: weighted(x, y).sum(1), logits)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.5])
def test_torchvision_agrees_on_focal(gamma):
    logits, targets = example(32)
    y = torch.tensor(targets)
    assert_same(
        lambda x: loss_of(LossConfig("focal", options={"focal_gamma": gamma}), x, y),
        lambda x: sigmoid_focal_loss(x, y, alpha=-1, gamma=gamma).sum(1),
        logits,
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize(("gamma_pos", "gamma_neg", "clip"), [(0, 4, 0.05), (1, 4, 0.05), (1, 2, 0), (0, 0, 0.1)])
def test_timm_agrees_on_asymmetric(gamma_pos, gamma_neg, clip):
    logits, targets = example(32)
    y = torch.tensor(targets)
    # One row at a time: its sum over genres, whichever reduction over rows this version of timm has.
    timm_loss = AsymmetricLossMultiLabel(gamma_neg, gamma_pos, clip)
    config = LossConfig("asl", options={"gamma_pos": gamma_pos, "gamma_neg": gamma_neg, "clip": clip})
    assert_same(
        lambda x: loss_of(config, x, y),
        lambda x: torch.stack([timm_loss(x[[i]], y[[i]]) for i in range(32)]),
        logits,
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "config",
    [
        LossConfig("focal", options={"focal_gamma": 0.0}),
        LossConfig("asl", options={"gamma_pos": 0.0, "gamma_neg": 0.0, "clip": 0.0}),
    ],
    ids=["focal", "asl"],
)
def test_without_focus_and_margin_it_is_cross_entropy(config):
    logits, targets = example(16, soft=True)
    assert_same(lambda x: loss_of(config, x, targets), lambda x: loss_of(BCE, x, targets), logits)
