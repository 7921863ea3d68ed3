"""Wrap the trained model: torch.compile, and DistributedDataParallel (DDP) around it.

    plain model ─→ SyncBatchNorm (optional) ─→ torch.compile (optional) ─→ DDP (with several processes)

The order is that of torch's guide to torch.compile: the Python code of DDP is not compiled. The compiler still splits
its graph at the buckets of DDP, because DDP is active during the tracing. So gradients are reduced while the rest of
the backward pass runs. Autocast is set by the caller; no forward method is replaced. The plain model, under its plain
names, is validated, averaged, saved and exported.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import is_compiled_module
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from shards.errors import UserError
from toolkit.config.schema import Config, TrainConfig
from toolkit.device.compat import uncompiled


def wrap(accelerator: Accelerator, model: nn.Module, train: TrainConfig) -> nn.Module:
    """Move a plain model to its device, compile it if ``train.compile``, and wrap it in DDP with several processes.

    DDP reduces the gradients of the parameters that require them at this moment (see `rewrap`).
    """
    model = model.to(accelerator.device)
    if train.compile:
        model = torch.compile(model)  # type: ignore[assignment]
    if accelerator.num_processes > 1:
        model = DistributedDataParallel(
            model,
            device_ids=[accelerator.device] if accelerator.device.type != "cpu" else None,
            # Gradients are views of the buckets that are reduced, and so in memory only once.
            gradient_as_bucket_view=True,
            # All passes of one wrapper have the same graph: after thawing, the model is wrapped again, and ensemble
            # members without rows get gradients of zero. But DDP's first backward pass must reduce gradients, which
            # the first of several micro-batches does not (torch fails with an internal assertion). torch.compile does
            # not support a static graph.
            static_graph=train.accumulation == 1 and not (train.auto_batch or train.compile),
        )
    return model


def rewrap(accelerator: Accelerator, model: nn.Module, train: TrainConfig) -> nn.Module:
    """Return a wrapped model in new wrappers, after parameters were frozen or thawed; the weights are the same objects.

    The old wrappers are freed, with their hooks, buckets and compiled code, when the caller drops ``model``. A model
    without wrappers is returned unchanged.
    """
    inner = plain(model)
    if inner is model:
        return model
    if train.compile:
        torch.compiler.reset()  # otherwise each thaw adds graphs to the same function, up to the compiler's limit
    return wrap(accelerator, inner, train)


def plain(model: nn.Module) -> nn.Module:
    """Return the model inside its wrappers, in any order; it shares their weights.

    FSDP (fsdp.py) uses no wrapper: the plain model itself has the sharded weights.
    """
    while True:
        if is_compiled_module(model):
            model = uncompiled(model)
        elif isinstance(model, (DistributedDataParallel, nn.DataParallel)):
            model = model.module
        else:
            return model


def check_synced(accelerator: Accelerator, config: Config) -> bool:
    """Return whether BatchNorm statistics are computed over processes: train.sync_batchnorm with several processes.

    Raises UserError, on every rank, for devices and options that SyncBatchNorm cannot be combined with.
    """
    train = config.train
    if not train.sync_batchnorm or accelerator.num_processes == 1:
        return False
    if accelerator.device.type == "cpu":
        raise UserError(
            "device",
            "train.sync_batchnorm needs GPUs: torch has no SyncBatchNorm for CPUs; set --train.sync_batchnorm false",
        )
    for key, why in (
        ("auto_batch", "ranks may need different numbers of trials, and would deadlock"),
        ("compile", "torch.compile has not been tested with statistics over all processes"),
    ):
        if getattr(train, key):
            problem = f"train.sync_batchnorm cannot be combined with train.{key}: {why}; set one of them to false"
            raise UserError("option-conflict", problem)
    return True
