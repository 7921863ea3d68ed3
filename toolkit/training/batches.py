"""The input of a training run: sample order, loaders, and measurements of their speed.

shards ─ reader ─ order, plan ─→ micro-batches ─ transforms, loader ─→ batches on the device ─→ trainer, validation
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from shards.errors import UserError
from toolkit.config.extensions import explained, make
from toolkit.config.schema import Config, CropConfig
from toolkit.data.augment.pipeline import Augmenter
from toolkit.data.image_transforms import TrainTransform
from toolkit.data.loader.faults import FaultPolicy, check_limit
from toolkit.data.loader.loader import Batch, Loader
from toolkit.data.loader.timing import Bottleneck, bottleneck
from toolkit.data.sampling.plan import Sizes, TrainPlan
from toolkit.data.sampling.repeat_factor import RepeatOrder, repeat_factors
from toolkit.data.sampling.shuffle import GlobalOrder, Order, WindowOrder
from toolkit.data.shard_loader import ShardLoader
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.data.transforms.batch_transform import Transforms, eval_transforms
from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.device.defaults import autocast_dtype, decode_threads, own_cores
from toolkit.inference.forward import Forward
from toolkit.inference.scoring import infer_all

if TYPE_CHECKING:
    from toolkit.training.cached.probe import FeatureFeed
    from toolkit.training.setup import TrainingSetup

#: Number of samples whose repeat factors (repeat_factor.py) are computed at a time.
FACTORS = 1 << 20


def train_plan(config: Config, reader: ShardReader, sizes: Sizes = "even") -> TrainPlan:
    """Return the plan of a run: the samples of each update. ``sizes``: how an epoch is divided into updates."""
    deal = 2 if config.augment.mixes else 1  # the two samples that mixup mixes must be in one micro-batch
    return TrainPlan(_order(config, reader), config.train.batch_size, deal, sizes)


def _order(config: Config, reader: ShardReader) -> Order:
    data, seed = config.data, config.train.seed
    sizes = reader.shard_sizes if data.order == "window" else None
    if data.sampling == "genre":
        # FACTORS samples at a time, because an array of the targets of all samples needs much memory.
        starts, prevalence = range(0, len(reader), FACTORS), reader.positives / len(reader)
        parts = (reader.targets_of(np.arange(at, min(at + FACTORS, len(reader)))) for at in starts)
        factors = np.concatenate([repeat_factors(part, data.repeat_below, prevalence) for part in parts])
        return RepeatOrder(factors, seed, sizes, data.window)
    return GlobalOrder(len(reader), seed) if sizes is None else WindowOrder(sizes, data.window, seed)


class Pixels:
    """The usual input of a run: images for a whole model. The class Probe (probe.py) has cached features instead.

    ``trained`` is the module that is trained and saved in checkpoints. ``frozen`` has the entries of model.freeze.
    """

    def __init__(
        self, config: Config, model: nn.Module, preprocessing: Preprocessing, accelerator: Accelerator
    ) -> None:
        self.trained, self.frozen, self.preprocessing = model, config.model.freeze, preprocessing
        self.augment = Augmenter(config.augment, config.train.seed)
        self.dtype = autocast_dtype(accelerator)
        self.adapter, self.shapes = config.model.adapter, _shapes(model)
        if self.adapter is not None:
            adapt = make("adapter", self.adapter, config.model.adapter_options, "model.adapter_options")
            explained(f"model.adapter {self.adapter}", lambda: adapt(model))
            self.merge = adapt.merge

    def feed(self, setup: TrainingSetup) -> Feed:
        return Feed(setup)

    def prepare(self, batch: Batch, targets: torch.Tensor, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images (n, 3, S, S) and targets (n, G) of a loaded ``batch``, for the training step.

        The images are augmented and then normalised. The augmentations mixup and cutmix also change the targets.
        """
        images, targets = self.augment(batch.images, targets, batch.micro_batch, epoch)
        return self.normal(images), targets

    def normal(self, images: torch.Tensor) -> torch.Tensor:
        """Return normalised images (n, 3, S, S), made from pixels (n, S, S, 3)."""
        return self.preprocessing.normalize(images, self.dtype)

    def whole(self, trained: nn.Module) -> nn.Module:
        """Return the model to save: ``trained``, which is the trained model or its moving average.

        The change of model.adapter is undone in a copy. Raises UserError if other names or shapes of weights remain.
        """
        if self.adapter is None:
            return trained
        copied = copy.deepcopy(trained)
        explained(f"model.adapter {self.adapter}", lambda: self.merge(copied))
        if differ := sorted(_shapes(copied).items() ^ self.shapes.items()):
            raise UserError(
                "option-value",
                f"model.adapter {self.adapter}: merge must restore the weights that the model had before, but "
                f"{differ[0][0]} differs",
            )
        return copied


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def masking_loader(reader: ShardReader, config: Config, device: torch.device) -> Loader:
    """Return a loader that leaves out samples that cannot be decoded, or stops if data.on_error is "stop"."""
    data = config.data
    policy = FaultPolicy("stop" if data.on_error == "stop" else "mask", data.max_errors, config.train.seed)
    return Loader(reader, decode_threads(data.workers, device), data.prefetch, device=device, policy=policy)


