"""What feeds a training run: orders, loaders, and the account of what they did.

shards ─ reader ─ order, plan ─→ shares ─ cutter, loader ─→ batches on the device ─→ trainer, validation
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from shards.dataset.store import RemoteShards
from toolkit.config.schema import Config
from toolkit.data.augment.pipeline import Augmenter
from toolkit.data.loader.faults import FaultPolicy, check_limit
from toolkit.data.loader.loader import Batch, Loader
from toolkit.data.loader.timing import Meter, verdict
from toolkit.data.sampling.plan import Sizes, TrainPlan
from toolkit.data.sampling.repeat_factor import RepeatOrder, repeat_factors
from toolkit.data.sampling.shuffle import GlobalOrder, Order, WindowOrder
from toolkit.data.sources.prefetch import check_room, pass_of
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.data.transforms.batch_transform import Cutter, eval_cutter, train_cutter
from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.device.defaults import autocast_dtype, decode_threads, own_cores
from toolkit.inference.forward import Forward, ForwardOptions
from toolkit.inference.scoring import infer_all

if TYPE_CHECKING:
    from toolkit.training.setup import Parts

#: Samples whose repeat factors are computed at a time.
FACTORS = 1 << 20


def train_plan(config: Config, reader: ShardReader, sizes: Sizes = "even") -> TrainPlan:
    """The plan that a configuration asks for. Its num_samples is the epoch's length, repeats included."""
    deal = 2 if config.augment.mixes else 1  # partners must meet in a micro-batch at any world size
    return TrainPlan(_order(config, reader), config.train.batch_size, deal, sizes)


def _order(config: Config, reader: ShardReader) -> Order:
    data, seed = config.data, config.train.seed
    sizes = reader.shard_sizes if data.order == "window" else None
    if data.sampling == "genre":
        return RepeatOrder(_factors(reader, data.repeat_below), seed, sizes, data.window)
    return GlobalOrder(len(reader), seed) if sizes is None else WindowOrder(sizes, data.window, seed)


def _factors(reader: ShardReader, below: float) -> np.ndarray:
    """(N,) repeat factors, some samples at a time: all targets at once would be the largest thing in memory."""
    prevalence = reader.positives / len(reader)
    parts = (np.arange(start, min(start + FACTORS, len(reader))) for start in range(0, len(reader), FACTORS))
    return np.concatenate([repeat_factors(reader.targets_of(part), below, prevalence) for part in parts])


