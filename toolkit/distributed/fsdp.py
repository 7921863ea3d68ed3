"""Weights, gradients and optimiser state spread over processes (torch's fully_shard): for models that do not fit one.

whole model, on every process → `spread`, a unit at a time → the optimiser is made of the parts
forward, backward: a unit's weights are gathered, used and let go; its gradients are averaged and spread again
checkpoints, RUN/model ← `gathered`: whole tensors, so that they know nothing of the number of processes

accelerate wraps torch's FSDP too, but on GPUs only; this is the same on CPUs, where the tests are. Buffers (BatchNorm's
statistics) are not spread: each process has its own, and the main one's count, as with DistributedDataParallel.
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

#: A block is gathered by itself if it has at least this share of the model's weights: so there are at most a hundred
#: units, and what lies whole in memory is hardly more than the largest block and what is outside of all.
MIN_UNIT_SHARE = 0.01


def uses_fsdp(accelerator: Accelerator, config: Config) -> bool:
    """Whether this run's weights are spread: asked for, and over more than one process.

    Raises UserError under fp16, whose gradient scaler nobody has tested with spread gradients.
    """
    if config.train.fsdp and accelerator.mixed_precision == "fp16":
        raise UserError(
            "option-conflict",
            "train.fsdp does not go with precision fp16, which scales gradients: use --train.precision bf16 or no",
        )
    return config.train.fsdp and accelerator.num_processes > 1


def is_sharded(model: object) -> bool:
    """Whether ``model`` went through `spread`: then each of its forward passes is a collective call."""
    return isinstance(model, FSDPModule)


def shard_model(accelerator: Accelerator, model: nn.Module) -> None:
    """Leave this process its part of every parameter of ``model``, in place, on its device. Called by every rank.

    The main process's weights and buffers are everybody's, as with DistributedDataParallel. Parameters are other
    objects afterwards, cut along their first dimension. Raises UserError for weights that cannot be cut.
    """
    scalars = [name for name, parameter in model.named_parameters() if parameter.dim() == 0]
    if scalars:
        raise UserError(
            "model-unfit",
            f"train.fsdp cannot cut weights that are single numbers, and {type(model).__name__} has some "
            f"({', '.join(scalars[:3])}): set it to false, or choose another model",
        )
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    whole = sum(parameter.numel() for parameter in model.parameters())
    blocks = units(model)
    for unit in [*blocks, model]:
        _bring(unit, accelerator.device)
        # The root too: between updates its parameters are then the spread ones, as all others'. No mixed precision of
        # FSDP's own: weights and sums of gradients are float32, autocast takes what it always does.
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    if accelerator.is_main_process:
        here = sum(local(parameter).numel() for parameter in model.parameters())
        counts = (accelerator.num_processes, len(blocks) + 1, here / 1e6, whole / 1e6)
        log.info("weights are spread over %d processes in %d units: %.2f of %.2f M here", *counts)


def units(model: nn.Module) -> list[nn.Module]:
    """What is gathered at a time besides the rest, innermost first: large enough elements of a series, and their like.

    In timm's models these are the blocks, and what of a stage is outside of its large blocks. Lists and sequences are
    none: timm may call their elements one by one, so that nobody would gather what is theirs.
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
    """Whether its children are called one after the other: a list, a sequence, or several blocks of one class."""
    children = list(module.children())
    alike = len(children) > 1 and len({type(child) for child in children}) == 1
    return isinstance(module, (nn.ModuleList, nn.Sequential)) or (alike and any(children[0].children()))


def _bring(unit: nn.Module, device: torch.device) -> None:
    """The main process's tensors of ``unit``, of those that are not spread yet, to every process's device."""
    for tensor in chain(unit.parameters(), unit.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(device).contiguous()  # channels_last cannot be cut
            dist.broadcast(tensor.data, src=0)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What of ``tensor`` this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_state(tree: Any, keep: bool) -> Any:
    """A state dict with whole tensors, on the CPU, where spread ones were.

    Called by every rank, with the same tree. Without ``keep`` tensors become None, so that at most one is whole.
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
    """This rank's part of a whole optimiser state, for ``optimizer``'s parameters. Called by every rank.

    A state of other parameters is returned as it is: loading it says what is wrong.
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
    """``value`` cut as ``parameter`` is, if it has its shape; a count of updates has not."""
    if not isinstance(value, torch.Tensor) or not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
