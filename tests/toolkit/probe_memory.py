"""``posters train`` on a machine with little memory: a training pass of more rows than the limit runs out of it.

python probe_memory.py LIMIT,LIMIT,... <options of posters train>       (one limit per rank)
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from torch import nn

import toolkit.training.setup
from toolkit.cli.main import run


def limit_rows(model: nn.Module, limit: int) -> None:
    """Let training passes of more than ``limit`` rows fail as CUDA's allocator does."""

    def check(module: nn.Module, inputs: Any) -> None:
        if module.training and len(inputs[0]) > limit:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model.register_forward_pre_hook(check)


def main() -> None:
    limit = int(sys.argv[1].split(",")[int(os.environ.get("RANK", "0"))])
    build = toolkit.training.setup.build_model

    def limited(*arguments: Any, **options: Any) -> nn.Module:
        model = build(*arguments, **options)
        limit_rows(model, limit)
        return model

    toolkit.training.setup.build_model = limited
    run(["train", *sys.argv[2:]])


if __name__ == "__main__":
    main()
