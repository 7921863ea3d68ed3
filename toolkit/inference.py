"""Logits of every sample of a source, once, at any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from toolkit.data.loader import Loader
from toolkit.data.plan import EvalPlan, Share
from toolkit.data.transforms import Preprocessing, Transform
from toolkit.distributed import gather_by_index


def infer_shares(
    model: nn.Module,
    loader: Loader,
    shares: Iterable[Share],
    preprocessing: Preprocessing,
    accelerator: Accelerator,
    *,
    channels_last: bool = True,
    transform: Transform | None = None,
    on_batch: Callable[[int], object] | None = None,
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Run ``model`` (unwrapped, already on its device, in evaluation mode) over this rank's shares.

    Returns (indices (n,) int64 of valid decodable samples, logits (n, G) float32, errors by sample index).
    ``transform`` replaces ``preprocessing``'s pixels; ``on_batch`` is told the number of samples done.
    """
    one = transform or preprocessing
    indices: list[np.ndarray] = []
    logits: list[np.ndarray] = []
    errors: dict[int, str] = {}
    device = accelerator.device
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    with torch.inference_mode():
        for batch in loader.batches(shares, lambda share: [one] * len(share.indices)):
            images = preprocessing.normalize(batch.images.to(device, non_blocking=True))
            with accelerator.autocast():
                out = model(images.contiguous(memory_format=memory_format))
            keep = batch.share.valid.copy()
            for row, problem in batch.errors.items():
                keep[row] = False
                errors[int(batch.share.indices[row])] = problem
            indices.append(batch.share.indices[keep])
            logits.append(out.float().cpu().numpy()[keep])
            if on_batch is not None:
                on_batch(int(batch.share.valid.sum()))
    return np.concatenate(indices), np.concatenate(logits), errors


def infer_all(
    model: nn.Module,
    loader: Loader,
    count: int,
    batch_size: int,
    preprocessing: Preprocessing,
    accelerator: Accelerator,
    *,
    channels_last: bool = True,
    on_batch: Callable[[int], object] | None = None,
) -> np.ndarray:
    """(count, G) float32 logits of samples 0..count-1, on every rank, the same at any number of processes."""
    shares = EvalPlan(count, batch_size).shares(accelerator.process_index, accelerator.num_processes)
    indices, logits, _ = infer_shares(
        model, loader, shares, preprocessing, accelerator, channels_last=channels_last, on_batch=on_batch
    )
    return gather_by_index(accelerator, count, indices, logits)
