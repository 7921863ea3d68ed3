"""What losses of all kinds promise, and calls that they refuse; test_losses_reference.py has their numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from loss_tools import BCE, GENRES, KINDS, LINEAR, NUM_SAMPLES, POSITIVES, example, loss_of

from toolkit.training.losses import BALANCED_ALPHA, MultiLabelLoss, build_loss


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
        torch.testing.assert_close(losses, loss_of(config, torch.tensor(rows), targets.float()), rtol=0, atol=0)
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
        Probe(np.ones(2), 2, 0.0)(torch.zeros(1, 2, dtype=torch.bfloat16), torch.zeros(1, 2))
    assert seen == [(False, torch.float32)]


@pytest.mark.parametrize(("kind", "count"), [("bce", 0), ("weighted", 1), ("balanced", 2)])
def test_weights_move_with_the_module_and_are_not_saved(kind, count):
    loss = build_loss(KINDS[kind], POSITIVES, NUM_SAMPLES)
    assert not loss.state_dict() and not list(loss.parameters())
    buffers = list(loss.to("meta").buffers())
    assert len(buffers) == count and all(buffer.device.type == "meta" for buffer in buffers)


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


# --- wrong calls ----------------------------------------------------------------------------------


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
        (np.zeros((2, 2)), 10, "one count per label"),
        (np.zeros(0), 10, "one count per label"),
        (np.array([1, 11]), 10, "must lie in"),
        (np.array([-1, 1]), 10, "must lie in"),
        (np.array([np.nan, 1]), 10, "must lie in"),
        (np.array([0, 0]), 0, "num_samples"),
    ],
)
def test_wrong_counts(positives, num_samples, message):
    with pytest.raises(ValueError, match=message):
        build_loss(BCE, positives, num_samples)
