"""Logits of every sample of a source, once, at any number of processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from toolkit.data.cuts import Cutter
from toolkit.data.loader import Loader
from toolkit.data.plan import EvalPlan, Share
from toolkit.data.transforms import Preprocessing
from toolkit.distributed import autocast_dtype, gather_by_index


def infer_shares(
    model: nn.Module,
    loader: Loader,
    shares: Iterable[Share],
    cutter: Cutter,
    preprocessing: Preprocessing,
    accelerator: Accelerator,
    *,
    channels_last: bool = True,
    on_batch: Callable[[int], object] | None = None,
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Run ``model`` (unwrapped, already on its device, in evaluation mode) over this rank's shares.

    Returns (indices (n,) int64 of valid decodable samples, logits (n, G) float32, errors by sample index).
    ``on_batch`` is told the number of samples done.
    """
    indices: list[np.ndarray] = []
    logits: list[np.ndarray] = []
    errors: dict[int, str] = {}
    dtype = autocast_dtype(accelerator)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    with torch.inference_mode(), contextlib.closing(loader.batches(shares, cutter)) as batches:
        for batch in batches:
            images = preprocessing.normalize(batch.images, dtype)
            with accelerator.autocast():
                out = model(images.contiguous(memory_format=memory_format))
            keep = batch.share.valid
            errors.update({int(batch.share.indices[row]): problem for row, problem in batch.errors.items()})
            indices.append(batch.share.indices[keep])
            logits.append(out.float().cpu().numpy()[keep])
            if on_batch is not None:
                on_batch(int(keep.sum()) + len(batch.errors))
    return np.concatenate(indices), np.concatenate(logits), errors


def infer_all(
    model: nn.Module,
    loader: Loader,
    cutter: Cutter,
    batch_size: int,
    preprocessing: Preprocessing,
    accelerator: Accelerator,
    *,
    channels_last: bool = True,
    on_batch: Callable[[int], object] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(logits (n, G) float32, decoded (n,) bool) of the loader's samples, the same on every rank and at any world size.

    Rows that are not decoded are zero; a loader whose fault policy stops never leaves one.
    """
    count = len(loader.source)
    shares = EvalPlan(count, batch_size).shares(accelerator.process_index, accelerator.num_processes)
    indices, logits, errors = infer_shares(
        model,
        loader,
        shares,
        cutter,
        preprocessing,
        accelerator,
        channels_last=channels_last,
        on_batch=on_batch,
    )
    # A last column says which rows are real; each sample comes exactly once, damaged or not.
    damaged = np.array(sorted(errors), dtype=np.int64)
    rows = np.zeros((len(indices) + len(damaged), logits.shape[1] + 1), dtype=np.float32)
    rows[: len(indices), :-1], rows[: len(indices), -1] = logits, 1.0
    everything = gather_by_index(accelerator, count, np.concatenate([indices, damaged]), rows)
    return np.ascontiguousarray(everything[:, :-1]), everything[:, -1] > 0
