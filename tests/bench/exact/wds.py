"""WebDataset: the recipe with epochs of all shards, and the one with shards drawn with replacement."""

from __future__ import annotations

from collections.abc import Iterator

from exact.stack import GLOBAL_BATCH, SEED, Epoch, Ids, Saved, Setup, Stack


def split_train(setup: Setup, saved: Saved | None) -> Epoch:
    """The epoch recipe: shards split by node, then by worker; shuffle and batch in the pipeline."""
    import webdataset as wds

    data = wds.WebDataset(setup.urls, shardshuffle=100, nodesplitter=wds.split_by_node, seed=SEED)
    data = data.shuffle(1000, seed=SEED).decode("torchrgb").to_tuple("jpg", "cls").batched(setup.rank_batch)
    return Epoch(ids.tolist() for _, ids in wds.WebLoader(data, batch_size=None, num_workers=0))


def resampled_train(setup: Setup, saved: Saved | None) -> Epoch:
    """The recipe for many nodes: shards drawn with replacement, the epoch a number of batches (webdataset-imagenet)."""
    import webdataset as wds

    data = wds.WebDataset(setup.urls, resampled=True, shardshuffle=False, nodesplitter=wds.split_by_node)
    data = data.shuffle(1000, seed=SEED).decode("torchrgb").to_tuple("jpg", "cls").batched(setup.rank_batch)
    loader = wds.WebLoader(data, batch_size=None, num_workers=0)
    return Epoch(ids.tolist() for _, ids in loader.with_epoch(max(1, setup.num_samples // GLOBAL_BATCH)))


def evaluate(setup: Setup) -> Iterator[Ids]:
    """Both recipes evaluate on shards split by node, in order: a resampled evaluation would be none."""
    import webdataset as wds

    data = wds.WebDataset(setup.urls, shardshuffle=False, nodesplitter=wds.split_by_node)
    data = data.decode("torchrgb").to_tuple("jpg", "cls").batched(setup.rank_batch)
    for _, ids in wds.WebLoader(data, batch_size=None, num_workers=0):
        yield ids.tolist()


STACKS = {
    "WebDataset, split_by_node": Stack(split_train, evaluate, ("webdataset",), resumes=False),
    "WebDataset, resampled": Stack(resampled_train, evaluate, ("webdataset",), resumes=False),
}
