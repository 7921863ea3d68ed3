"""Hugging Face datasets, streaming and map style: https://huggingface.co/docs/datasets/use_with_pytorch#distributed

The state of the streaming form is its own state_dict, "Save a dataset checkpoint and resume iteration" of
https://huggingface.co/docs/datasets/stream, which says that the content of the shuffle buffer is lost: the buffer here
is small. The map style has no state.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from exact.stack import SEED, Epoch, Ids, Saved, Setup, Stack


def load(setup: Setup, streaming: bool) -> Any:
    import datasets

    datasets.disable_progress_bars()
    data = datasets.load_dataset(
        "webdataset",
        data_files={"train": setup.urls},
        split="train",
        streaming=streaming,
        cache_dir=str(setup.home / "cache"),
    )
    return data.select_columns(["jpg", "cls"]).with_format("torch")


def batches(setup: Setup, data: Any) -> Iterator[Ids]:
    """The part of this rank, in batches."""
    from torch.utils.data import DataLoader

    for batch in DataLoader(data, batch_size=setup.rank_batch, num_workers=0):
        yield batch["cls"].tolist()


def split(setup: Setup, data: Any) -> Any:
    from datasets.distributed import split_dataset_by_node

    return split_dataset_by_node(data, rank=setup.rank, world_size=setup.world)


def streaming_train(setup: Setup, saved: Saved | None) -> Epoch:
    data = split(setup, load(setup, streaming=True).shuffle(seed=SEED, buffer_size=10))
    data.set_epoch(0)
    if saved:
        data.load_state_dict(saved.of(setup.rank))
    return Epoch(batches(setup, data), data.state_dict)


def streaming_evaluate(setup: Setup) -> Iterator[Ids]:
    return batches(setup, split(setup, load(setup, streaming=True)))


def map_prepare(setup: Setup) -> None:
    """Convert the tars into the cache that all ranks read."""
    load(setup, streaming=False)


def map_train(setup: Setup, saved: Saved | None) -> Epoch:
    return Epoch(batches(setup, split(setup, load(setup, streaming=False).shuffle(seed=SEED))))


def map_evaluate(setup: Setup) -> Iterator[Ids]:
    return batches(setup, split(setup, load(setup, streaming=False)))


STACKS = {
    "Hugging Face datasets, streaming": Stack(streaming_train, streaming_evaluate, ("datasets",)),
    "Hugging Face datasets, map style": Stack(
        map_train, map_evaluate, ("datasets",), prepare=map_prepare, resumes=False
    ),
}
