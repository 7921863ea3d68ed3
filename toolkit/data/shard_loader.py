"""Load batches from WebDataset tars for any training loop: each sample once per epoch, at any world size.

    shards ─ ShardReader ─ TrainPlan: samples of each update ─→ MicroBatch of this rank
           ─ Loader: threads decode, copy to the device ─→ Batch ─ Prepared: augment, mix, normalise ─→ ShardBatch

The loader owns the reader, the threads' buffers and the position in the epoch. The user owns the state dict.
"""

from __future__ import annotations

import bisect
import contextlib
import inspect
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch

from shards.dataset.manifest import Manifest
from shards.dataset.store import RemoteShards, open_store
from shards.errors import UserError
from shards.storage.files import fingerprint
from shards.storage.paths import StoragePath, is_path
from shards.values import whole_number
from toolkit.config.schema import OnError
from toolkit.data.image_transforms import EvalTransform, Normalisation, Transform, prepare
from toolkit.data.loader.faults import FaultPolicy
from toolkit.data.loader.loader import Batch, Loader
from toolkit.data.loader.processes import usable_processes
from toolkit.data.loader_state import LoaderState, parse_state
from toolkit.data.sample_fields import Decode, SampleFields
from toolkit.data.sampling.plan import TrainPlan
from toolkit.data.sampling.shuffle import GlobalOrder, Order, StoredOrder, WindowOrder
from toolkit.data.shard_batch import ShardBatch
from toolkit.data.sources.prefetch import check_room, pass_of
from toolkit.data.sources.shard_reader import IN_ORDER, ShardReader
from toolkit.data.sources.shard_set import ShardSet
from toolkit.device.defaults import decode_threads, usable_device
from toolkit.device.transfer import to_device
from toolkit.distributed.environment import ranks_of, require_same_ranks

OrderName = Literal["global", "window", "stored"]


