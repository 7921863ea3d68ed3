"""The plan of a run is the one that its options ask for, and a sample's draws are cut in their own ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from toolkit.config.schema import Config
from toolkit.data.loader.loader import Loader
from toolkit.data.sampling.plan import MicroBatch
from toolkit.data.sampling.repeat_factor import RepeatOrder, repeat_factors
from toolkit.data.sampling.shuffle import DRAW_STRIDE, GlobalOrder, WindowOrder
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.data.transforms.batch_transform import train_transforms
from toolkit.training.batches import train_plan


@pytest.fixture(scope="module")
def reader(shard_set: Path) -> ShardReader:
    return ShardReader.of_split(shard_set, "train")


def test_each_order_is_the_configured_one(reader: ShardReader):
    config = Config()
    config.data.window = 1
    n = len(reader)
    plan = train_plan(config, reader)
    assert plan.group_size == 1 and plan.num_samples == n
    assert np.array_equal(plan.order.keys(3, 0, n), GlobalOrder(n, 0).keys(3, 0, n))
    config.data.order = "window"
    expected = WindowOrder(reader.shard_sizes, 1, 0).keys(3, 0, n)
    assert np.array_equal(train_plan(config, reader).order.keys(3, 0, n), expected)


@pytest.mark.parametrize("kind", ["global", "window"])
def test_sampling_by_genre_repeats_rare_ones(reader: ShardReader, kind, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("toolkit.training.batches.FACTORS", 17)  # factors come in parts, which do not show
    config = Config()
    config.data.order, config.data.window = kind, 2
    config.data.sampling, config.data.repeat_below = "genre", 0.9
    plan = train_plan(config, reader)
    assert isinstance(plan.order, RepeatOrder) and plan.num_samples > len(reader)
    counts = plan.order.counts(0)
    factors = repeat_factors(reader.targets, 0.9)
    assert (counts == RepeatOrder(factors, config.train.seed).counts(0)).all()
    assert counts[factors == factors.max()].mean() > counts[factors == factors.min()].mean()
    prevalence = reader.targets.mean(axis=0)
    rarest = np.flatnonzero(prevalence > 0)[np.argmin(prevalence[prevalence > 0])]
    seen = reader.targets[plan.order.keys(0, 0, plan.num_samples) % DRAW_STRIDE].mean(axis=0)
    assert seen[rarest] > prevalence[rarest]


def test_mixing_deals_in_pairs(reader: ShardReader):
    config = Config()
    config.augment.cutmix = 1.0
    assert train_plan(config, reader).group_size == 2
    config.augment.cutmix = 0.0
    assert train_plan(config, reader).group_size == 1


@pytest.mark.parametrize("geometry", ["cpu", "device"])
def test_the_draws_of_a_sample_are_different_crops(reader: ShardReader, geometry):
    config = Config()
    config.data.image_size, config.data.geometry = 32, geometry
    transforms = train_transforms(reader, config.data, 0, 0, torch.device("cpu"))
    twice = MicroBatch(np.array([5, 5, 5]), np.ones(3, dtype=bool), np.array([0, 0, 1]))
    with Loader(reader, 1, 1) as loader:
        (first, same, second) = next(iter(loader.batches([twice], transforms))).images.float().clone()
    assert torch.equal(first, same) and (first - second).abs().mean() > 1
