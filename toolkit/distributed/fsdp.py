"""Fully sharded data parallelism (FSDP, torch's fully_shard), for models that are too large for one GPU.

Each process stores a part of every weight, gradient and optimiser state. `shard_model` shards a whole model, and the
optimiser is then created over the sharded parameters. In a forward or backward pass, weights are gathered, used and
freed for one unit at a time. A unit is a module, such as a block of a ViT (see `units`). `full_state` returns whole
tensors, so that checkpoints and RUN/model do not depend on the number of processes.

accelerate supports FSDP on GPUs only. This module also works on CPUs, where its tests run. Buffers (BatchNorm
statistics) are not sharded. Each process has its own buffers. Only the main process saves its buffers, as with DDP.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from shards.errors import UserError
from toolkit.config.schema import Config

log = logging.getLogger(__name__)

#: A block of the model is a unit if it has at least this share of the model's weights. So there are at most 100 units.
#: During a pass, memory contains whole weights of about one unit, and of the modules outside of all units.
MIN_UNIT_SHARE = 0.01


def uses_fsdp(accelerator: Accelerator, config: Config) -> bool:
    """Return whether this run shards its weights: train.fsdp is true, and there are several processes.

    Raises UserError for precision fp16, because its gradient scaler is not tested with sharded gradients.
    """
    if config.train.fsdp and accelerator.mixed_precision == "fp16":
        raise UserError(
            "option-conflict",
            "train.fsdp does not work with precision fp16, which scales gradients: use --train.precision bf16 or no",
        )
    return config.train.fsdp and accelerator.num_processes > 1


def is_sharded(model: object) -> bool:
    """Return whether `shard_model` was applied to ``model``. A forward pass of such a model is a collective call."""
    return isinstance(model, FSDPModule)


def shard_model(accelerator: Accelerator, model: nn.Module) -> None:
    """Replace every parameter of ``model`` by the part that this process stores on its device. Called by every rank.

    The main process's weights and buffers are first copied to all ranks. Parameters are split along their first
    dimension. Raises UserError if the model has scalar parameters (without dimensions).
    """
    scalars = [name for name, parameter in model.named_parameters() if parameter.dim() == 0]
    if scalars:
        raise UserError(
            "model-unfit",
            f"train.fsdp cannot shard weights that are single numbers, such as {', '.join(scalars[:3])} of "
            f"{type(model).__name__}: set --train.fsdp false, or choose another model",
        )
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    whole = sum(parameter.numel() for parameter in model.parameters())
    blocks = units(model)
    for unit in [*blocks, model]:
        _copy_from_main(unit, accelerator.device)
        # The model itself is the last unit, with all other parameters. FSDP's own mixed precision is off: weights and
        # gradients are float32, and autocast works as without FSDP.
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    if accelerator.is_main_process:
        here = sum(local(parameter).numel() for parameter in model.parameters())
        counts = (accelerator.num_processes, len(blocks) + 1, here / 1e6, whole / 1e6)
        log.info("weights are sharded over %d processes in %d units: this process has %.2f of %.2f M weights", *counts)


def units(model: nn.Module) -> list[nn.Module]:
    """Return the units of ``model``: modules whose weights are gathered together. Inner modules come first.

    The model itself is not in the list. It gathers all other weights. A unit is a large module that is part of a series
    of modules (`_is_series`), or has the same class as such a module. In timm's models, units are blocks and stages.
    ModuleList and Sequential are never units, because timm sometimes calls their children directly.
    """
    series = (list(module.children()) for module in model.modules() if _is_series(module))
    elements = [element for members in series for element in members]
    in_series = {id(element) for element in elements}
    kinds = {type(element) for element in elements if any(element.children())}
    least = MIN_UNIT_SHARE * sum(parameter.numel() for parameter in model.parameters())
    found, taken = [], set[int]()
    for module in reversed(list(model.modules())):  # children before parents
        if module is model or isinstance(module, (nn.ModuleList, nn.Sequential)):
            continue
        own = {id(p): p.numel() for p in module.parameters() if id(p) not in taken}
        if (id(module) in in_series or type(module) in kinds) and sum(own.values()) >= least:
            found.append(module)
            taken |= own.keys()
    return found


def _is_series(module: nn.Module) -> bool:
    """Return whether ``module`` is a ModuleList or Sequential, or has several children that are blocks of one class."""
    children = list(module.children())
    alike = len(children) > 1 and len({type(child) for child in children}) == 1
    return isinstance(module, (nn.ModuleList, nn.Sequential)) or (alike and any(children[0].children()))


def _copy_from_main(unit: nn.Module, device: torch.device) -> None:
    """Copy the tensors of ``unit`` from the main process to the device of every process. Skip sharded tensors."""
    for tensor in chain(unit.parameters(), unit.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(device).contiguous()  # a channels_last tensor cannot be sharded
            dist.broadcast(tensor.data, src=0)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's part of ``tensor``."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_state(tree: Any, keep: bool) -> Any:
    """Return a copy of the state dict ``tree``, with whole tensors on the CPU in place of sharded tensors.

    Called by every rank with the same tree. If ``keep`` is false, the copy has None in place of each tensor. This
    process then has at most one whole tensor in memory.
    """
    if isinstance(tree, torch.Tensor):
        whole = tree.full_tensor() if isinstance(tree, DTensor) else tree
        return whole.cpu() if keep else None
    if isinstance(tree, dict):
        return {name: full_state(value, keep) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(full_state(value, keep) for value in tree)
    return tree


def shard_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return this rank's part of a whole optimiser state, sharded like ``optimizer``'s weights. Called by every rank.

    If the numbers of parameters differ, return ``state`` unchanged. `restore_optimizer` then raises the error.
    """
    parameters = list(_flat(optimizer.param_groups))
    numbers = list(_flat(state["param_groups"]))
    if len(parameters) != len(numbers):
        return state
    sharded = {
        number: {name: _part(value, parameter) for name, value in state["state"][number].items()}
        for number, parameter in zip(numbers, parameters, strict=True)
        if number in state["state"]
    }
    return {**state, "state": sharded}


def _flat(groups: Iterable[dict[str, Any]]) -> Iterable[Any]:
    return chain.from_iterable(group["params"] for group in groups)


def _part(value: Any, parameter: torch.Tensor) -> Any:
    """Return ``value`` sharded like ``parameter``. If the shapes differ (e.g. a count of updates), return it whole."""
    if not isinstance(value, torch.Tensor) or not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