class Feed:
    """The image batches of a run on one rank. FeatureFeed (probe.py) yields cached features instead."""

    def __init__(self, setup: TrainingSetup) -> None:
        self.setup, self.plan, self.accelerator = setup, setup.plan, setup.accelerator
        data, device = setup.config.data, setup.accelerator.device
        crop = {field.name: getattr(data, field.name) for field in dataclasses.fields(CropConfig)}
        # Augmentation and normalisation are a part of the training step (Pixels.prepare).
        self.train = ShardLoader(
            setup.train, batch_size=self.plan, seed=setup.config.train.seed, transform=TrainTransform(**crop),
            window=data.window, accumulation=setup.accumulation, rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes, device=device, threads=data.workers, prefetch=data.prefetch,
            on_error=FaultPolicy(data.on_error, data.max_errors, setup.config.train.seed),
        )  # fmt: skip
        # Validation leaves out damaged samples, because a substitute would count twice in a metric.
        self.val_loader = masking_loader(setup.val, setup.config, device)
        self.val_cutter: Transforms = eval_transforms(setup.val, setup.preprocessing, data.geometry, device)
        self.threads, self.timer = self.train.engine.threads, self.train.engine.timer

    def batches(self, epoch: int, step: int) -> Generator[Batch, None, None]:
        """Yield this rank's micro-batches of ``epoch``, starting at update ``step``."""
        return self.train.decoded(epoch, step)

    def validate(
        self, model: nn.Module, on_batch: Callable[[int], object] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return logits (n, G) float32 of the validation split, and (n,) bool: whether each sample could be decoded.

        All ranks get the same arrays. ``model`` is unwrapped and in evaluation mode. Every rank calls ``on_batch`` the
        same number of times, with the number of samples since the last call.
        """
        with self.setup.val.in_order(self.accelerator.is_local_main_process):
            rows = self.setup.config.train.eval_batch_size
            forward = Forward(model, self.setup.preprocessing, autocast_dtype(self.accelerator))
            return infer_all(forward, self.val_loader, self.val_cutter, rows, self.accelerator, on_batch)

    def errors(self) -> int:
        """Return the number of samples so far that could not be decoded, over all ranks and both splits.

        Called by every rank. Raises UserError, on every rank, if a split exceeds the limit data.max_errors.
        """
        total = 0
        for loader in (self.train.engine, self.val_loader):
            found = [loader.faults.found]
            if self.accelerator.num_processes > 1:
                found = gather_object(found)
            everywhere = {sample: message for part in found for sample, message in part.items()}
            check_limit(everywhere, loader.faults.policy, loader.faults.num_samples)
            total += len(everywhere)
        return total

    def close(self) -> None:
        self.setup.train.abandon()
        self.setup.val.abandon()
        self.train.close()
        self.val_loader.close()


class Stopwatch:
    """Measures speed and waiting time since its creation. ``images``: number of images of this epoch so far."""

    def __init__(self, feed: Feed | FeatureFeed, images: int = 0) -> None:
        self.feed, self.images, self.started = feed, images, time.perf_counter()
        self.before = feed.timer.snapshot()

    @property
    def seconds(self) -> float:
        return max(time.perf_counter() - self.started, 1e-9)

    def account(self, images: int) -> dict[str, float]:
        """Return speed and timing since the stopwatch's creation.

        ``images``: number of images of this epoch so far. data_wait and copy are the shares (0 to 1) of this
        rank's time for waiting and copying. decode_cores is the mean number of CPU cores that decode.
        """
        times, seconds = self.feed.timer.snapshot() - self.before, self.seconds
        return {
            "images_per_s": (images - self.images) / seconds,
            "data_wait": times.waited / seconds,
            "decode_cores": times.decode_cpu / seconds,
            "copy": times.copied / seconds,
        }

    def bottleneck(self) -> Bottleneck:
        """Return what limited this rank's speed."""
        times = self.feed.timer.snapshot() - self.before
        name = "CPU" if self.feed.accelerator.device.type == "cpu" else "GPU"
        return bottleneck(times, self.seconds, self.feed.threads, own_cores(), name)
