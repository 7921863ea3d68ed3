"""Activation checkpointing: recompute activations in the backward pass instead of keeping them."""

from __future__ import annotations

from typing import Any

from torch import nn

from shards.errors import UserError
from toolkit.device.compat import BatchNorm, in_backward


def enable_checkpointing(model: nn.Module) -> None:
    """Make a timm model recompute its activations in the backward pass (Chen et al. 2016).

    Gradients and BatchNorm statistics stay the same. Raises UserError if the model lacks ``set_grad_checkpointing``.
    """
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError):
        raise UserError(
            "model-unfit",
            f"model.checkpointing: timm's {type(model).__name__} cannot recompute activations. Set model.checkpointing "
            f"to false, and save memory with --train.accumulation or --train.auto_batch true",
        ) from None
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.register_forward_pre_hook(_pause_statistics)
            # torch may end a recomputation by raising an exception. The hook must run in this case, too.
            module.register_forward_hook(_resume_statistics, always_call=True)


def _pause_statistics(module: Any, _: Any) -> None:
    """Set BatchNorm's momentum to 0 in a recomputed forward pass, so that the batch is not counted twice."""
    if _recomputing(module):
        module.usual_momentum, module.momentum = module.momentum, 0.0


def _resume_statistics(module: Any, *_: Any) -> None:
    if _recomputing(module):
        module.momentum = module.usual_momentum
        module.num_batches_tracked.sub_(1)


def _recomputing(module: Any) -> bool:
    return in_backward() and module.training and module.track_running_stats
