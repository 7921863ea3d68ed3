"""Compute the logits of every sample of a source exactly once, with any number of processes."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from accelerate import Accelerator

from shards.errors import UserError
from toolkit.data.loader.faults import KEEP_ERRORS, FaultPolicy
from toolkit.data.loader.loader import Loader, Source
from toolkit.data.sampling.plan import EvalPlan, MicroBatch
from toolkit.data.transforms.batch_transform import Transforms
from toolkit.device.defaults import ahead_for, decode_threads, rows_for
from toolkit.distributed.collectives import gather_by_index, require_read
from toolkit.inference.forward import Forward, require_finite_outputs

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
    loader: Loader, micro_batches: Iterable[MicroBatch], transforms: Transforms, forward: Forward, *, check: bool = True
) -> Iterator[Scored]:
    """Yield the results of the batches in order. Before each result is yielded, the next batch is queued on the device.

    If ``check`` is True, raises UserError with the names of images whose outputs are not finite. Callers that check
    the gathered outputs of all ranks pass False.
    """

    def where(scored: Scored, row: int) -> str:
        return loader.source.where(int(scored.indices[row]))

    with contextlib.closing(loader.batches(micro_batches, transforms)) as batches:
        outputs: Iterator[Any] = ((batch, forward(batch.images)) for batch in batches)
        for (batch, output), _ in itertools.pairwise(itertools.chain(outputs, [None])):
            (logits, embeddings), micro_batch, keep = output.arrays(), batch.micro_batch, batch.micro_batch.valid
            errors = {int(micro_batch.indices[row]): problem for row, problem in batch.errors.items()}
            embeddings = None if embeddings is None else embeddings[keep]
            scored = Scored(micro_batch.indices[keep], logits[keep], embeddings, errors)
            if check:
                require_finite_outputs((scored.logits, scored.embeddings), partial(where, scored), forward.reduced)
            yield scored


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
