"""Megatron-Energon on the same tars: get_train_dataset, get_val_dataset and get_savable_loader.

https://nvidia.github.io/Megatron-Energon/advanced/repro_scaling.html: the same global batches at another world size,
if world size x workers, the micro-batch and the global batch stay the same. A step here is therefore as many
micro-batches as the rank has workers. epochized_blending.html: repeat=False ends after an epoch. save_restore.html: a
state for each rank; the tool ``energon checkpoint redist`` deals them out to another number of ranks. The shuffle
buffer is small, because a state saved when the buffer holds the rest of the epoch leads into another epoch.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exact.stack import GLOBAL_BATCH, SEED, Epoch, Ids, Saved, Setup, Stack

#: Divisible by every world size that is compared.
ALL_WORKERS = 6
DATASET = """sample_type:
  __module__: megatron.energon
  __class__: ImageClassificationSample
field_map:
  image: jpg
  label: cls
"""


def prepare(setup: Setup) -> None:
    """Index the tars, as ``energon prepare`` does; all of them are in both parts."""
    from megatron.energon.flavors import BaseWebdatasetFactory

    setup.own_format.mkdir()
    for url in setup.urls:
        shutil.copy(url, setup.own_format)
    names = [Path(url).name for url in setup.urls]
    patterns = [("train", ".*"), ("val", ".*")]
    BaseWebdatasetFactory.prepare_dataset(setup.own_format, names, split_parts_patterns=patterns, workers=1)
    (setup.own_format / ".nv-meta" / "dataset.yaml").write_text(DATASET)


def worker_config(setup: Setup) -> Any:
    from megatron.energon import WorkerConfig

    workers = ALL_WORKERS // setup.world
    return WorkerConfig(rank=setup.rank, world_size=setup.world, num_workers=workers, seed_offset=SEED)


def steps(setup: Setup, loader: Any) -> Iterator[Ids]:
    """Micro-batches joined to steps."""
    step: Ids = []
    for number, batch in enumerate(loader, 1):
        step += [int(label) for label in batch.label]
        if number % (ALL_WORKERS // setup.world) == 0:
            yield step
            step = []
    if step:
        yield step


def train(setup: Setup, saved: Saved | None) -> Epoch:
    from megatron.energon import get_savable_loader, get_train_dataset

    data = get_train_dataset(
        setup.own_format,
        worker_config=worker_config(setup),
        batch_size=GLOBAL_BATCH // ALL_WORKERS,
        shuffle_buffer_size=4,
        max_samples_per_sequence=100,
        repeat=False,
    )
    loader = get_savable_loader(data)
    if saved:
        states = saved.states if len(saved.states) == setup.world else redistributed(saved, setup.world)
        loader.restore_state_rank(states[setup.rank])
    return Epoch(steps(setup, loader), loader.save_state_rank)


def redistributed(saved: Saved, world: int) -> Any:
    """The workers' states, dealt out to another number of ranks as that tool does, which cannot read a single file."""
    from megatron.energon.savable_loader import SavableDataLoaderState

    workers = [worker for state in saved.states for worker in state.worker_states]
    size = len(workers) // world
    return [
        SavableDataLoaderState(
            worker_states=workers[first : first + size],
            next_worker_id=0,
            micro_batch_size=saved.states[0].micro_batch_size,
        )
        for first in range(0, len(workers), size)
    ]


def evaluate(setup: Setup) -> Iterator[Ids]:
    from megatron.energon import get_loader, get_val_dataset

    data = get_val_dataset(setup.own_format, worker_config=worker_config(setup), batch_size=GLOBAL_BATCH // ALL_WORKERS)
    return steps(setup, get_loader(data))


STACKS = {"Megatron-Energon": Stack(train, evaluate, ("megatron-energon",), peer="energon", prepare=prepare)}
