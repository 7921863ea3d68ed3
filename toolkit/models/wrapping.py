"""What wraps the model that learns: torch.compile, and DistributedDataParallel (DDP) around it.

    plain model ─→ statistics over processes? ─→ compiled? ─→ DDP, where there are several processes

The order is the one of torch's guide to torch.compile: DDP's own Python is not compiled. The compiler still cuts its
graph at DDP's buckets, because DDP is active while the inner model is traced: gradients are reduced while the rest of
the backward pass runs. Autocast is the caller's: no forward method is replaced.
What is validated, averaged, saved and exported is the plain model, under the plain names.
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
    """A plain model on its device, compiled if ``train`` says so, in DDP where there are several processes.

    DDP decides here whose gradients it reduces: those of parameters that learn now (see rewrap).
    """
    model = model.to(accelerator.device)
    if train.compile:
        model = torch.compile(model)  # type: ignore[assignment]
    if accelerator.num_processes > 1:
        model = DistributedDataParallel(
            model,
            device_ids=[accelerator.device] if accelerator.device.type != "cpu" else None,
            # Gradients are parts of the buckets that are reduced: in memory once instead of twice.
            gradient_as_bucket_view=True,
            # All passes of one wrapper are alike, so that DDP may learn its graph in the first one: what thaws is
            # wrapped anew, and members of an ensemble without rows get gradients of zero. But DDP's first backward pass
            # must be one that reduces, which that of several micro-batches is not (torch ends there with an internal
            # assertion), and torch wants a compiled model's DDP without it.
            static_graph=train.accumulation == 1 and not (train.auto_batch or train.compile),
        )
    return model


def rewrap(accelerator: Accelerator, model: nn.Module, train: TrainConfig) -> nn.Module:
    """A wrapped model, wrapped anew after parameters were frozen or thawed; the weights stay the same objects.

    The wrappers that ``model`` had are let go, with their hooks, buckets and compiled code, once the caller lets go of
    it. A model without any is returned as it is.
    """
    inner = plain(model)
    if inner is model:
        return model
    if train.compile:
        torch.compiler.reset()  # each thaw would add to the graphs of one function, until the compiler gives up
    return wrap(accelerator, inner, train)


def plain(model: nn.Module) -> nn.Module:
    """The model within wrappers, in whatever order they lie; it shares their weights.

    Weights that are spread over processes (fsdp.py) are so in the model itself, which has no wrapper.
    """
    while True:
        if is_compiled_module(model):
            model = uncompiled(model)
        elif isinstance(model, (DistributedDataParallel, nn.DataParallel)):
            model = model.module
        else:
            return model


def check_synced(accelerator: Accelerator, config: Config) -> bool:
    """Whether BatchNorm takes its statistics over processes: asked for, and there are several.

    Raises UserError, on every rank, for what torch's SyncBatchNorm does not go with.
    """
    train = config.train
    if not train.sync_batchnorm or accelerator.num_processes == 1:
        return False
    if accelerator.device.type == "cpu":
        raise UserError(
            "device",
            "train.sync_batchnorm needs GPUs: torch has no SyncBatchNorm on CPUs; set --train.sync_batchnorm false",
        )
    for key, why in (
        ("auto_batch", "processes try unequally often, and would wait for each other"),
        ("compile", "what is compiled has not been tested with statistics over processes"),
    ):
        if getattr(train, key):
            said = f"train.sync_batchnorm does not go with train.{key}: {why}; set one of them to false"
            raise UserError("option-conflict", said)
    return True
