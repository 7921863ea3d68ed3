"""Grain over ArrayRecord files: its DataLoader, and its experimental iterator for a changing number of hosts.

https://google-grain.readthedocs.io/en/latest/tutorials/data_loader_tutorial.html (IndexSampler with ShardOptions; a
loader in training drops the remainder, which 0.2.18 drops in evaluation as well) and grain.experimental.html
(ElasticIterator: a global batch size, and any host's state restores every host's). The ElasticIterator always drops
the remainder, so its row evaluates with a sliced MapDataset (tutorials/dataset_basic_tutorial.html).
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

from exact.samples import pixels, read_tar
from exact.stack import GLOBAL_BATCH, SEED, Epoch, Ids, Saved, Setup, Stack


def prepare(setup: Setup) -> None:
    """An ArrayRecord file for each tar."""
    from array_record.python.array_record_module import ArrayRecordWriter

    setup.own_format.mkdir()
    for number, url in enumerate(setup.urls):
        writer = ArrayRecordWriter(str(setup.own_format / f"{number:05d}.array_record"), "group_size:1")
        for sample in read_tar(url):
            writer.write(pickle.dumps(sample))
        writer.close()


def source(setup: Setup) -> Any:
    from grain.sources import ArrayRecordDataSource

    return ArrayRecordDataSource([str(path) for path in sorted(setup.own_format.glob("*.array_record"))])


def decoded(record: bytes) -> dict[str, Any]:
    jpeg, sample = pickle.loads(record)
    return {"image": pixels(jpeg), "label": sample}


def data_loader(setup: Setup, training: bool) -> Any:
    import grain

    class Decode(grain.transforms.Map):
        def map(self, element: bytes) -> dict[str, Any]:
            return decoded(element)

    records = source(setup)
    sampler = grain.samplers.IndexSampler(
        num_records=len(records),
        num_epochs=1,
        shard_options=grain.sharding.ShardOptions(setup.rank, setup.world, drop_remainder=training),
        shuffle=training,
        seed=SEED,
    )
    operations = [Decode(), grain.transforms.Batch(setup.rank_batch, drop_remainder=False)]
    return grain.DataLoader(data_source=records, sampler=sampler, operations=operations, worker_count=0)


def train(setup: Setup, saved: Saved | None) -> Epoch:
    batches = iter(data_loader(setup, training=True))
    if saved:
        batches.set_state(saved.of(setup.rank))
    return Epoch((batch["label"].tolist() for batch in batches), batches.get_state)


def elastic_train(setup: Setup, saved: Saved | None) -> Epoch:
    import grain

    data = grain.MapDataset.source(source(setup)).seed(SEED).shuffle().map(decoded)
    shards = grain.sharding.ShardOptions(setup.rank, setup.world)
    batches = iter(grain.experimental.ElasticIterator(data, GLOBAL_BATCH, shards))
    if saved:
        batches.set_state(saved.of(0))
    return Epoch((batch["label"].tolist() for batch in batches), batches.get_state)


def evaluate(setup: Setup) -> Iterator[Ids]:
    for batch in data_loader(setup, training=False):
        yield batch["label"].tolist()


def elastic_evaluate(setup: Setup) -> Iterator[Ids]:
    import grain

    own = grain.MapDataset.source(source(setup)).map(decoded)[setup.rank :: setup.world]
    for batch in own.batch(setup.rank_batch).to_iter_dataset():
        yield batch["label"].tolist()


STACKS = {
    "Grain, DataLoader": Stack(train, evaluate, ("grain",), peer="grain", prepare=prepare),
    "Grain, ElasticIterator": Stack(elastic_train, elastic_evaluate, ("grain",), peer="grain", prepare=prepare),
}
