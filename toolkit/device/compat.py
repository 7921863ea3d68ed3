"""All private functions and classes of torch and accelerate that the toolkit uses.

A new version of torch may change a private name. setup.cfg therefore limits the version of torch, and
tests/toolkit/device/test_compat.py fails if a name is missing. A private name of webdataset is used in
shards/build/tar_writer.py. It is not listed here, because ``shards`` must not import torch.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch._weights_only_unpickler import _get_allowed_globals
from torch.nn.modules.batchnorm import _BatchNorm

#: Base class of BatchNorm1d, 2d, 3d and SyncBatchNorm, for isinstance().
BatchNorm = _BatchNorm

#: The operation inside torch.nn.functional.interpolate(mode="bilinear", antialias=True). Its arguments are
#: ``(images, size, align_corners, scale_h, scale_w, out=)``. interpolate() has no ``out=`` and allocates memory in each
#: call.
upsample_into = torch.ops.aten._upsample_bilinear2d_aa.out

#: ``copy_tensors(to, values)`` is copy_() of lists of tensors, and ``lerp_tensors(to, values, weight=)`` is lerp_(). On
#: a GPU, both start a few kernels for a list whose tensors have one type.
copy_tensors = torch._foreach_copy_
lerp_tensors = torch._foreach_lerp_


def in_backward() -> bool:
    """Return whether this thread runs a backward pass. torch.utils.checkpoint uses the same private function."""
    return torch._C._current_graph_task_id() != -1


def names_that_torch_allows() -> set[str]:
    """Return ``module.name`` of all objects that torch.load(weights_only=True) imports by default.

    The public torch.serialization.get_unsafe_globals_in_checkpoint reads only zip archives, and has no size limits.
    """
    return set(_get_allowed_globals())


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the module inside a wrapper of torch.compile."""
    inner: nn.Module = model._orig_mod  # type: ignore[assignment]
    return inner


def change_class(module: nn.Module, kind: type[nn.Module]) -> None:
    """Change the class of ``module`` to ``kind``, a subclass that adds methods but no attributes.

    torch.nn.utils.parametrize also changes classes. A wrapper module is not used, because it renames every weight.
    """
    module.__class__ = kind


def shared_settings() -> list[dict[str, Any]]:
    """Return the dicts with accelerate's settings, which a process's first Accelerator sets for all later Accelerators.

    With empty dicts, the next Accelerator has new settings. PartialState, with the process group and the device, is not
    in the list, because processes connect only once.
    """
    return [AcceleratorState._shared_state, GradientState._shared_state]
