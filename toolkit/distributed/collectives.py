"""Collective calls, which every process of a launch makes. They gather results, share decisions and distribute work."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType, GradientAccumulationPlugin, broadcast_object_list, gather_object
from torch import nn

from shards.errors import Code, UserError, one_line
from toolkit.device.allocator import keep_freed_memory
from toolkit.distributed.agreement import Facts, Record, disagreement, record_of
from toolkit.distributed.environment import on, precision_of, require_plain
from toolkit.distributed.launch import code_of, join, processes_of

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Timeout of WorkQueue. It is long, because a process may work for days. If one dies, the launcher ends all.
LONGEST_WORK = timedelta(days=30)


class LostData(UserError):
    """One rank cannot read its samples. Every rank raises this error at the same step, with the same message."""

    def __init__(self, code: Code, message: str, status: int = UserError.status) -> None:
        super().__init__(code, message)
        self.status = status


def make_accelerator(precision: str | None = None, facts: Facts | None = None, **options: Any) -> Accelerator:
    """Return an Accelerator for this process of a launch.

    facts: values that must be equal in all processes (agreement.py). The first call in a process compares them.
    Raises UserError if the processes cannot connect, if their facts differ, or if requested GPUs are missing. Also
    raises UserError for variables of accelerate that the toolkit does not support (environment.py).
    """
    require_plain(os.environ)
    wanted = processes_of(os.environ)
    on_cpu = not torch.cuda.is_available() or on(os.environ, "ACCELERATE_USE_CPU")
    precision = precision_of(precision, os.environ, on_cpu)
    if not torch.cuda.is_available():
        require_no_gpus_wanted(os.environ)
        keep_freed_memory()
    # Without cpu=True on a CPU, accelerate treats each process of torchrun as a separate run. All write the same files.
    cpu = True if wanted > 1 and not torch.cuda.is_available() else None
    if wanted > 1 and not dist.is_initialized():
        record = record_of(facts or {}, os.environ, precision=precision, device="" if on_cpu else _gpu())
        join(wanted, on_cpu, record)
    try:
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=precision,
            # Without these two arguments, accelerate reads both values from the environment.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dynamo_backend="no",
            **options,
        )
    except (ValueError, NotImplementedError, ImportError) as error:  # from accelerate's own checks
        raise UserError("environment", f"accelerate cannot start here: {one_line(error)}") from error
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise UserError(
            "environment",
            f"accelerate is configured to use {accelerator.distributed_type.value}, but the toolkit trains with data "
            f"parallelism only: use a config of launch/accelerate/",
        )
    if accelerator.num_processes != wanted:
        raise UserError(
            "environment",
            f"the launcher started {wanted} processes, but accelerate uses {accelerator.num_processes}: "
            f"use a config of launch/accelerate/",
        )
    if wanted == 1 and "MASTER_ADDR" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ:
        log.warning(
            "accelerate is configured for several CPU processes but started only one, because it needs mpirun to start "
            "several: use launch/accelerate/cpu_2.yaml for two processes"
        )
    return accelerator


def require_no_gpus_wanted(env: Mapping[str, str]) -> None:
    """Raise UserError if accelerate's launcher started one process per GPU. Called only if torch finds no GPU.

    accelerate starts GPU processes through torchrun. For CPU processes it sets ACCELERATE_USE_CPU.
    launch/accelerate/cpu_2.yaml uses torchrun as well, but hides all GPUs.
    """
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in env and "TORCHELASTIC_RUN_ID" in env
    cpu_requested = on(env, "ACCELERATE_USE_CPU")
    hidden = env.get("CUDA_VISIBLE_DEVICES", "").startswith("-1")
    if by_accelerate and not (cpu_requested or hidden):
        raise UserError(
            "device",
            f"accelerate is configured to start a process per GPU (distributed_type MULTI_GPU), but torch finds no GPU "
            f"on {socket.gethostname()} (check nvidia-smi): on CPUs use --config_file launch/accelerate/cpu_2.yaml, or "
            f"set ACCELERATE_USE_CPU=true",
        )


def _gpu() -> str:
    """Return the unique identifier of the GPU that accelerate will use in this process."""
    index = int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count()
    return f"GPU {torch.cuda.get_device_properties(index).uuid}"


def require_same_everywhere(accelerator: Accelerator, key: str, value: str) -> None:
    """Raise UserError, on every rank, if ``value`` differs between ranks. A collective call."""
    if accelerator.num_processes > 1:
        own = Record({key: (value, "")}, host=socket.gethostname())
        records: list[Record] = gather_object([own])
        for rank in range(1, len(records)):
            if line := disagreement(records[:rank], records[rank]):
                raise UserError("ranks-differ", line)


def gather_by_index(accelerator: Accelerator, count: int, indices: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Collect the values of all samples from all ranks. Return them (count, ...) in sample order on every rank.

    indices: (n,) sample numbers of this rank, without padding. values: (n, ...) the values of these samples.
    Raises RuntimeError if a sample is missing or comes twice.
    """
    pairs = [(indices, values)]
    if accelerator.num_processes > 1:
        pairs = gather_object(pairs)
    everyone = np.concatenate([part for part, _ in pairs])
    seen = np.bincount(everyone, minlength=count)
    if len(seen) != count or (seen != 1).any():
        raise RuntimeError(f"{int((seen != 1).sum())} of {count} samples are missing, or were sent by several ranks")
    ordered = np.empty((count, *values.shape[1:]), dtype=values.dtype)
    for part, rows in pairs:
        ordered[part] = rows
    return ordered


