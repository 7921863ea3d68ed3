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
from timm.loss import AsymmetricLossMultiLabel
from torch import nn
from torchvision.ops import sigmoid_focal_loss

from toolkit.config import LossConfig
from toolkit.losses import (
    BALANCED_ALPHA,
    BALANCED_BETA,
    BALANCED_KAPPA,
    BALANCED_LAMBDA,
    BALANCED_MU,
    MultiLabelLoss,
    build_loss,
    positive_weights,
)

POSITIVES = np.array([600, 250, 40, 3, 0])  # a head, a tail, and a genre that nobody has
NUM_SAMPLES = 1000
GENRES = len(POSITIVES)

BCE = LossConfig(name="bce")
KINDS = {
    "bce": BCE,
    "weighted": LossConfig(name="weighted"),
    "focal": LossConfig(name="focal"),
    "focal-half": LossConfig(name="focal", focal_gamma=0.5),
    "asl": LossConfig(name="asl"),
    "asl-both": LossConfig(name="asl", gamma_pos=1.0, gamma_neg=3.0, clip=0.2),
    "asl-half": LossConfig(name="asl", gamma_pos=0.5, gamma_neg=0.25, clip=0.0),
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


# --- the reference ----------------------------------------------------------------------------------


def logistic(x):
    return 1.0 / (1.0 + math.exp(-x))


def element(config, x, y, k, row):
    """One element by the papers' formulas, in Python floats; ``row`` is its sample's targets before smoothing."""
    p, not_p = logistic(x), logistic(-x)
    if config.name == "bce":
        return -y * math.log(p) - (1 - y) * math.log(not_p)
    if config.name == "weighted":
        weight = (NUM_SAMPLES - POSITIVES[k]) / POSITIVES[k] if POSITIVES[k] else math.inf
        weight = max(1.0, min(weight, config.pos_weight_cap))
        return -weight * y * math.log(p) - (1 - y) * math.log(not_p)
    if config.name == "focal":
        gamma = config.focal_gamma
        return -y * not_p**gamma * math.log(p) - (1 - y) * p**gamma * math.log(not_p)
    if config.name == "asl":
        q = max(p - config.clip, 0.0)
        not_q = min(not_p + config.clip, 1.0)
        positive = -(not_p**config.gamma_pos) * math.log(p)
        return y * positive - (1 - y) * q**config.gamma_neg * math.log(not_q)
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
        totals.append(
            sum(element(config, x, y, k, row) for k, (x, y) in enumerate(zip(xs, moved, strict=True)))
        )
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


# --- referees ---------------------------------------------------------------------------------------


def values_and_gradients(loss, logits):
    x = torch.tensor(logits, requires_grad=True)
    values = loss(x)
    values.sum().backward()
    return values.detach(), x.grad


def assert_same(ours, theirs, logits, **tolerance):
    for mine, referee in zip(
        values_and_gradients(ours, logits), values_and_gradients(theirs, logits), strict=True
    ):
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
        lambda x: loss_of(LossConfig(name="focal", focal_gamma=gamma), x, y),
        lambda x: sigmoid_focal_loss(x, y, alpha=-1, gamma=gamma).sum(1),
        logits,
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("gamma_pos", "gamma_neg", "clip"), [(0, 4, 0.05), (1, 4, 0.05), (1, 2, 0), (0, 0, 0.1)]
)
def test_timm_agrees_on_asymmetric(gamma_pos, gamma_neg, clip):
    logits, targets = example(32)
    y = torch.tensor(targets)
    # One row at a time: its sum over genres, whichever reduction over rows this version of timm has.
    timm_loss = AsymmetricLossMultiLabel(gamma_neg, gamma_pos, clip)
    config = LossConfig(name="asl", gamma_pos=gamma_pos, gamma_neg=gamma_neg, clip=clip)
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
        LossConfig(name="focal", focal_gamma=0.0),
        LossConfig(name="asl", gamma_pos=0.0, gamma_neg=0.0, clip=0.0),
    ],
    ids=["focal", "asl"],
)
def test_without_focus_and_margin_it_is_cross_entropy(config):
    logits, targets = example(16, soft=True)
    assert_same(lambda x: loss_of(config, x, targets), lambda x: loss_of(BCE, x, targets), logits)


