"""One rank of one stack: runs every job of exactness.py and writes down which sample ids it was handed at each step.

``rank_main`` is what exactness.py starts in a process of its own, gloo group included. Each stack is written as its
own documentation tells its users to, and in its most favourable form where there is a choice: fixed seeds, no
DataLoader workers (readers that deal out whole shards deal them out to workers too, so more workers only make more
starved readers) and the same global batch at any world size. Nothing here judges; exactness.py does.
"""

from __future__ import annotations

import json
import os
import random
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, IterableDataset

SEED = 42
#: Divisible by every world size that is compared, so that a stack with a batch per rank can keep the global batch.
GLOBAL_BATCH = 12
#: The update at which the resume job starts.
RESUME_STEP = 3
IMAGE_SIZE = 16

Ids = list[int]


class NotOffered(Exception):
    """The stack has no documented way to do this."""


@dataclass(frozen=True)
class Setup:
    """What a stack is asked to load, and as whom."""

    folder: Path
    split: str
    """Name of a split of ``_info.json``, the file that timm's reader asks for."""
    rank: int
    world: int

    @cached_property
    def info(self) -> dict[str, Any]:
        return json.loads((self.folder / "_info.json").read_text())["splits"][self.split]

    @property
    def urls(self) -> list[str]:
        return [str(self.folder / name) for name in self.info["filenames"]]

    @property
    def num_samples(self) -> int:
        return int(self.info["num_samples"])

    @property
    def rank_batch(self) -> int:
        return GLOBAL_BATCH // self.world


# --- poster-toolkit ---------------------------------------------------------------------------------------------------


def ours_train_shares(
    num_samples: int, batch: int, seed: int, epoch: int, rank: int, world: int, first_step: int
) -> Iterator[tuple[Ids, list[bool]]]:
    """(positions, valid) of every step of one rank; sample ids are positions in the split."""
    from toolkit.data.sampling.plan import TrainPlan
    from toolkit.data.sampling.shuffle import GlobalOrder

    plan = TrainPlan(GlobalOrder(num_samples, seed), batch)
    for micro_batch in plan.rest_of_epoch(epoch, rank, world, first_step=first_step):
        yield micro_batch.indices.tolist(), micro_batch.valid.tolist()


def ours_train(setup: Setup, first_step: int) -> Iterator[Ids]:
    micro_batches = ours_train_shares(setup.num_samples, GLOBAL_BATCH, SEED, 0, setup.rank, setup.world, first_step)
    for indices, valid in micro_batches:
        yield [index for index, counts in zip(indices, valid, strict=True) if counts]


def ours_eval(setup: Setup) -> Iterator[Ids]:
    from toolkit.data.sampling.plan import EvalPlan

    for micro_batch in EvalPlan(setup.num_samples, setup.rank_batch).micro_batches(setup.rank, setup.world):
        yield micro_batch.indices[micro_batch.valid].tolist()


# --- WebDataset -------------------------------------------------------------------------------------------------------


def wds_split_train(setup: Setup, first_step: int) -> Iterator[Ids]:
    """The epoch recipe: shards split by node, then by worker; shuffle and batch in the pipeline."""
    import webdataset as wds

    if first_step:
        raise NotOffered
    data = wds.WebDataset(setup.urls, shardshuffle=100, nodesplitter=wds.split_by_node, seed=SEED)
    data = data.shuffle(1000, seed=SEED).decode("torchrgb").to_tuple("jpg", "cls").batched(setup.rank_batch)
    for _, ids in wds.WebLoader(data, batch_size=None, num_workers=0):
        yield ids.tolist()