class ShardLoader(contextlib.AbstractContextManager["ShardLoader"]):
    """Batches of a shard set for one rank. Iterating gives the rest of one epoch, as ShardBatch objects.

    Over all ranks, an epoch has each sample exactly once, and each rank gets the same number of batches. The samples of
    each update depend only on set, seed, epoch and batch size, not on the world size. Threads decode, and all loaders
    of a process share them. Worker processes exist only with ``processes``. Do not pass the loader to a ``DataLoader``
    or to another sampler: the loader already gives each rank its own samples.

    After the last batch of an epoch, the next iteration gives the next epoch. An iteration that follows an earlier
    ``break`` starts its epoch again.
    """

    batch_sampler = None  # Lightning expects it in a loader with a sampler

    def __init__(
        self,
        shards: str | StoragePath | ShardSet | ShardReader,
        *,
        split: str | None = None,
        batch_size: int | TrainPlan,
        seed: int = 0,
        transform: Transform | None = None,
        order: OrderName = "global",
        window: int = 16,
        accumulation: int = 1,
        fields: Sequence[str] | Mapping[str, Decode] = (),
        rank: int | None = None,
        world_size: int | None = None,
        device: torch.device | str = "cpu",
        threads: int = 0,
        prefetch: int = 4,
        on_error: OnError | FaultPolicy = "stop",
        max_errors: float = 0.01,
        processes: int = 0,
    ) -> None:
        """Open a shard set.

        Args:
            shards: A folder or URL with a manifest.json, or the result of ``toolkit.open_shards``.
            split: Name of the split. Needed if a path is given and the set has several splits.
            batch_size: Number of samples of an update over all ranks, or a TrainPlan of your own. All updates
                have about this size.
            seed: Seed of the order and of all random numbers.
            transform: TrainTransform, EvalTransform (the default), or a function (image, generator). The threads call
                the function with an upright (H, W, 3) uint8 image and a NumPy generator, which depends only on seed,
                epoch and sample. The function returns an array or tensor, of the same shape for all samples.
            order: "global" shuffles all samples. "window" shuffles within groups of ``window`` shards, for sets that
                do not fit in memory. "stored" is the order of the shards, for evaluation.
            window: Number of shards in a group, for the order "window".
            accumulation: Number of batches that each rank gets for one update.
            fields: Names of other members of each sample, such as ("txt", "json"), or a dict from names to functions of
                bytes, which the threads call. The values are in ``ShardBatch.fields``.
            rank: Number of this process. The default is torch.distributed's, or RANK of the environment.
            world_size: Number of processes. The default is torch.distributed's, or WORLD_SIZE of the environment.
            device: Device of the batches.
            threads: Number of decoding threads. 0 means the number of cores divided by the processes of this machine.
            prefetch: Number of batches that are decoded in advance.
            on_error: What happens if an image cannot be decoded. "stop" raises UserError, "replace" uses another
                sample, and "mask" sets valid=False.
            max_errors: If more than this share of the samples cannot be decoded, UserError is raised.
            processes: Number of processes that decode instead of threads, on Linux. Batches are the same. Sets at a URL
                and functions as ``transform`` need threads. docs/concepts/loader.md says when processes are faster.

        Raises UserError if the set is missing or damaged, or if an argument does not fit.
        """
        self.reader, self._own = _open(shards, split)
        self.rank, self.world_size = ranks_of(rank, world_size)
        self._found_ranks = rank is None
        self.device = usable_device(device)
        window, prefetch = whole_number("window", window, 1), whole_number("prefetch", prefetch, 1)
        threads, seed = whole_number("threads", threads, 0), whole_number("seed", seed, 0, (1 << 63) - 1)
        self.accumulation, self.seed = whole_number("accumulation", accumulation, 1), seed
        processes = usable_processes(processes, threads, not isinstance(transform, (Normalisation, type(None))))
        self._transform = prepare(EvalTransform() if transform is None else transform, self.reader, seed, self.device)
        if isinstance(batch_size, TrainPlan):
            self.plan = batch_size
            self._order = type(batch_size.order).__name__
        else:
            size = whole_number("batch_size", batch_size, 1)
            self.plan = TrainPlan(_order(self.reader, order, window, seed), size, self._transform.group_size)
            self._order = f"{order} {window}" if order == "window" else order
        turn = self.plan.order.shard_order(0, 0)
        self._window = None if turn is None else IN_ORDER if isinstance(self.plan.order, StoredOrder) else window
        self._fingerprint = fingerprint(
            [self.reader.labels.genres, [[s.name, s.split, s.sha256] for s in self.reader.shards]]
        )[:16]
        store = self.reader.store
        if isinstance(store, RemoteShards):
            check_room(store, self.reader.shards, self._window, self.plan.global_batch * (prefetch + 1))
        self._fields = SampleFields(self.reader, fields)
        policy = on_error if isinstance(on_error, FaultPolicy) else _policy(on_error, max_errors, seed)
        self.engine = Loader(
            self.reader, decode_threads(threads, self.device), prefetch, device=self.device, policy=policy,
            fields=self._fields if self._fields.decoders else None, processes=processes,
        )  # fmt: skip
        self._epoch = self._first_step = 0
        self._used = (0, 0)
        self._running: Generator[Batch, None, None] | None = None

    @property
    def epoch(self) -> int:
        """The epoch of the next iteration, or of the current one."""
        return self._epoch

    @property
    def sampler(self) -> ShardLoader:
        """The loader itself. Training loops, such as Lightning's, call ``loader.sampler.set_epoch(epoch)``."""
        return self

    @property
    def labels(self) -> tuple[str, ...]:
        """The C labels in the order of the columns of ``targets``."""
        return self.reader.labels.genres

    @property
    def num_samples(self) -> int:
        """Number of samples of an epoch over all ranks."""
        return self.plan.num_samples

    @property
    def errors(self) -> list[str]:
        """A line for each image that could not be decoded so far, on this rank."""
        found = self.engine.faults.found
        return [found[sample] for sample in sorted(found)]

    def __len__(self) -> int:
        """Number of batches of an epoch, equal on all ranks."""
        return self.plan.steps_per_epoch * self.accumulation

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration. A position that ``load_state_dict`` set in this epoch is kept."""
        epoch = whole_number("epoch", epoch, 0)
        if epoch != self._epoch or self._used == (epoch, self.num_samples):
            self._epoch, self._first_step = epoch, 0
            self._used = (epoch, 0)

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last update whose batches were all handed out, as JSON values.

        The state has the same size for any set, and is equal on all ranks. Save it after the optimiser's step.
        """
        epoch, samples = self._used
        return self._state(epoch, samples).to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration continue after the samples that a state's training has used, at any world size.

        Raises UserError if the state belongs to another set, order or seed, or if no update of this loader starts at
        its position, because the batch size differs.
        """
        found = parse_state(state, self._state(0, 0))
        epoch, samples = found.epoch, found.samples
        if samples == self.num_samples:
            epoch, samples = epoch + 1, 0
        step = bisect.bisect_left(range(self.plan.steps_per_epoch), samples, key=self.plan.start)
        if self.plan.start(step) != samples:
            what = f"the state is at sample {samples} of an epoch, where no update of this loader starts"
            raise UserError(
                "option-conflict",
                f"{what}: pass batch_size={found.batch_size}, as the training that saved it, and the same mixing",
            )
        self._stop()
        self._epoch, self._first_step = epoch, step
        self._used = (epoch, samples)

    def __iter__(self) -> Iterator[ShardBatch]:
        if self.engine.closed:
            raise UserError("option-conflict", "this ShardLoader is closed: make a new one")
        if self._found_ranks:
            require_same_ranks(self.rank, self.world_size)
        if self._used == (self._epoch, self.num_samples):  # all batches were used, but the end was not asked for
            self.set_epoch(self._epoch + 1)
        epoch, step, self._first_step = self._epoch, self._first_step, 0
        self._stop()
        self._running = running = self.decoded(epoch, step)
        self._used = (epoch, self.plan.start(step))
        with contextlib.closing(running):
            for number, batch in enumerate(running, 1):
                done = self.plan.start(step + number // self.accumulation)
                found = self._finished(batch, epoch, step + (number - 1) // self.accumulation)
                self._used = (epoch, done)
                yield found
        if self._running is not running:
            what = "close(), load_state_dict() or another iteration of this ShardLoader has ended this iteration"
            raise UserError("option-conflict", f"{what}: start a new one, or use two ShardLoaders")
        if self._epoch == epoch:
            self._epoch = epoch + 1
            self._used = (epoch + 1, 0)

    def decoded(self, epoch: int, step: int = 0) -> Generator[Batch, None, None]:
        """Yield this rank's batches from update ``step`` of ``epoch`` on, before augmentation and normalisation."""
        micro_batches = self.plan.rest_of_epoch(epoch, self.rank, self.world_size, self.accumulation, first_step=step)
        # Remote shards are fetched in the order of use, including the first shards of the next epoch.
        order, count = self.plan.order, len(self.reader.shards)
        now, after = pass_of(order, count, epoch, self.plan.start(step)), pass_of(order, count, epoch + 1, 0)
        self.reader.begin(now, after, self._window or count, os.environ.get("LOCAL_RANK", "0") == "0")
        return self.engine.batches(micro_batches, self._transform.of_epoch(epoch), epoch)

    def close(self) -> None:
        """End the iteration and give the threads back."""
        self._stop()
        self.engine.close()
        if self._own:
            self.reader.abandon()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stop(self) -> None:
        """End the running iteration. If its caller asks for more batches, it raises UserError."""
        if self._running is not None:
            if inspect.getgeneratorstate(self._running) == inspect.GEN_RUNNING:
                what = "another thread is iterating over this ShardLoader"
                raise UserError("option-conflict", f"{what}: use a ShardLoader for each thread")
            self._running.close()
        self._running = None

    def _state(self, epoch: int, samples: int) -> LoaderState:
        return LoaderState(self._fingerprint, self._order, self.plan.global_batch, self.seed, epoch, samples)

    def _finished(self, batch: Batch, epoch: int, step: int) -> ShardBatch:
        reader, micro_batch = self.reader, batch.micro_batch
        indices = micro_batch.indices
        columns, weighted = len(reader.labels), reader.weights is not None
        rows = reader.targets_of(indices).astype(np.float32)
        if weighted:  # as one more column, because mixup mixes the weights as it mixes targets
            rows = np.concatenate([rows, reader.weights_of(indices)[:, None].astype(np.float32)], axis=1)
        images, mixed = self._transform.finish(batch, to_device(rows, self.device), epoch)
        targets: torch.Tensor | None = mixed[:, :columns] if columns else None
        if reader.classes:
            if (wrong := np.flatnonzero(rows[:, :columns].sum(axis=1) != 1)).size:  # a set may come from strangers
                what = f"{reader.where(int(indices[wrong[0]]))} does not have exactly one class"
                raise UserError("set-damaged", f"{what}: index the set again")
            targets = mixed[:, :columns].argmax(dim=1) if self._transform.group_size == 1 else targets
        return ShardBatch(
            images, targets, to_device(micro_batch.valid, self.device), indices, self.plan.count(step), epoch, step,
            self._fields.of(batch), mixed[:, columns] if weighted else None, batch.errors, reader,
        )  # fmt: skip


