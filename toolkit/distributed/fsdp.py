"""Weights, gradients and optimiser state sharded over processes (torch's fully_shard), for models too big for one GPU.

whole model, on every process → `shard_model`, one unit at a time → optimiser over the sharded parameters
forward, backward: a unit's weights are gathered, used and freed; its gradients are averaged and sharded again
checkpoints, RUN/model ← `full_state`: whole tensors, so that they do not depend on the number of processes

accelerate wraps torch's FSDP on GPUs only. This module works on CPUs as well, where the tests run. Buffers (BatchNorm
statistics) are not sharded: each process has its own, and the main process's are used, as with DistributedDataParallel.
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

#: A block is a unit if it has at least this share of the model's weights. So there are at most a hundred units, and
#: memory contains little more whole weights than the largest block plus the weights outside of all units.
MIN_UNIT_SHARE = 0.01


def uses_fsdp(accelerator: Accelerator, config: Config) -> bool:
    """Return whether this run shards its weights: train.fsdp is true, and there are several processes.

    Raises UserError for fp16: its gradient scaler is not tested with sharded gradients.
    """
    if config.train.fsdp and accelerator.mixed_precision == "fp16":
        raise UserError(
            "option-conflict",
            "train.fsdp does not work with precision fp16, which scales gradients: use --train.precision bf16 or no",
        )
    return config.train.fsdp and accelerator.num_processes > 1


def is_sharded(model: object) -> bool:
    """Return whether `shard_model` was applied to ``model``. Each forward pass is then a collective call."""
    return isinstance(model, FSDPModule)


def shard_model(accelerator: Accelerator, model: nn.Module) -> None:
    """Keep only this process's part of every parameter of ``model``, in place, on its device. Called by every rank.

    All ranks start from the main process's weights and buffers, as with DistributedDataParallel. Parameters are new
    objects afterwards, split along their first dimension. Raises UserError if the model has scalar weights.
    """
    scalars = [name for name, parameter in model.named_parameters() if parameter.dim() == 0]
    if scalars:
        raise UserError(
            "model-unfit",
            f"train.fsdp cannot shard weights that are single numbers, and {type(model).__name__} has some "
            f"({', '.join(scalars[:3])}): set it to false, or choose another model",
        )
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    whole = sum(parameter.numel() for parameter in model.parameters())
    blocks = units(model)
    for unit in [*blocks, model]:
        _bring(unit, accelerator.device)
        # The root, too: its parameters are then sharded between updates like all others. FSDP's own mixed precision is
        # off: weights and sums of gradients are float32, and autocast works as without FSDP.
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    if accelerator.is_main_process:
        here = sum(local(parameter).numel() for parameter in model.parameters())
        counts = (accelerator.num_processes, len(blocks) + 1, here / 1e6, whole / 1e6)
        log.info("weights are sharded over %d processes in %d units: %.2f of %.2f M here", *counts)


def units(model: nn.Module) -> list[nn.Module]:
    """Return the modules that are gathered one at a time, innermost first; the root gathers all other weights.

    Units are large elements of a series, and large modules of the same classes. In timm's models these are blocks, and
    stages without their large blocks. ModuleList and Sequential are never units: timm may call their elements one by
    one, and then their own weights would not be gathered.
    """
    series = (list(module.children()) for module in model.modules() if _is_series(module))
    elements = [element for members in series for element in members]
    chosen = {id(element) for element in elements}
    kinds = {type(element) for element in elements if any(element.children())}
    least = MIN_UNIT_SHARE * sum(parameter.numel() for parameter in model.parameters())
    found, taken = [], set[int]()
    for module in reversed(list(model.modules())):  # children before parents
        if module is model or isinstance(module, (nn.ModuleList, nn.Sequential)):
            continue
        own = {id(p): p.numel() for p in module.parameters() if id(p) not in taken}
        if (id(module) in chosen or type(module) in kinds) and sum(own.values()) >= least:
            found.append(module)
            taken |= own.keys()
    return found


def _is_series(module: nn.Module) -> bool:
    """Return whether the children are called in order: a ModuleList, a Sequential, or several blocks of one class."""
    children = list(module.children())
    alike = len(children) > 1 and len({type(child) for child in children}) == 1
    return isinstance(module, (nn.ModuleList, nn.Sequential)) or (alike and any(children[0].children()))


def _bring(unit: nn.Module, device: torch.device) -> None:
    """Copy the main process's tensors of ``unit`` to every process's device, except those already sharded."""
    for tensor in chain(unit.parameters(), unit.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(device).contiguous()  # channels_last cannot be sharded
            dist.broadcast(tensor.data, src=0)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's part of ``tensor``."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_state(tree: Any, keep: bool) -> Any:
    """Return a copy of the state dict ``tree`` with whole tensors, on the CPU, in place of sharded ones.

    Called by every rank with the same tree. Without ``keep`` tensors become None, so at most one is whole at a time.
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
    """Return this rank's part of a whole optimiser state, for ``optimizer``'s parameters. Called by every rank.

    A state of other parameters is returned unchanged: loading it raises the error.
    """
    parameters = list(_flat(optimizer.param_groups))
    numbers = list(_flat(state["param_groups"]))
    if len(parameters) != len(numbers):
        return state
    cut = {
        number: {name: _part(value, parameter) for name, value in state["state"][number].items()}
        for number, parameter in zip(numbers, parameters, strict=True)
        if number in state["state"]
    }
    return {**state, "state": cut}


def _flat(groups: Iterable[dict[str, Any]]) -> Iterable[Any]:
    return chain.from_iterable(group["params"] for group in groups)


def _part(value: Any, parameter: torch.Tensor) -> Any:
    """Return ``value`` sharded like ``parameter`` if both have the same shape, else unchanged (a count of updates)."""
    if not isinstance(value, torch.Tensor) or not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
