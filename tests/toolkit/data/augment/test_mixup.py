"""Mixup and cutmix: exact sums and areas, lambda's distribution, and only pairs that may be mixed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from toolkit.config.augmentation_registry import AugmentConfig
from toolkit.data.augment.mixup import draw_pairs, mix
from toolkit.data.sampling.plan import MicroBatch

MIXUP, CUTMIX = AugmentConfig(mixup=0.4), AugmentConfig(cutmix=1.0)
BOTH = AugmentConfig(mixup=0.4, cutmix=1.0)
configs = st.sampled_from([MIXUP, CUTMIX, BOTH])


def share_of(n: int, invalid: tuple[int, ...] = ()) -> MicroBatch:
    valid = np.ones(n, dtype=bool)
    valid[list(invalid)] = False
    return MicroBatch(np.arange(n) * 7 + 1, valid)


def batch(n: int, side: int = 12, genres: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, 3, side, side), generator=generator).float()
    return images, (torch.rand((n, genres), generator=generator) < 0.4).float()


@settings(max_examples=100, deadline=None)
@given(configs, st.integers(1, 24), st.sets(st.integers(0, 23), max_size=5), st.integers(0, 99))
def test_partners_exchange_and_nothing_is_lost(config, n, invalid, epoch):
    micro_batch = share_of(n, tuple(i for i in invalid if i < n))
    images, targets = batch(n)
    pairs = draw_pairs(config, 12, micro_batch, 0, epoch)
    mixed, labels = mix(images, targets, pairs)
    rows = np.stack([pairs.first, pairs.first + 1])
    assert (pairs.first % 2 == 0).all() and micro_batch.valid[rows].all()
    others = np.setdiff1d(np.arange(n), rows)
    assert torch.equal(mixed[others], images[others]) and torch.equal(labels[others], targets[others])
    for row, kept in zip(pairs.first.tolist(), pairs.kept.tolist(), strict=True):
        two = slice(row, row + 2)
        assert 0.0 <= kept <= 1.0
        torch.testing.assert_close(mixed[two].sum(dim=0), images[two].sum(dim=0), atol=1e-3, rtol=0)
        torch.testing.assert_close(labels[two].sum(dim=0), targets[two].sum(dim=0), atol=1e-6, rtol=0)
        expected = kept * targets[row] + (1 - kept) * targets[row + 1]
        torch.testing.assert_close(labels[row], expected, atol=1e-6, rtol=0)


def test_mixup_is_its_formula():
    images, targets = batch(20)
    pairs = draw_pairs(MIXUP, 12, share_of(20), 0, 0)
    mixed, _ = mix(images, targets, pairs)
    assert len(pairs.first) == 10 and not pairs.cut.any()
    for row, kept in zip(pairs.first.tolist(), pairs.kept.tolist(), strict=True):
        expected = kept * images[row] + (1 - kept) * images[row + 1]
        torch.testing.assert_close(mixed[row], expected, atol=1e-3, rtol=0)


def test_cutmix_keeps_exactly_the_area_that_lambda_says():
    images, targets = batch(60)
    pairs = draw_pairs(CUTMIX, 12, share_of(60), 0, 0)
    mixed, _ = mix(images, targets, pairs)
    assert len(pairs.first) == 30 and pairs.cut.all()
    assert len(set(pairs.kept.tolist())) > 10
    for row, kept in zip(pairs.first.tolist(), pairs.kept.tolist(), strict=True):
        for own, partner in ((row, row + 1), (row + 1, row)):
            stayed = (mixed[own] == images[own]).all(dim=0)
            came = (mixed[own] == images[partner]).all(dim=0)
            assert (stayed | came).all()
            assert (~stayed).sum() == round((1 - kept) * 144)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_lambda_is_beta(alpha: float):
    pairs = draw_pairs(AugmentConfig(mixup=alpha), 12, share_of(8000), 1, 0)
    assert stats.kstest(pairs.kept, stats.beta(alpha, alpha).cdf).pvalue > 1e-4


def test_cutmix_boxes_are_distributed_as_the_papers():
    """Areas against the paper's algorithm with numpy's generator."""
    pairs = draw_pairs(CUTMIX, 64, share_of(8000), 1, 0)
    rng = np.random.default_rng(0)
    cut = (64 * np.sqrt(1 - rng.beta(1, 1, 4000))).astype(int)
    cx, cy = rng.integers(64, size=4000), rng.integers(64, size=4000)
    corners = [np.clip(c + s * (cut // 2), 0, 64) for s in (-1, 1) for c in (cx, cy)]
    for column in range(4):
        assert stats.ks_2samp(pairs.boxes[:, column], corners[column]).pvalue > 1e-4


def test_half_of_the_pairs_get_either():
    pairs = draw_pairs(BOTH, 12, share_of(20_000), 0, 0)
    assert len(pairs.first) == 10_000
    assert abs(pairs.cut.mean() - 0.5) < 0.04


def test_a_pair_is_its_keys_wherever_it_stands():
    micro_batch = share_of(40)
    pairs = draw_pairs(BOTH, 12, micro_batch, 5, 3)
    order = np.random.default_rng(0).permutation(20)
    rows = (order[:, None] * 2 + np.arange(2)).ravel()
    moved = draw_pairs(BOTH, 12, MicroBatch(micro_batch.indices[rows], micro_batch.valid[rows]), 5, 3)
    assert np.array_equal(moved.kept, pairs.kept[order]) and np.array_equal(moved.boxes, pairs.boxes[order])
    again = draw_pairs(BOTH, 12, MicroBatch(micro_batch.indices, micro_batch.valid, np.ones(40, dtype=np.int64)), 5, 3)
    assert not np.array_equal(again.kept, pairs.kept)  # another draw of the samples is mixed in another way
    assert not np.array_equal(draw_pairs(BOTH, 12, micro_batch, 5, 4).kept, pairs.kept)


def test_what_switches_mixing_on():
    assert MIXUP.mixes and CUTMIX.mixes and BOTH.mixes
    assert not AugmentConfig().mixes