# --- what all kinds promise -------------------------------------------------------------------------


def test_kinds_differ():
    logits, targets = example(1, seed=3)
    targets[0, :2] = 1
    losses = [float(loss_of(config, logits, targets)) for config in KINDS.values()]
    assert len({round(loss, 4) for loss in losses}) == len(KINDS)


@pytest.mark.parametrize("kind", LINEAR)
def test_mixed_targets_cost_the_mix_of_the_costs(kind):
    logits, first = example(8, seed=1)
    second = first[::-1].copy()
    mixed = loss_of(KINDS[kind], logits, 0.3 * first + 0.7 * second)
    apart = 0.3 * loss_of(KINDS[kind], logits, first) + 0.7 * loss_of(KINDS[kind], logits, second)
    torch.testing.assert_close(mixed, apart)


@pytest.mark.parametrize("kind", LINEAR)
def test_smoothing_moves_targets_towards_one_half(kind):
    logits, targets = example(8, soft=True)
    smooth = loss_of(replace(KINDS[kind], smoothing=0.2), logits, targets)
    torch.testing.assert_close(smooth, loss_of(KINDS[kind], logits, targets * 0.8 + 0.1))
    assert (smooth != loss_of(KINDS[kind], logits, targets)).all()


@pytest.mark.parametrize("kind", LINEAR)
def test_genres_are_summed(kind):
    logits, targets = example(4)
    once = loss_of(KINDS[kind], logits, targets)
    twice = loss_of(KINDS[kind], np.tile(logits, 2), np.tile(targets, 2), np.tile(POSITIVES, 2))
    torch.testing.assert_close(twice, 2 * once)


@pytest.mark.parametrize("kind", KINDS)
def test_genres_may_come_in_any_order(kind):
    logits, targets = example(4)
    order = [3, 1, 4, 0, 2]
    turned = loss_of(KINDS[kind], logits[:, order], targets[:, order], POSITIVES[order])
    torch.testing.assert_close(turned, loss_of(KINDS[kind], logits, targets))


@pytest.mark.parametrize("kind", KINDS)
def test_samples_do_not_touch_each_other(kind):
    # Padding rows of a batch are masked out afterwards; they must not have changed the others by then.
    logits, targets = example(5)
    together = loss_of(KINDS[kind], logits, targets)
    alone = torch.cat([loss_of(KINDS[kind], logits[[i]], targets[[i]]) for i in range(5)])
    torch.testing.assert_close(together, alone)
    assert loss_of(KINDS[kind], logits[:0], targets[:0]).shape == (0,)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits_of_any_type(kind, dtype, autocast):
    # All of them exact in bf16 and in fp16.
    values = [-9984.0, -100.0, -40.0, -0.5, 0.0, 40.0, 100.0, 9984.0]
    rows = [[v] * GENRES for v in values]
    config = replace(KINDS[kind], smoothing=0.1)
    for target in (0.0, 0.5, 1.0):
        logits = torch.tensor(rows, dtype=dtype, requires_grad=True)
        targets = torch.full(logits.shape, target, dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses = build_loss(config, POSITIVES, NUM_SAMPLES)(logits, targets)
        assert losses.dtype == torch.float32 and torch.isfinite(losses).all() and (losses > 0).all()
        torch.testing.assert_close(
            losses, loss_of(config, torch.tensor(rows), targets.float()), rtol=0, atol=0
        )
        losses.sum().backward()
        assert logits.grad is not None and logits.grad.dtype == dtype and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_positive_that_is_far_off_keeps_its_gradient(kind):
    # A floor under the probability would silence exactly the worst mistakes.
    logits = torch.full((1, GENRES), -100.0, requires_grad=True)
    loss_of(KINDS[kind], logits, torch.ones(1, GENRES)).sum().backward()
    assert logits.grad is not None
    assert (logits.grad <= -BALANCED_ALPHA).all()


def test_autocast_is_off_inside():
    seen = []

    class Probe(MultiLabelLoss):
        def costs(self, logits):
            seen.append((torch.is_autocast_enabled("cpu"), logits.dtype))
            return super().costs(logits)

    with torch.autocast("cpu", torch.bfloat16):
        Probe(2, 0.0)(torch.zeros(1, 2, dtype=torch.bfloat16), torch.zeros(1, 2))
    assert seen == [(False, torch.float32)]


@pytest.mark.parametrize(("kind", "count"), [("bce", 0), ("weighted", 1), ("asl", 1), ("balanced", 2)])
def test_weights_move_with_the_module_and_are_not_saved(kind, count):
    loss = build_loss(KINDS[kind], POSITIVES, NUM_SAMPLES)
    assert not loss.state_dict() and not list(loss.parameters())
    buffers = list(loss.to("meta").buffers())
    assert len(buffers) == count and all(buffer.device.type == "meta" for buffer in buffers)


# --- single kinds -----------------------------------------------------------------------------------


def test_positive_weights():
    weights = positive_weights(np.array([0, 1, 50, 100, 200, 500, 900, 1000]), 1000, 15.0)
    np.testing.assert_allclose(weights, [15, 15, 15, 9, 4, 1, 1, 1])
    np.testing.assert_allclose(positive_weights(np.array([1]), 1000, 1e6), [999])


def test_the_cap_reaches_the_loss():
    logits, targets = np.zeros((1, GENRES), np.float32), np.eye(GENRES, dtype=np.float32)[[3]]
    for cap in (1.0, 8.0, 1000.0):
        loss = loss_of(LossConfig(name="weighted", pos_weight_cap=cap), logits, targets)
        weight = min(cap, 997 / 3)
        assert float(loss) == pytest.approx((weight + GENRES - 1) * math.log(2), rel=1e-6)


def test_a_negative_under_the_margin_costs_nothing():
    p = torch.tensor([[0.001, 0.01, 0.049, 0.051, 0.5]])
    logits = torch.logit(p).requires_grad_()
    targets = torch.zeros(1, GENRES)
    config = LossConfig(name="asl", gamma_neg=0.0, clip=0.05)
    loss_of(config, logits, targets).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[0, :3] == 0).all() and (logits.grad[0, 3:] > 0).all()
    assert float(loss_of(config, logits.detach()[:, [0] * 5], targets)) == 0.0
    assert float(loss_of(replace(config, clip=0.0), logits.detach()[:, [0] * 5], targets)) > 0.0


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


