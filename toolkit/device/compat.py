"""Private names of torch that this toolkit cannot do without, each with its reason, gathered here.

setup.cfg bounds torch from above because of them; tests/toolkit/device/test_compat.py fails where a version moves one.
(shards/build/tar_writer.py holds the one of webdataset, because shards never imports torch.)
"""

from __future__ import annotations

import torch
from torch import nn
from torch._weights_only_unpickler import _get_allowed_globals
from torch.nn.modules.batchnorm import _BatchNorm

#: The common base of BatchNorm in one, two and three dimensions, and over processes: isinstance() with no list to keep.
BatchNorm = _BatchNorm

#: ``(images, size, align_corners, scale_h, scale_w, out=)``: what interpolate(mode="bilinear", antialias=True) calls,
#: which has no ``out=`` and would allocate for every sample.
upsample_into = torch.ops.aten._upsample_bilinear2d_aa.out


def in_backward() -> bool:
    """Whether this thread is inside a backward pass: torch.utils.checkpoint asks the same to know a recomputation."""
    return torch._C._current_graph_task_id() != -1


def names_that_torch_allows() -> set[str]:
    """``module.name`` of all that torch.load(weights_only=True) imports by itself.

    torch.serialization.get_unsafe_globals_in_checkpoint knows them too, but reads zip archives only, without limits.
    """
    return set(_get_allowed_globals())


def uncompiled(model: nn.Module) -> nn.Module:
    """The module that torch.compile returned a wrapper of."""
    inner: nn.Module = model._orig_mod  # type: ignore[assignment]
    return inner


def change_class(module: nn.Module, kind: type[nn.Module]) -> None:
    """Make ``module`` an object of ``kind``, which adds methods and no attributes to its class.

    torch does so itself (torch.nn.utils.parametrize). A wrapper would give every weight another name.
    """
    module.__class__ = kind
