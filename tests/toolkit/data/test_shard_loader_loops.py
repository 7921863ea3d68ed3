"""ShardLoader in loops of other programs: epochs without an end, replaced iterations, late process groups."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from failing import fails
from torch.utils.data import DataLoader

import toolkit
from toolkit.data.shard_loader import ShardLoader


@pytest.fixture
def loader(shard_set: Path) -> Iterator[ShardLoader]:
    """An epoch has 56 samples in 4 updates."""
    pixels = toolkit.EvalTransform(image_size=16)
    with ShardLoader(shard_set, split="train", batch_size=16, transform=pixels) as loader:
        yield loader


def places(batches: Iterator[toolkit.ShardBatch] | ShardLoader) -> list[tuple[int, int]]:
    return [(batch.epoch, batch.step) for batch in batches]


def epoch_of(number: int) -> list[tuple[int, int]]:
    return [(number, step) for step in range(4)]


def test_all_batches_end_an_epoch_even_if_its_end_is_not_asked_for(loader: ShardLoader):
    assert places(islice(loader, len(loader))) == epoch_of(0)
    assert loader.state_dict() == {**loader.state_dict(), "epoch": 0, "samples": 56}
    assert places(loader) == epoch_of(1)
    assert loader.epoch == 2
    assert places(islice(loader, len(loader))) == epoch_of(2)
    state = loader.state_dict()
    loader.set_epoch(2)  # asks for the same epoch again
    assert places(loader) == epoch_of(2)
    loader.load_state_dict(state)
    assert places(loader) == epoch_of(3)


def test_the_sampler_sets_the_epoch_and_keeps_the_position_of_a_state(loader: ShardLoader):
    next(iter(loader))
    state = loader.state_dict()
    loader.sampler.set_epoch(1)
    assert places(loader) == epoch_of(1)
    loader.load_state_dict(state)
    loader.sampler.set_epoch(0)
    assert places(loader) == epoch_of(0)[1:]


def test_an_iteration_that_was_ended_does_not_look_complete(loader: ShardLoader):
    first, second = iter(loader), iter(loader)
    assert next(first).step == next(second).step == 0
    with fails("option-conflict", "another iteration"):
        next(first)
    assert [batch.step for batch in second] == [1, 2, 3] and loader.epoch == 1
    running = iter(loader)
    next(running)
    loader.load_state_dict(loader.state_dict())
    with fails("option-conflict", "load_state_dict()"):
        next(running)
    assert places(loader) == epoch_of(1)[1:]
    running = iter(loader)
    next(running)
    loader.close()
    with fails("option-conflict", "close()"):
        next(running)
    assert loader.epoch == 2
    with fails("option-conflict", "closed", "make a new one"):
        next(iter(loader))


def test_a_loader_in_two_threads_is_refused(shard_set: Path):
    begun, go_on = threading.Event(), threading.Event()

    def wait(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        begun.set()
        assert go_on.wait(60)
        return image[:8, :8]

    with ShardLoader(shard_set, split="train", batch_size=16, transform=wait) as loader:
        other = threading.Thread(target=lambda: next(iter(loader)))
        other.start()
        assert begun.wait(60)
        try:
            with fails("option-conflict", "another thread", "a ShardLoader for each thread"):
                next(iter(loader))
        finally:
            go_on.set()
            other.join()


def test_a_loader_that_does_not_know_its_rank_is_refused(shard_set: Path, monkeypatch: pytest.MonkeyPatch):
    """Every process would get all samples, or those of rank 0."""
    options = {"split": "train", "batch_size": 16}
    monkeypatch.setenv("WORLD_SIZE", "2")
    with fails("environment", "RANK is None", "WORLD_SIZE is '2'", "after the process group"):
        ShardLoader(shard_set, **options)  # type: ignore[arg-type]
    monkeypatch.delenv("WORLD_SIZE")
    early, given = ShardLoader(shard_set, **options), ShardLoader(shard_set, rank=0, world_size=1, **options)  # type: ignore[arg-type]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with early, fails("environment", "rank 1 of 2", "rank 0 of 1", "after the process group"):
        next(iter(early))
    with given:
        assert next(iter(given)).step == 0


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cuda:-1"])
def test_a_device_that_does_not_exist_is_one_line(shard_set: Path, device: str):
    with fails("device", repr(device), "cpu or cuda"):
        ShardLoader(shard_set, split="train", batch_size=16, device=device)


def test_a_dataloader_around_it_fails(loader: ShardLoader):
    with pytest.raises(TypeError):
        next(iter(DataLoader(loader, batch_size=None)))  # type: ignore[arg-type]
