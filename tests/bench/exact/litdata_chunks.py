"""LitData: optimised chunks, StreamingDataset and StreamingDataLoader as its README has them.

https://github.com/Lightning-AI/litData#readme: "Multi-GPU / Multi-Node Support" (shuffle and drop_last in training,
neither in validation), "Pause, resume data streaming" (also at another world size, with one global batch size).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from exact.samples import read_tar
from exact.stack import SEED, Epoch, Ids, Saved, Setup, Stack


def as_stored(sample: tuple[bytes, int]) -> dict[str, Any]:
    """One sample as LitData stores it."""
    jpeg, label = sample
    return {"image": jpeg, "label": label}


def prepare(setup: Setup) -> None:
    """A chunk for each tar, joined by merge_datasets."""
    from litdata import merge_datasets, optimize

    parts = []
    for number, url in enumerate(setup.urls):
        parts.append(str(setup.own_format / f"part-{number}"))
        samples = list(read_tar(url))
        optimize(fn=as_stored, inputs=samples, output_dir=parts[-1], chunk_size=len(samples), num_workers=1)
    if len(parts) > 1:  # it joins no fewer
        merge_datasets(input_dirs=parts, output_dir=str(setup.own_format / "merged"))


def loader(setup: Setup, training: bool) -> Any:
    from litdata import StreamingDataLoader, StreamingDataset

    folder = setup.own_format / ("merged" if len(setup.urls) > 1 else "part-0")
    data = StreamingDataset(str(folder), shuffle=training, drop_last=training, seed=SEED)
    return StreamingDataLoader(data, batch_size=setup.rank_batch, num_workers=0)


def train(setup: Setup, saved: Saved | None) -> Epoch:
    batches = loader(setup, training=True)
    if saved:
        batches.load_state_dict(saved.of(setup.rank))
    return Epoch((batch["label"].tolist() for batch in batches), batches.state_dict)


def evaluate(setup: Setup) -> Iterator[Ids]:
    for batch in loader(setup, training=False):
        yield batch["label"].tolist()


STACKS = {"LitData": Stack(train, evaluate, ("litdata",), peer="litdata", prepare=prepare)}