def from_main(accelerator: Accelerator, value: Any) -> Any:
    """Return the main process's ``value`` on every rank. A collective call."""
    if accelerator.num_processes == 1:
        return value
    box = [value]
    broadcast_object_list(box, from_process=0)
    return box[0]


def by_main(accelerator: Accelerator, do: Callable[[], T]) -> T:
    """Call ``do`` on the main process only, and return its result on every rank. A collective call.

    If ``do`` raises UserError or OSError, the other ranks raise UserError and do not wait for the main process.
    """
    value: Any = None
    if accelerator.is_main_process:
        try:
            value = do()
        except (UserError, OSError) as error:
            from_main(accelerator, (None, (code_of(error), one_line(error))))
            raise
    value, problem = from_main(accelerator, (value, None))
    if problem:
        raise UserError(*problem)
    result: T = value
    return result


def require_read(
    accelerator: Accelerator, failure: UserError | None, owed: int = 0, call: Callable[[], object] = lambda: None
) -> None:
    """Raise LostData on every rank if ``failure`` is not None on at least one rank. A collective call.

    ``owed`` is the number of collective calls that a failed rank missed. A failed rank makes these calls with ``call``.
    """
    if failure is not None:
        for _ in range(owed):
            call()
    found = [None if failure is None else (accelerator.process_index, failure.code, str(failure), failure.status)]
    if accelerator.num_processes > 1:
        found = gather_object(found)
    if failed := [each for each in found if each is not None]:
        rank, code, reason, status = failed[0]
        who = f"rank {rank}: " if accelerator.num_processes > 1 else ""
        more = f" (and {len(failed) - 1} other ranks failed)" if len(failed) > 1 else ""
        raise LostData(code, f"{who}{reason}{more}", status)


def sum_over_ranks(accelerator: Accelerator, value: torch.Tensor) -> torch.Tensor:
    return accelerator.reduce(value, reduction="sum") if accelerator.num_processes > 1 else value


def broadcast_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """Copy the main process's buffers to every rank.

    DDP broadcasts BatchNorm statistics before each forward pass, but the last update of an epoch changes them again.
    This call makes the ranks equal again before validation.
    """
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


class WorkQueue:
    """A queue of the numbers 0 to count - 1. Each number goes to exactly one process.

    Every process creates a WorkQueue and calls `end`. The next number is in a TCPStore of torch.distributed, whose
    ``add`` is atomic. Collective calls are not used, because they time out if one process works for long.
    """

    def __init__(self, accelerator: Accelerator, count: int) -> None:
        self.count = count
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self._store: Any = dist.HashStore()  # for a launch of one process
        if self.world > 1:
            host, main = os.environ.get("MASTER_ADDR", "127.0.0.1"), accelerator.is_main_process
            opened = partial(dist.TCPStore, host, is_master=main, timeout=LONGEST_WORK, wait_for_workers=False)
            if main:
                self._store = opened(0, self.world)
            port = from_main(accelerator, self._store.port if main else None)
            if not main:
                self._store = opened(port, self.world)

    def take(self) -> Iterator[int]:
        """Yield numbers for this process, one at a time, until all numbers of the queue are distributed."""
        while (number := self._store.add("next", 1) - 1) < self.count:
            yield number

    def report(self, samples: int) -> int:
        """Add ``samples`` to the number of finished samples. Return the total of all processes."""
        return self._store.add("samples", samples)

    def end(self, result: Any) -> list[Any]:
        """Wait until every process has called `end`. Return the results of all ranks (JSON values), by rank."""
        self._store.set(f"result/{self.rank}", json.dumps(result))
        keys = [f"result/{rank}" for rank in range(self.world)]
        self._store.wait(keys, LONGEST_WORK)
        results = [json.loads(self._store.get(key)) for key in keys]
        # The main process runs the server of the store, so it waits until the others have read the results.
        self._store.set(f"read/{self.rank}", "")
        if self.rank == 0:
            self._store.wait([f"read/{rank}" for rank in range(self.world)], LONGEST_WORK)
        return results


def seed_step(seed: int, epoch: int, step: int, rank: int, device: torch.device) -> None:
    """Seed torch's random generators for one update on ``device``, so that dropout is the same in a resumed run."""
    text = f"{seed}/{epoch}/{step}/{rank}".encode()
    number = int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")
    if device.type == "cpu":
        # torch.manual_seed() takes 0.4 ms on a CPU, because it notes the seed and its caller for GPUs used later.
        torch.default_generator.manual_seed(number)
    else:
        torch.manual_seed(number)