@pytest.mark.parametrize("num_samples", [1, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_genres_that_all_samples_or_none_have(kind, num_samples):
    positives = np.array([0, num_samples])
    for targets in ([[0.0, 0.0]], [[0.0, 1.0]], [[1.0, 1.0]]):
        logits = torch.zeros(1, 2, requires_grad=True)
        loss = loss_of(KINDS[kind], logits, torch.tensor(targets), positives, num_samples)
        loss.sum().backward()
        assert torch.isfinite(loss).all() and logits.grad is not None and torch.isfinite(logits.grad).all()
        assert (logits.grad != 0).all()


# --- wrong calls ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        ((3, GENRES + 1), (3, GENRES + 1), "logits must have shape"),
        ((GENRES,), (GENRES,), "logits must have shape"),
        ((3, GENRES), (2, GENRES), "targets must have shape"),
        ((3, GENRES), (1, GENRES), "targets must have shape"),  # would broadcast
        ((3, GENRES), (GENRES,), "targets must have shape"),
    ],
)
@pytest.mark.parametrize("kind", ["bce", "balanced"])
def test_wrong_shapes(kind, logits, targets, message):
    with pytest.raises(ValueError, match=message):
        loss_of(KINDS[kind], torch.zeros(logits), torch.zeros(targets))


@pytest.mark.parametrize(
    ("positives", "num_samples", "message"),
    [
        (np.zeros((2, 2)), 10, "one count per genre"),
        (np.zeros(0), 10, "one count per genre"),
        (np.array([1, 11]), 10, "must lie in"),
        (np.array([-1, 1]), 10, "must lie in"),
        (np.array([np.nan, 1]), 10, "must lie in"),
        (np.array([0, 0]), 0, "num_samples"),
    ],
)
def test_wrong_counts(positives, num_samples, message):
    with pytest.raises(ValueError, match=message):
        build_loss(BCE, positives, num_samples)


def test_unknown_name():
    with pytest.raises(ValueError, match="hinge"):
        build_loss(replace(BCE, name="hinge"), POSITIVES, NUM_SAMPLES)  # type: ignore[arg-type]
