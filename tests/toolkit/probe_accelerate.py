"""What accelerate does with a ShardLoader, for docs/guides/loader-adaptors.md: one of two processes.

Writes facts.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, IterableDataset

import toolkit


class Wrapped(IterableDataset):
    """The batches of a loader, as a dataset."""

    def __init__(self, loader: toolkit.ShardLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[torch.Tensor]:
        for batch in self.loader:
            yield torch.tensor(batch.indices)[batch.valid]


def loader(accumulation: int = 1) -> toolkit.ShardLoader:
    pixels = toolkit.EvalTransform(image_size=32)
    return toolkit.ShardLoader("SHARDS", split="train", batch_size=10, transform=pixels, accumulation=accumulation)


def weight_after_an_update(accumulation: int) -> float:
    """A weight that one update has changed, from the mean red of the samples."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    layer = torch.nn.Linear(3, 1)
    torch.nn.init.zeros_(layer.weight)
    model, optimizer = accelerator.prepare(layer, torch.optim.SGD(layer.parameters(), lr=1.0))
    batches = iter(loader(accumulation))
    for _ in range(accumulation):
        batch = next(batches)
        with accelerator.accumulate(model):
            losses = model(batch.images.float().mean((2, 3)) / 255).mean(dim=1)
            factor = accelerator.num_processes * accumulation
            accelerator.backward((losses * batch.valid).sum() * factor / batch.samples)
            optimizer.step()
            optimizer.zero_grad()
    return float(layer.weight[0, 0].detach())


def main() -> None:
    accelerator = Accelerator(cpu=True)
    ours = loader()
    seen = [int(index) for rows in accelerator.prepare(DataLoader(Wrapped(ours), batch_size=None)) for index in rows]
    optimizer = accelerator.prepare(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0))
    scheduler = accelerator.prepare(torch.optim.lr_scheduler.StepLR(optimizer.optimizer, step_size=1, gamma=0.5))
    optimizer.step()
    scheduler.step()
    facts = {
        "the prepared loader is the loader": accelerator.prepare(ours) is ours,
        "samples through a prepared DataLoader": len(set(gather_object(seen))),
        "samples": ours.num_samples,
        "learning rate after an update": scheduler.get_last_lr(),
        "weights with accumulation 1 and 3": [weight_after_an_update(1), weight_after_an_update(3)],
    }
    if accelerator.is_main_process:
        with open("facts.json", "w") as stream:
            json.dump(facts, stream)
    accelerator.end_training()


if __name__ == "__main__":
    main()
