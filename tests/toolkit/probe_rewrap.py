"""Two ranks thaw a part of a model under DDP; each prints what it saw as a line of JSON, after ``SAW``.

accelerate launch ... probe_rewrap.py no|bf16
"""

from __future__ import annotations

import json
import sys
import weakref
from typing import Any

import torch

from toolkit.distributed import make_accelerator, rewrap
from toolkit.freezing import Freezing
from toolkit.models import HeadSpec, build_model


def depth(forward: Any) -> int:
    """How often a forward method was wrapped."""
    count = 0
    while hasattr(forward, "__wrapped__"):
        forward, count = forward.__wrapped__, count + 1
    return count


def main() -> None:
    accelerator = make_accelerator(sys.argv[1])
    torch.manual_seed(0)
    plain = build_model("test_vit", 3, HeadSpec("linear", (), 0.0), 32)
    freezing = Freezing(plain, ["stem@1", "blocks.0@1"])
    freezing.apply(None)
    optimizer: Any = torch.optim.SGD(plain.parameters(), lr=0.1)
    freezing.apply(0)
    model, optimizer = accelerator.prepare(plain, optimizer)

    def update() -> None:
        torch.manual_seed(accelerator.process_index)  # other samples on each rank
        accelerator.backward(model(torch.randn(4, 3, 32, 32)).square().sum())
        optimizer.step()
        optimizer.zero_grad()

    def agreed() -> bool:
        """Whether the ranks have the same weights, to the bit."""
        flat = torch.cat([p.detach().flatten() for p in plain.parameters()])
        first, second = accelerator.gather(flat[None])
        return torch.equal(first, second)

    update()
    before, kept = depth(plain.forward), plain.patch_embed.proj.weight.detach().clone()  # type: ignore[union-attr, operator]
    saw = {"wrapped": type(model).__name__, "agreed frozen": agreed()}
    old, reducer = weakref.ref(model), weakref.ref(model.reducer)
    changed = freezing.apply(1)
    model = rewrap(accelerator, model)
    saw |= {
        "changed": changed,
        "still wrapped": type(model).__name__,
        "old wrapper gone": old() is None and reducer() is None,
        "known models": len(accelerator._models),
        "same module": model.module is plain,
        "wrapped as often": depth(plain.forward) == before,
    }
    update()
    update()
    thawed = plain.patch_embed.proj.weight  # type: ignore[union-attr]
    saw |= {"agreed thawed": agreed(), "thawed moved": not torch.equal(thawed, kept)}  # type: ignore[arg-type]
    sys.stdout.write(f"SAW {json.dumps(saw)}\n")  # in one piece: both ranks share the pipe
    sys.stdout.flush()
    accelerator.end_training()  # a process that ends with its group alive may abort in a thread of gloo's


if __name__ == "__main__":
    main()