def _open(shards: str | StoragePath | ShardSet | ShardReader, split: str | None) -> tuple[ShardReader, bool]:
    """Return the reader of a split, and whether the loader owns it."""
    if isinstance(shards, (ShardSet, ShardReader)):
        if split is not None:
            raise UserError("option-conflict", "split is part of the opened shards: pass a path, or leave split out")
        return (shards.reader if isinstance(shards, ShardSet) else shards), False
    if not is_path(shards):
        raise UserError("option-value", f"shards must be a path, a URL or opened shards, not {type(shards).__name__}")
    store = open_store(shards)
    manifest: Manifest = store.manifest()
    if split is None and len(manifest.split_names) > 1:
        raise UserError("option-missing", f"{store} has several splits: pass split, {_listed(manifest.split_names)}")
    return ShardReader.of_split(store, manifest.split_names[0] if split is None else split, manifest), True


def _listed(names: Sequence[str]) -> str:
    return " or ".join(repr(name) for name in names)


def _order(reader: ShardReader, order: str, window: int, seed: int) -> Order:
    if order not in get_args(OrderName):
        raise UserError("option-value", f"order must be {_listed(get_args(OrderName))}, not {order!r}")
    if order == "stored":
        return StoredOrder(reader.shard_sizes)
    return GlobalOrder(len(reader), seed) if order == "global" else WindowOrder(reader.shard_sizes, window, seed)


def _policy(on_error: OnError, max_errors: float, seed: int) -> FaultPolicy:
    if on_error not in get_args(OnError):
        raise UserError("option-value", f"on_error must be {_listed(get_args(OnError))}, not {on_error!r}")
    if isinstance(max_errors, bool) or not isinstance(max_errors, (int, float)) or not 0 <= max_errors <= 1:
        raise UserError("option-value", f"max_errors must be a share from 0 to 1, not {max_errors!r}")
    return FaultPolicy(on_error, max_errors, seed, option="max_errors")
