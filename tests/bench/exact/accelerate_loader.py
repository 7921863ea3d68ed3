"""Accelerate over an iterable dataset, with one process that reads for all, and with every process reading all."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from exact.samples import pixels, read_tars
from exact.stack import SEED, Epoch, Ids, Saved, Setup, Stack


class TarSamples(IterableDataset):
    """All samples of the tars, shuffled by (seed, epoch) alike on every rank, as Accelerate asks of an iterable.

    It knows its length, which lets gather_for_metrics drop repeats where it can.
    """

    def __init__(self, setup: Setup, shuffle: bool) -> None:
        self.setup, self.shuffle, self.epoch = setup, shuffle, 0

    def __len__(self) -> int:
        return self.setup.num_samples

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        samples = read_tars(self.setup.urls)
        if self.shuffle:
            random.Random(SEED + self.epoch).shuffle(samples)
        for jpeg, sample in samples:
            yield torch.from_numpy(pixels(jpeg)), sample


def parts(setup: Setup, dispatch: bool, shuffle: bool) -> tuple[Any, Any]:
    """(accelerator, prepared loader)."""
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=dispatch))
    loader = DataLoader(TarSamples(setup, shuffle), batch_size=setup.rank_batch)
    return accelerator, accelerator.prepare(loader)


def stack(dispatch: bool) -> Stack:
    """The resume is skip_first_batches: https://huggingface.co/docs/accelerate/usage_guides/checkpoint"""

    def train(setup: Setup, saved: Saved | None) -> Epoch:
        accelerator, loader = parts(setup, dispatch, shuffle=True)
        steps = saved.of(setup.rank) if saved else 0
        if steps:
            loader = accelerator.skip_first_batches(loader, steps)

        def rest() -> Iterator[Ids]:
            nonlocal steps
            for _, ids in loader:
                steps += 1
                yield ids.tolist()

        return Epoch(rest(), lambda: steps)

    return Stack(train, evaluate(dispatch), ("accelerate",))


def evaluate(dispatch: bool) -> Callable[[Setup], Iterator[Ids]]:
    def evaluate(setup: Setup) -> Iterator[Ids]:
        accelerator, loader = parts(setup, dispatch, shuffle=False)
        for _, ids in loader:
            gathered = accelerator.gather_for_metrics(ids).tolist()
            yield gathered if setup.rank == 0 else []  # every rank holds the same; it counts once

    return evaluate


STACKS = {f"Accelerate, dispatch_batches={dispatch}": stack(dispatch) for dispatch in (True, False)}
