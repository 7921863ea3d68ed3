"""What tests of training share: a small run's parts in this process, without a launch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from toolkit_helpers import TINY, parse_train

from shards.dataset.manifest import Manifest
from toolkit.config.schema import Config
from toolkit.data.loader.loader import Batch
from toolkit.data.sampling.plan import TrainPlan
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.training.setup import TrainingSetup, build_setup
from toolkit.training.train_step import TrainStep

#: A transformer of a few hundred thousand weights: neither BatchNorm nor dropout, so samples do not meet in it.
TINY_VIT = ["--model.name=test_vit", "--model.head=linear", "--model.dropout=0"]


def tiny_config(*options: str) -> Config:
    """The tests' small run with other options."""
    return parse_train(["--shards", "S", "--out", "R", *TINY, *options]).config


def make_parts(shard_set: Path, config: Config, out: Path) -> tuple[Accelerator, TrainingSetup]:
    """A run's parts, ready for its first update."""
    manifest = Manifest.read(shard_set)
    readers = [ShardReader.of_split(shard_set, split, manifest) for split in ("train", "val")]
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    return accelerator, build_setup(accelerator, config, manifest, readers, out, None)


def make_updater(shard_set: Path, out: Path, *options: str, accumulation: int = 1) -> tuple[TrainStep, TrainPlan]:
    """Updates of a small run in this process, its model in training mode."""
    config = tiny_config(*options)
    setup = make_parts(shard_set, config, out)[1]
    setup.freezing.training_mode(setup.model, 0)
    setup.accumulation = accumulation
    return TrainStep(setup), setup.plan


def drawn_batches(train_step: TrainStep, plan: TrainPlan, epoch: int, step: int) -> Iterator[Batch]:
    """The micro-batches of one update with made-up pixels, those of a sample always the same."""
    side = train_step.setup.config.data.image_size
    for share in plan.micro_batches(epoch, step, 0, 1, train_step.accumulation):
        rows = [
            torch.from_numpy(np.random.default_rng(int(i)).integers(0, 256, (side, side, 3), dtype=np.uint8))
            for i in share.indices
        ]
        yield Batch(torch.stack(rows), share, {})


def make_updates(train_step: TrainStep, plan: TrainPlan, count: int, lr: float, *, first: int = 1) -> list[float]:
    """``count`` updates from number ``first`` on; returns the training loss of each."""
    losses = []
    for number in range(first, first + count):
        epoch, step = divmod(number - 1, plan.steps_per_epoch)
        batches = drawn_batches(train_step, plan, epoch, step)
        total, _ = train_step(batches, epoch, step, number, lr)
        losses.append(float(total[0] / total[1]))
    return losses


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of its state."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
