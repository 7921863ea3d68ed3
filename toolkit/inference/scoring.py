"""Compute the logits of every sample of a source exactly once, with any number of processes."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from accelerate import Accelerator

from shards.errors import UserError
from toolkit.data.loader.faults import KEEP_ERRORS, FaultPolicy
from toolkit.data.loader.loader import Batch, Loader, Source
from toolkit.data.sampling.plan import EvalPlan, MicroBatch
from toolkit.data.transforms.batch_transform import Transforms
from toolkit.device.defaults import ahead_for, decode_threads, rows_for
from toolkit.distributed.collectives import gather_by_index, require_read
from toolkit.inference.forward import Forward, ForwardOutputs, require_finite_outputs

OnBatch: TypeAlias = Callable[[int], object] | None


@dataclass
class Scored:
    """The results of one batch, without padding."""

    indices: np.ndarray
    """(n,) int64 numbers of the samples that could be decoded."""
    logits: np.ndarray
    """(n, G) float32."""
    embeddings: np.ndarray | None
    """(n, F) float32 inputs of the classifier. None if they are not requested."""
    errors: dict[int, str]
    """Sample → the reason why it could not be decoded."""

    @property
    def first(self) -> int:
        """Return one sample of the batch."""
        return int(self.indices[0]) if len(self.indices) else next(iter(self.errors))

    @property
    def count(self) -> int:
        """Return the number of all samples in this batch, including damaged samples."""
        return len(self.indices) + len(self.errors)


def score(
    loader: Loader,
    micro_batches: Iterable[MicroBatch],
    transforms: Transforms,
    forward: Forward,
    *,
    check: bool = True,
    together: int = 1,
    part_of: Callable[[int], int] = lambda sample: 0,
) -> Iterator[Scored]:
    """Yield the results of the batches in order. Before each result is yielded, the next one is queued on the device.

    A result has up to ``together`` batches. Their outputs are copied to the host at once, so that Python has less to do
    for a batch. ``part_of`` returns the part to which a sample belongs. A result never has batches of two parts.

    If ``check`` is True, raises UserError with the names of images whose outputs are not finite. Callers that check
    the gathered outputs of all ranks pass False.
    """

    def where(scored: Scored, row: int) -> str:
        return loader.source.where(int(scored.indices[row]))

    def queued(batches: Iterable[Batch]) -> Iterator[tuple[list[_Queued], ForwardOutputs]]:
        each = (_Queued(batch.micro_batch, batch.errors, forward.on_device(batch.images)) for batch in batches)
        for _, part in itertools.groupby(each, lambda one: part_of(int(one.micro_batch.indices[0]))):
            while group := list(itertools.islice(part, together)):
                yield group, ForwardOutputs.of([one.outputs for one in group])

    with contextlib.closing(loader.batches(micro_batches, transforms)) as batches:
        results: Iterator[Any] = itertools.chain(queued(batches), [None])
        for (group, outputs), _ in itertools.pairwise(results):
            scored = _scored(group, *outputs.arrays())
            if check:
                require_finite_outputs((scored.logits, scored.embeddings), partial(where, scored), forward.reduced)
            yield scored


class _Queued(NamedTuple):
    """A batch whose forward pass is queued on the device."""

    micro_batch: MicroBatch
    errors: dict[int, str]
    outputs: list[torch.Tensor]


def _scored(group: Sequence[_Queued], logits: np.ndarray, embeddings: np.ndarray | None) -> Scored:
    """Return the results of the batches of ``group``, whose outputs are one after another in the arrays."""
    indices = np.concatenate([one.micro_batch.indices for one in group])
    keep = np.concatenate([one.micro_batch.valid for one in group])
    errors = {int(one.micro_batch.indices[row]): why for one in group for row, why in one.errors.items()}
    if not keep.all():
        indices, logits, embeddings = indices[keep], logits[keep], None if embeddings is None else embeddings[keep]
    return Scored(indices, logits, embeddings, errors)


def batches_together(device: torch.device) -> int:
    """Return the number of batches whose outputs are copied to the host at once. On a CPU nothing is copied."""
    return 1 if device.type == "cpu" else 16


def inference_loader(
    source: Source, device: torch.device, workers: int = 0, policy: FaultPolicy | None = None
) -> Loader:
    """Return a Loader for forward passes without training. ``workers``: decoding threads, or 0 to choose a number."""
    threads = decode_threads(workers, device)
    return Loader(source, threads, ahead_for(device), device=device, policy=policy)


def infer_here(
    forward: Forward, source: Source, transforms: Transforms, device: torch.device, rows: int = 0, workers: int = 0
) -> Scored:
    """Return the results of all samples of a source, computed in this process. Damaged samples are in ``errors``."""
    micro_batches = EvalPlan(len(source), rows_for(rows, device)).micro_batches(0, 1)
    with inference_loader(source, device, workers, KEEP_ERRORS) as loader:
        return joined(list(score(loader, micro_batches, transforms, forward)))


def joined(parts: Sequence[Scored]) -> Scored:
    """Join the results of several batches."""
    embeddings = [part.embeddings for part in parts if part.embeddings is not None]
    return Scored(
        np.concatenate([part.indices for part in parts]),
        np.concatenate([part.logits for part in parts]),
        np.concatenate(embeddings) if embeddings else None,
        {sample: problem for part in parts for sample, problem in part.errors.items()},
    )


def infer_all(
    forward: Forward, loader: Loader, transforms: Transforms, rows: int, accelerator: Accelerator, on_batch: OnBatch
) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, G) float32 logits of all samples, and (n,) bool: whether each sample was decoded.

    The arrays do not depend on the rank or on the world size. The model of ``forward`` must not be wrapped for
    distributed training. ``on_batch`` gets the number of samples of each batch. If a sample was not decoded, its logits
    are 0. Raises LostData, on every rank, if one rank cannot read its samples.
    """
    report = on_batch or (lambda done: None)
    count, world = len(loader.source), accelerator.num_processes
    plan = EvalPlan(count, rows_for(rows, accelerator.device))
    micro_batches = plan.micro_batches(accelerator.process_index, world)
    parts: list[Scored] = []
    failure: UserError | None = None
    try:
        for part in score(loader, micro_batches, transforms, forward, check=False):
            parts.append(part)
            report(part.count)
    except UserError as error:
        failure = error
    require_read(accelerator, failure, plan.steps(world) - len(parts), lambda: report(0))
    scored = joined(parts)
    # The last column is 1 for decoded samples. Damaged samples are sent too, so that each sample is sent exactly once.
    damaged = np.array(sorted(scored.errors), dtype=np.int64)
    found = len(scored.indices)
    outputs = np.zeros((found + len(damaged), scored.logits.shape[1] + 1), dtype=np.float32)
    outputs[:found, :-1], outputs[:found, -1] = scored.logits, 1.0
    everything = gather_by_index(accelerator, count, np.concatenate([scored.indices, damaged]), outputs)
    return np.ascontiguousarray(everything[:, :-1]), everything[:, -1] > 0
