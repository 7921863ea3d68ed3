"""How well do the two orders mix, and how many shards does a training run touch at a time? Prints a Markdown table.

    python tests/bench/shuffle.py [--shards 90] [--samples-per-shard 1000] [--batch 256] [--epochs 6]

same shard: how often two samples of a batch lie in one shard, by chance = 1. meet again: how often two samples that
shared a batch share one in the next epoch too, by chance = 1. working set: shards that 20 batches in a row read from,
the median.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from toolkit.data.sampling.shuffle import GlobalOrder, Order, WindowOrder

WINDOWS = (1, 4, 16, 64)


def measure(order: Order, per_shard: int, batch: int, epochs: int) -> tuple[float, float, float]:
    """(same shard, meet again, working set) of an order over equal shards."""
    n = len(order)
    batches = n // batch
    chance_shard = (per_shard - 1) / (n - 1)
    chance_batch = (batch - 1) / (n - 1)
    same, again, touched = [], [], []
    before: np.ndarray | None = None
    for epoch in range(epochs):
        samples = order.keys(epoch, 0, batches * batch)
        shards = (samples // per_shard).reshape(batches, batch)
        same.append(np.mean([_pairs(row) for row in shards]))
        where = np.full(n, -1)
        where[samples] = np.repeat(np.arange(batches), batch)
        if before is not None:
            again.append(np.mean([_pairs(where[row]) for row in before.reshape(batches, batch)]))
        before = samples
        touched += [len(np.unique(shards[start : start + 20])) for start in range(0, batches - 19, 20)]
    return (float(np.mean(same) / chance_shard), float(np.mean(again) / chance_batch), float(np.median(touched)))


def _pairs(values: np.ndarray) -> float:
    """Share of the pairs of a batch that agree; -1 agrees with nothing."""
    values = values[values >= 0]
    counts = np.unique(values, return_counts=True)[1]
    return float((counts * (counts - 1)).sum() / (len(values) * (len(values) - 1)))


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shards", type=int, default=90)
    parser.add_argument("--samples-per-shard", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    if min(vars(args).values()) < 1 or 20 * args.batch > args.shards * args.samples_per_shard:
        print("error: every option must be at least 1, and an epoch at least 20 batches long", file=sys.stderr)
        return 2
    sizes = [args.samples_per_shard] * args.shards
    orders: dict[str, Order] = {"global": GlobalOrder(sum(sizes), 0)}
    orders |= {f"window {w}": WindowOrder(sizes, w, 0) for w in WINDOWS if w <= args.shards}
    print(f"{args.shards} shards of {args.samples_per_shard} samples, batches of {args.batch}, {args.epochs} epochs\n")
    print("| order | same shard | meet again | working set, shards |")
    print("| --- | --- | --- | --- |")
    for name, order in orders.items():
        same, again, touched = measure(order, args.samples_per_shard, args.batch, args.epochs)
        print(f"| {name} | {same:.2f} | {again:.2f} | {touched:.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
