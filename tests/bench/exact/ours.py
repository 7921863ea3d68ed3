"""poster-toolkit: the same tars, indexed, under ShardLoader."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

from exact.stack import GLOBAL_BATCH, IMAGE_SIZE, SEED, Epoch, Ids, Saved, Setup, Stack


def prepare(setup: Setup) -> None:
    """What `posters shards index` writes beside the tars."""
    from shards.build.index.tars import IndexOptions, index_folder

    setup.own_format.mkdir()
    for url in setup.urls:
        shutil.copy(url, setup.own_format)
    index_folder(IndexOptions(folder=setup.own_format, workers=1))


def loader(setup: Setup, **options: Any) -> Any:
    """Rank and world size are torch.distributed's."""
    import toolkit

    transform = toolkit.EvalTransform(image_size=IMAGE_SIZE)
    return toolkit.ShardLoader(setup.own_format, batch_size=GLOBAL_BATCH, transform=transform, threads=1, **options)


def steps(batches: Any) -> Iterator[Ids]:
    """The ids of the rows that count; a sample's key is its id."""
    with batches:
        for batch in batches:
            yield [int(key) for key, valid in zip(batch.keys, batch.valid.tolist(), strict=True) if valid]


def train(setup: Setup, saved: Saved | None) -> Epoch:
    batches = loader(setup, seed=SEED)
    if saved:
        batches.load_state_dict(saved.of(setup.rank))
    return Epoch(steps(batches), batches.state_dict)


def evaluate(setup: Setup) -> Iterator[Ids]:
    return steps(loader(setup, order="stored"))


STACKS = {"poster-toolkit": Stack(train, evaluate, ("poster-toolkit",), prepare=prepare)}