class RunFeed(Protocol):
    """What feeds a run: pixels (Feed), or cached features (probe.FeatureFeed)."""

    plan: TrainPlan
    meter: Meter
    threads: int
    accelerator: Accelerator

    def batches(self, epoch: int, step: int) -> Generator[Batch, None, None]:
        """This rank's micro-batches of ``epoch`` from update ``step`` on."""
        ...

    def validate(
        self, model: nn.Module, on_batch: Callable[[int], object] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(logits (n, G) float32, decoded (n,) bool) of the validation split, the same on every rank.

        Every rank calls ``on_batch`` equally often, with the number of samples done since; it may raise.
        """
        ...

    def errors(self) -> int:
        """Undecodable samples met so far, over all ranks and both splits. Called by every rank."""
        ...

    def close(self) -> None: ...


class Inputs(Protocol):
    """What a run learns from, and what it trains: pixels (Pixels), or cached features (cached.probe.Probe)."""

    @property
    def trained(self) -> nn.Module:
        """What learns: its state is what checkpoints hold."""
        ...

    @property
    def frozen(self) -> Sequence[str]:
        """Parts of ``trained`` that are held, as in model.freeze."""
        ...

    def feed(self, parts: Parts) -> RunFeed:
        """What gives a run its batches."""
        ...

    def prepare(self, batch: Batch, targets: torch.Tensor, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(inputs of ``trained``, (n, G) targets) for training on a batch of ``feed`` with its (n, G) targets."""
        ...

    def whole(self, trained: nn.Module) -> nn.Module:
        """The model that is saved, of a trained copy of ``trained``."""
        ...


class Pixels:
    """Inputs of a whole model."""

    def __init__(
        self, config: Config, model: nn.Module, preprocessing: Preprocessing, accelerator: Accelerator
    ) -> None:
        self.trained, self.frozen, self.preprocessing = model, config.model.freeze, preprocessing
        self.augment = Augmenter(config.augment, config.train.seed)
        self.dtype = autocast_dtype(accelerator)
        self.memory_format = torch.channels_last if config.train.channels_last else torch.contiguous_format

    def feed(self, parts: Parts) -> Feed:
        """See Inputs."""
        return Feed(parts)

    def prepare(self, batch: Batch, targets: torch.Tensor, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See Inputs: augmented, then normalised, (n, 3, S, S)."""
        images, targets = self.augment(batch.images, targets, batch.share, epoch)
        normal = self.preprocessing.normalize(images, self.dtype)
        return normal.contiguous(memory_format=self.memory_format), targets

    def whole(self, trained: nn.Module) -> nn.Module:
        """See Inputs."""
        return trained


class Feed:
    """The loaders of a run, for one rank."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.plan, self.accelerator = parts, parts.plan, parts.accelerator
        data, device = parts.config.data, parts.accelerator.device
        self.threads = decode_threads(data.workers, device)
        self.policy = FaultPolicy(data.on_error, data.max_errors, parts.config.train.seed)
        # A substitute would count twice in a metric: validation leaves a damaged sample out.
        masking = FaultPolicy("stop" if data.on_error == "stop" else "mask", data.max_errors)
        self.train_loader = Loader(parts.train, self.threads, data.prefetch, device=device, policy=self.policy)
        self.val_loader = Loader(parts.val, self.threads, data.prefetch, device=device, policy=masking)
        self.val_cutter: Cutter = eval_cutter(parts.val, parts.preprocessing, data.geometry, device)
        self.meter = self.train_loader.meter
        store = parts.train.store
        if isinstance(store, RemoteShards):
            window = data.window if data.order == "window" else None
            check_room(store, parts.train.shards, window, self.plan.global_batch * (data.prefetch + 1))

    def batches(self, epoch: int, step: int) -> Generator[Batch, None, None]:
        """This rank's micro-batches of ``epoch`` from update ``step`` on."""
        accelerator, config = self.accelerator, self.parts.config
        rank, world = accelerator.process_index, accelerator.num_processes
        shares = self.plan.shares(epoch, rank, world, self.parts.accumulation, first_step=step)
        cutter = train_cutter(self.parts.train, config.data, config.train.seed, epoch, accelerator.device)
        self._fetch_ahead(epoch, self.plan.start(step))
        return self.train_loader.batches(shares, cutter, epoch)

    def _fetch_ahead(self, epoch: int, position: int) -> None:
        """Have remote shards come in the plan's order, the next epoch's first ones before this one ends."""
        data, order, count = self.parts.config.data, self.plan.order, len(self.parts.train.shards)
        self.parts.train.begin(
            pass_of(order, count, epoch, position),
            pass_of(order, count, epoch + 1, 0),
            data.window if data.order == "window" else count,
            self.accelerator.is_local_main_process,
        )

    def validate(
        self, model: nn.Module, on_batch: Callable[[int], object] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See RunFeed. ``model`` is unwrapped and in evaluation mode."""
        with self.parts.val.in_order(self.accelerator.is_local_main_process):
            train, precision = self.parts.config.train, autocast_dtype(self.accelerator)
            options = ForwardOptions(channels_last=train.channels_last)
            forward = Forward(model, self.parts.preprocessing, precision, options)
            return infer_all(
                forward, self.val_loader, self.val_cutter, train.eval_batch_size, self.accelerator, on_batch
            )

    def errors(self) -> int:
        """Undecodable samples met so far, over all ranks and both splits. Called by every rank.

        Raises UserError, on every rank, if they are more than the configuration bears.
        """
        total = 0
        for loader in (self.train_loader, self.val_loader):
            found = [loader.faults.found]
            if self.accelerator.num_processes > 1:
                found = gather_object(found)
            everywhere = {sample: message for part in found for sample, message in part.items()}
            check_limit(everywhere, loader.faults.policy, loader.faults.num_samples)
            total += len(everywhere)
        return total

    def close(self) -> None:
        """Stop the threads."""
        self.parts.train.abandon()
        self.parts.val.abandon()
        self.train_loader.close()
        self.val_loader.close()


class Stopwatch:
    """Speed, waiting share and verdict since it was started."""

    def __init__(self, feed: RunFeed) -> None:
        self.feed, self.started = feed, time.perf_counter()
        self.before = feed.meter.snapshot()

    @property
    def seconds(self) -> float:
        return max(time.perf_counter() - self.started, 1e-9)

    def account(self) -> dict[str, float]:
        """This rank's shares of the time since: waiting for data, copying to the device; and cores busy decoding."""
        times, seconds = self.feed.meter.snapshot() - self.before, self.seconds
        return {
            "data_wait": times.waited / seconds,
            "decode_cores": times.decode_cpu / seconds,
            "copy": times.copied / seconds,
        }

    def verdict(self) -> str:
        """What limited this rank."""
        times = self.feed.meter.snapshot() - self.before
        name = "CPU" if self.feed.accelerator.device.type == "cpu" else "GPU"
        return verdict(times, self.seconds, self.feed.threads, own_cores(), name)


class SpeedWindow:
    """Speed and account since the last measurement."""

    def __init__(self, feed: RunFeed) -> None:
        self.watch, self.images = Stopwatch(feed), 0

    def measure(self, images: int) -> dict[str, float]:
        """images_per_s and the stopwatch's account; ``images`` counts from the start of the epoch."""
        result = {"images_per_s": (images - self.images) / self.watch.seconds, **self.watch.account()}
        self.watch, self.images = Stopwatch(self.watch.feed), images
        return result
