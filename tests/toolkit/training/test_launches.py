"""How many operations an update starts on the device: few, and as many for a large batch as for a small one.

The numbers are those of `tests/bench/step_ops.py`. If a change needs more operations, run it with --names, and raise
the number of the part here together with the table of docs/results/loader.md.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from step_ops import COMMON, EVERYTHING, META, REFERENCE, measure

pytestmark = pytest.mark.usefixtures("one_thread")

#: Most operations of each part. The network's own forward and backward pass are not ours.
PARTS = {
    "geometry": 32, "normalise": 2, "targets, copies": 1, "loss": 10, "guard": 3, "kept buffers": 2, "optimiser": 15,
    "moving average": 2, "clip": 5, "rest of the update": 6,
    "augment: planes": 1, "augment: jitter": 28, "augment: rand_augment": 153, "augment: erase": 22, "augment: mix": 17,
}  # fmt: skip


def operations(shards: Path, words: list[str], batch: int) -> Counter[str]:
    found = measure(shards, [*COMMON, *words], batch, 1, META).operations
    assert found.pop("network") > 100 and found.pop("backward") > 100  # it is a whole ResNet50 that is counted
    return found


@pytest.mark.parametrize("words", [REFERENCE, EVERYTHING], ids=["reference", "everything"])
def test_an_update_starts_few_operations(words: list[str], shard_set: Path):
    small, large = (operations(shard_set, words, batch) for batch in (24, 48))
    parts = {part for part in PARTS if words is EVERYTHING or not part.startswith(("augment", "clip"))}
    assert set(large) == parts
    for part, count in large.items():
        assert count <= PARTS[part], (part, count)
        # RandAugment starts nothing for an operation that no sample of a batch has.
        assert small[part] == count or (part == "augment: rand_augment" and small[part] < count), (part, small[part])
