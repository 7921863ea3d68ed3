"""Wrap a model for training: first in torch.compile, then in DistributedDataParallel (DDP).

training/setup.py wraps the model once, before training. training/trainer.py wraps it again after each unfreezing.

    plain model ─→ SyncBatchNorm (optional) ─→ torch.compile (optional) ─→ DDP (with several processes)

torch's guide to torch.compile recommends this order. The Python code of DDP is then not compiled. The compiler
splits its graph at the buckets of DDP, so gradients are reduced while the backward pass continues. The caller sets
autocast. The plain model without wrappers is validated, averaged, saved and exported.
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
    """Move a plain model to its device. Compile it if ``train.compile`` is set. Use DDP if there are several processes.

    DDP ignores parameters that are frozen when it is created. After unfreezing parameters, call `rewrap`.
    """
    model = model.to(accelerator.device)
    if train.compile:
        model = torch.compile(model)  # type: ignore[assignment]
    if accelerator.num_processes > 1:
        model = DistributedDataParallel(
            model,
            device_ids=[accelerator.device] if accelerator.device.type != "cpu" else None,
            # Gradients are views of DDP's buckets, so they are in memory only once.
            gradient_as_bucket_view=True,
            # All backward passes have the same graph: an unfreezing wraps the model again, and ensemble members without
            # samples get zero gradients. The first backward pass of a static graph must reduce gradients. This excludes
            # several micro-batches. torch.compile does not support a static graph.
            static_graph=train.accumulation == 1 and not (train.auto_batch or train.compile),
        )
    return model


def rewrap(accelerator: Accelerator, model: nn.Module, train: TrainConfig) -> nn.Module:
    """Put a wrapped model into new wrappers after parameters were frozen or unfrozen. The weights are not copied.

    The old wrappers are freed with their buckets and compiled code when the caller deletes ``model``. A model without
    wrappers is returned unchanged.
    """
    inner = plain(model)
    if inner is model:
        return model
    if train.compile:
        torch.compiler.reset()  # otherwise each unfreezing adds a graph, up to the compiler's limit
    return wrap(accelerator, inner, train)


def plain(model: nn.Module) -> nn.Module:
    """Return the model without its wrappers. The weights are not copied.

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
    """Return whether BatchNorm statistics are computed over all processes (train.sync_batchnorm).

    The result is False for one process. Raises UserError, on every rank, for a device or option that does not support
    SyncBatchNorm.
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
        ("auto_batch", "ranks could try different accumulations and then block each other"),
        ("compile", "torch.compile has not been tested with statistics over all processes"),
    ):
        if getattr(train, key):
            problem = f"train.sync_batchnorm cannot be combined with train.{key}: {why}. Set one of them to false"
            raise UserError("option-conflict", problem)
    return True
