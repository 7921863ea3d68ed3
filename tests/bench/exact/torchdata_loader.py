"""torchdata's StatefulDataLoader: https://meta-pytorch.org/data/main/stateful_dataloader_tutorial.html

Over a map-style dataset with torch's DistributedSampler, and over an iterable dataset that saves its own state.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset
from torch.utils.data.distributed import DistributedSampler

from exact.samples import pixels, read_tars
from exact.stack import SEED, Epoch, Ids, Saved, Setup, Stack

Sample = tuple[torch.Tensor, int]


class TarMap(Dataset):
    """All samples of the tars, at random access."""

    def __init__(self, setup: Setup) -> None:
        self.samples = read_tars(setup.urls)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        jpeg, sample = self.samples[index]
        return torch.from_numpy(pixels(jpeg)), sample


class TarStream(IterableDataset):
    """Every world-th sample of one order, from where the state says."""

    def __init__(self, setup: Setup, shuffle: bool) -> None:
        self.setup, self.shuffle, self.given = setup, shuffle, 0

    def __iter__(self) -> Iterator[Sample]:
        samples = read_tars(self.setup.urls)
        if self.shuffle:
            random.Random(SEED).shuffle(samples)
        own = samples[self.setup.rank :: self.setup.world]
        for jpeg, sample in own[self.given :]:
            self.given += 1
            yield torch.from_numpy(pixels(jpeg)), sample
        self.given = 0

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given = state["given"]


def loader(setup: Setup, kind: str, shuffle: bool) -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    if kind == "iterable":
        return StatefulDataLoader(TarStream(setup, shuffle), batch_size=setup.rank_batch, num_workers=0)
    data = TarMap(setup)
    sampler: DistributedSampler = DistributedSampler(data, setup.world, setup.rank, shuffle, SEED)
    sampler.set_epoch(0)
    return StatefulDataLoader(data, batch_size=setup.rank_batch, sampler=sampler, num_workers=0)


def stack(kind: str) -> Stack:
    def train(setup: Setup, saved: Saved | None) -> Epoch:
        batches = loader(setup, kind, shuffle=True)
        if saved:
            batches.load_state_dict(saved.of(setup.rank))
        return Epoch((ids.tolist() for _, ids in batches), batches.state_dict)

    def evaluate(setup: Setup) -> Iterator[Ids]:
        for _, ids in loader(setup, kind, shuffle=False):
            yield ids.tolist()

    return Stack(train, evaluate, ("torchdata",), peer="torchdata")


STACKS = {
    "torchdata StatefulDataLoader, DistributedSampler": stack("map"),
    "torchdata StatefulDataLoader, iterable": stack("iterable"),
}
