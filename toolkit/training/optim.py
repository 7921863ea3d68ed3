"""Optimiser, learning-rate schedule and parameter groups with their weight decay.

learning rate of a parameter = optim.lr x lr_factor(update) x factor of its layer x (head_lr for the head)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from shards.errors import UserError, one_line
from toolkit.config.extensions import is_place, make
from toolkit.config.schema import OptimConfig
from toolkit.models.heads import head_prefixes

#: Options of a parameter group that a resume takes from the configuration, not from the checkpoint.
OWN = ("weight_decay", "momentum", "lr_scale")


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Return timm's optimiser ``config.name`` over the parameters that require gradients.

    timm's ``sgd`` uses Nesterov momentum, and timm's ``momentum`` uses classical momentum. Optimisers of timm skip a
    parameter without a gradient, so neither updates nor weight decay change frozen weights.
    Raises UserError if the optimiser cannot be created on this machine.
    """
    groups = parameter_groups(model, config)
    try:
        return _optimizer(groups, config)
    except UserError:
        raise
    except Exception as error:  # optimisers raise different errors
        raise UserError(
            "option-value", f"optim.name {config.name} cannot be used here: {one_line(error)[:300]}"
        ) from None


def _optimizer(groups: list[Any], config: OptimConfig) -> torch.optim.Optimizer:
    """Return the optimiser ``config.name`` of timm or of the user. Raises any exception of its constructor."""
    if is_place(config.name):
        found: torch.optim.Optimizer = make(
            "optimiser", config.name, config.options, "optim.options", groups, lr=config.lr
        )
        return found
    return create_optimizer_v2(groups, config.name, lr=config.lr, momentum=config.momentum, **config.options)


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Return parameter groups with the keys params, weight_decay and lr_scale.

    lr_scale is a factor on the learning rate of the group. It is ``layer_decay`` to the power n. n is the number of
    layers between the parameter's layer and the output, by timm's ``group_matcher``. For the classifier, lr_scale is
    also multiplied by ``head_lr``. Vectors (biases, normalisation) and parameters in the model's ``no_weight_decay``
    have no weight decay. The groups do not depend on the value of weight decay, so a resumed run can change it.
    """
    no_decay: Collection[str] = getattr(model, "no_weight_decay", tuple)()
    if config.layer_decay < 1:
        groups = param_groups_layer_decay(model, 1.0, no_decay, layer_decay=config.layer_decay)
    else:
        groups = param_groups_weight_decay(model, 1.0, no_weight_decay_list=no_decay)
        groups.reverse()  # groups with weight decay first, as in earlier checkpoints
    apart = head_prefixes(model) if config.head_lr != 1 else ()
    head = {id(p) for name, p in model.named_parameters() if name.startswith(apart)}
    result = []
    for group in groups:
        scale, decay = group.get("lr_scale", 1.0), group["weight_decay"] * config.weight_decay
        for in_head, factor in ((False, 1.0), (True, config.head_lr)):
            if params := [p for p in group["params"] if (id(p) in head) is in_head]:
                result.append({"params": params, "weight_decay": decay, "lr_scale": scale * factor})
    return result


def _cosine(progress: float, least: float) -> float:
    """Return a factor that falls from 1 to ``least`` along a cosine (Loshchilov, Hutter 2017, without restarts)."""
    return least + (1.0 - least) * 0.5 * (1.0 + math.cos(math.pi * progress))


#: Name of a schedule → function that returns the rate's factor. Its arguments are the share (0 to 1) of the updates
#: after warm-up that are done, and optim.min_lr.
SCHEDULES: dict[str, Callable[[float, float], float]] = {"constant": lambda *_: 1.0, "cosine": _cosine}


def lr_factor(config: OptimConfig, total_steps: int) -> Callable[[int], float]:
    """Return a function of an update's number (from 0). It returns the factor by which optim.lr is multiplied."""

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
        return SCHEDULES[config.schedule](min(1.0, progress), config.min_lr)

    return factor


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group to ``lr`` times its lr_scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the optimiser's state from a checkpoint, but keep weight decay, momentum and lr_scale of the configuration.

    Raises UserError if the parameter groups of the state differ from those of the optimiser.
    """
    own = [{name: group[name] for name in OWN if name in group} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
    except (ValueError, KeyError) as error:
        raise UserError(
            "run-differs",
            f"the checkpoint's optimiser does not fit this version's groups of parameters ({one_line(error)}): "
            f"start a new run in another --out",
        ) from None
    for group, options in zip(optimizer.param_groups, own, strict=True):
        group.update(options)


def state_per_weight(config: OptimConfig) -> float:
    """Return the number of bytes of optimiser state per float32 weight, measured on a small matrix."""
    weight = nn.Parameter(torch.zeros(64, 64))
    optimizer = _optimizer([weight], config)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    kept = [v for v in optimizer.state[weight].values() if isinstance(v, torch.Tensor)]
    return sum(v.numel() * v.element_size() for v in kept) / weight.numel()
