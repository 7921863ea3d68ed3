"""MosaicML Streaming: MDS shards, StreamingDataset and StreamingDataLoader.

https://docs.mosaicml.com/projects/streaming/en/latest/distributed_training/elastic_determinism.html (one number of
canonical nodes, one global batch size) and fast_resumption.html (the state of rank 0 is that of all).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from exact.samples import read_tar
from exact.stack import SEED, Epoch, Ids, Saved, Setup, Stack


def prepare(setup: Setup) -> None:
    """A part for each tar, joined by merge_index, as its documentation joins what several processes wrote."""
    from streaming import MDSWriter
    from streaming.base.util import merge_index

    for number, url in enumerate(setup.urls):
        part = setup.own_format / f"{number:05d}"
        with MDSWriter(out=str(part), columns={"image": "bytes", "label": "int"}) as writer:
            for jpeg, sample in read_tar(url):
                writer.write({"image": jpeg, "label": sample})
    merge_index(str(setup.own_format), keep_local=True)


def loader(setup: Setup, shuffle: bool) -> Any:
    from streaming import StreamingDataLoader, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()  # of the epoch before, which read the same folder
    data = StreamingDataset(
        local=str(setup.own_format),
        shuffle=shuffle,
        shuffle_seed=SEED,
        num_canonical_nodes=1,
        batch_size=setup.rank_batch,
    )
    return StreamingDataLoader(data, batch_size=setup.rank_batch, num_workers=0)


def train(setup: Setup, saved: Saved | None) -> Epoch:
    batches = loader(setup, shuffle=True)
    if saved:
        batches.load_state_dict(saved.of(0))
    return Epoch((batch["label"].tolist() for batch in batches), batches.state_dict)


def evaluate(setup: Setup) -> Iterator[Ids]:
    for batch in loader(setup, shuffle=False):
        yield batch["label"].tolist()


STACKS = {
    "MosaicML Streaming": Stack(train, evaluate, ("mosaicml-streaming",), peer="mosaic_streaming", prepare=prepare)
}