def wds_resampled_train(setup: Setup, first_step: int) -> Iterator[Ids]:
    """The recipe for many nodes: shards drawn with replacement, the epoch a number of batches (webdataset-imagenet)."""
    import webdataset as wds

    if first_step:
        raise NotOffered
    data = wds.WebDataset(setup.urls, resampled=True, shardshuffle=False, nodesplitter=wds.split_by_node)
    data = data.shuffle(1000, seed=SEED).decode("torchrgb").to_tuple("jpg", "cls").batched(setup.rank_batch)
    loader = wds.WebLoader(data, batch_size=None, num_workers=0)
    for _, ids in loader.with_epoch(max(1, setup.num_samples // GLOBAL_BATCH)):
        yield ids.tolist()


def wds_eval(setup: Setup) -> Iterator[Ids]:
    """Both recipes evaluate on shards split by node, in order: a resampled evaluation would be none."""
    import webdataset as wds

    data = wds.WebDataset(setup.urls, shardshuffle=False, nodesplitter=wds.split_by_node)
    data = data.decode("torchrgb").to_tuple("jpg", "cls").batched(setup.rank_batch)
    for _, ids in wds.WebLoader(data, batch_size=None, num_workers=0):
        yield ids.tolist()


# --- timm -------------------------------------------------------------------------------------------------------------


def timm_batches(setup: Setup, training: bool) -> Iterator[Ids]:
    """create_dataset and create_loader as timm's train.py and validate.py call them."""
    from timm.data import create_dataset, create_loader

    data = create_dataset(
        "wds/posters",
        root=str(setup.folder),
        split=setup.split,
        is_training=training,
        batch_size=setup.rank_batch,
        seed=SEED,
    )
    loader = create_loader(
        data,
        input_size=(3, IMAGE_SIZE, IMAGE_SIZE),
        batch_size=setup.rank_batch,
        is_training=training,
        num_workers=0,
        persistent_workers=False,
        distributed=setup.world > 1,
        use_prefetcher=False,  # it moves batches to an accelerator and changes nothing about which
        device=torch.device("cpu"),
    )
    data.set_epoch(0)
    for _, ids in loader:
        yield ids.tolist()


def timm_train(setup: Setup, first_step: int) -> Iterator[Ids]:
    if first_step:
        raise NotOffered  # train.py --resume starts at the beginning of an epoch
    yield from timm_batches(setup, training=True)


def timm_eval(setup: Setup) -> Iterator[Ids]:
    yield from timm_batches(setup, training=False)


# --- Accelerate -------------------------------------------------------------------------------------------------------


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
        samples = list(self._read())
        if self.shuffle:
            random.Random(SEED + self.epoch).shuffle(samples)
        yield from samples

    def _read(self) -> Iterator[tuple[torch.Tensor, int]]:
        import numpy as np
        from PIL import Image

        for url in self.setup.urls:
            with tarfile.open(url) as tar:
                parts = {member.name: tar.extractfile(member) for member in tar}
                for name, part in parts.items():
                    cls = parts.get(name.replace(".jpg", ".cls"))
                    if name.endswith(".jpg") and part is not None and cls is not None:
                        pixels = np.asarray(Image.open(BytesIO(part.read())))
                        yield torch.from_numpy(pixels.copy()), int(cls.read())


def accelerate_parts(setup: Setup, dispatch: bool, shuffle: bool) -> tuple[Any, Any]:
    """(accelerator, prepared loader)."""
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=dispatch))
    loader = DataLoader(TarSamples(setup, shuffle), batch_size=setup.rank_batch)
    return accelerator, accelerator.prepare(loader)


def accelerate_train(dispatch: bool) -> Callable[[Setup, int], Iterator[Ids]]:
    def train(setup: Setup, first_step: int) -> Iterator[Ids]:
        accelerator, loader = accelerate_parts(setup, dispatch, shuffle=True)
        if first_step:
            loader = accelerator.skip_first_batches(loader, first_step)
        for _, ids in loader:
            yield ids.tolist()

    return train


def accelerate_eval(dispatch: bool) -> Callable[[Setup], Iterator[Ids]]:
    def evaluate(setup: Setup) -> Iterator[Ids]:
        accelerator, loader = accelerate_parts(setup, dispatch, shuffle=False)
        for _, ids in loader:
            gathered = accelerator.gather_for_metrics(ids).tolist()
            yield gathered if setup.rank == 0 else []  # every rank holds the same; it counts once

    return evaluate


# --- running ----------------------------------------------------------------------------------------------------------

Train = Callable[[Setup, int], Iterator[Ids]]
Evaluate = Callable[[Setup], Iterator[Ids]]

#: Every stack that is compared: how it trains (from which step) and how it evaluates. Ours comes first.
STACKS: dict[str, tuple[Train, Evaluate]] = {
    "poster-toolkit": (ours_train, ours_eval),
    "WebDataset, split_by_node": (wds_split_train, wds_eval),
    "WebDataset, resampled": (wds_resampled_train, wds_eval),
    "timm ReaderWds": (timm_train, timm_eval),
    "Accelerate, dispatch_batches=True": (accelerate_train(True), accelerate_eval(True)),
    "Accelerate, dispatch_batches=False": (accelerate_train(False), accelerate_eval(False)),
}


def jobs_of(stack: str, setup: Setup, few: Setup | None) -> dict[str, Callable[[], Iterator[Ids]]]:
    """What a rank does, in order. ``few`` has fewer shards than ranks; one rank cannot have that."""
    train, evaluate = STACKS[stack]
    jobs: dict[str, Callable[[], Iterator[Ids]]] = {
        "train": lambda: train(setup, 0),
        "resume": lambda: train(setup, RESUME_STEP),
        "eval": lambda: evaluate(setup),
    }
    if few is not None:
        jobs["few_train"] = lambda: train(few, 0)
        jobs["few_eval"] = lambda: evaluate(few)
    return jobs


def rank_main(stack: str, folder: Path, out: Path, rank: int, world: int) -> None:
    """Run every job of one rank and write OUT/JOB-RANK.json after each, so that a hang leaves what came before it."""
    # WebDataset and Accelerate read these; the group itself meets in a file, so no port can be taken.
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), ACCELERATE_USE_CPU="true")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500", OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{out / 'group'}", rank=rank, world_size=world, timeout=timedelta(seconds=30)
    )  # fmt: skip
    few = Setup(folder, f"few{world - 1}", rank, world) if world > 1 else None
    for name, job in jobs_of(stack, Setup(folder, "whole", rank, world), few).items():
        steps: list[Ids] = []
        problem = ""
        try:
            for ids in job():
                steps.append(ids)
        except NotOffered:
            problem = "not offered"
        except Exception as error:  # whatever a peer raises is its result, not a failure of this bench
            problem = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
        part = out / f"{name}-{rank}.part"
        part.write_text(json.dumps({"steps": steps, "problem": problem}))
        part.replace(out / f"{name}-{rank}.json")
    dist.destroy_process_group()
