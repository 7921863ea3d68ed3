"""Two ranks thaw a part of a model under DDP; each prints what it saw as a line of JSON, after ``SAW``.

accelerate launch ... probe_rewrap.py no|bf16 eager|compiled
"""

from __future__ import annotations

import json
import sys
import weakref
from functools import partial
from typing import Any

import torch

from toolkit.config.schema import TrainConfig
from toolkit.distributed.collectives import make_accelerator
from toolkit.models.factory import build_model
from toolkit.models.freezing import Freezing
from toolkit.models.heads import HeadSpec
from toolkit.models.wrapping import plain, rewrap, wrap


def main() -> None:
    accelerator = make_accelerator(sys.argv[1])
    torch.manual_seed(0)
    train = TrainConfig(compile=sys.argv[2] == "compiled")
    # All of torch.compile but its code generator, which takes a minute.
    torch.compile = partial(torch.compile, backend="eager")
    inner = build_model("test_vit", 3, HeadSpec("linear", (), 0.0), 32)
    names = list(inner.state_dict())
    freezing = Freezing(inner, ["stem@1", "blocks.0@1"])
    freezing.apply(None)
    optimizer: Any = accelerator.prepare_optimizer(torch.optim.SGD(inner.parameters(), lr=0.1))
    freezing.apply(0)
    model = wrap(accelerator, inner, train)

    def update() -> None:
        torch.manual_seed(accelerator.process_index)  # other samples on each rank
        with accelerator.autocast():
            out = model(torch.randn(4, 3, 32, 32))
        accelerator.backward(out.square().sum())
        optimizer.step()
        optimizer.zero_grad()

    def agreed() -> bool:
        """Whether the ranks have the same weights, to the bit."""
        flat = torch.cat([p.detach().flatten() for p in inner.parameters()])
        first, second = accelerator.gather(flat[None])
        return torch.equal(first, second)

    update()
    kept = inner.patch_embed.proj.weight.detach().clone()  # type: ignore[union-attr, operator]
    saw = {"wrapped": type(model).__name__, "agreed frozen": agreed()}
    old, reducer = weakref.ref(model), weakref.ref(model.reducer)
    changed = freezing.apply(1)
    model = rewrap(accelerator, model, train)
    saw |= {
        "changed": changed,
        "still wrapped": type(model).__name__,
        "within": type(model.module).__name__,
        "old wrapper gone": old() is None and reducer() is None,
        "same module": plain(model) is inner,
        "plain names": list(plain(model).state_dict()) == names,
    }
    update()
    update()
    thawed = inner.patch_embed.proj.weight  # type: ignore[union-attr]
    saw |= {"agreed thawed": agreed(), "thawed moved": not torch.equal(thawed, kept)}  # type: ignore[arg-type]
    sys.stdout.write(f"SAW {json.dumps(saw)}\n")  # in one piece: both ranks share the pipe
    sys.stdout.flush()
    accelerator.end_training()  # a process that ends with its group alive may abort in a thread of gloo's


if __name__ == "__main__":
    main()
