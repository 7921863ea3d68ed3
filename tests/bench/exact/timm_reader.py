"""timm's reader of WebDataset tars, through create_dataset and create_loader as train.py and validate.py call them."""

from __future__ import annotations

from collections.abc import Iterator

from exact.stack import IMAGE_SIZE, SEED, Epoch, Ids, Saved, Setup, Stack


def batches(setup: Setup, training: bool) -> Iterator[Ids]:
    import torch
    from timm.data import create_dataset, create_loader

    data = create_dataset(
        "wds/posters",
        root=str(setup.shards),
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


def train(setup: Setup, saved: Saved | None) -> Epoch:
    return Epoch(batches(setup, training=True))


def evaluate(setup: Setup) -> Iterator[Ids]:
    return batches(setup, training=False)


# train.py --resume starts at the beginning of an epoch
STACKS = {"timm ReaderWds": Stack(train, evaluate, ("timm", "webdataset"), resumes=False)}
