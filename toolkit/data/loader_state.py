"""The state of a ShardLoader: a position in an epoch, and what the order of the samples depends on.

The state has seven values, for any number of samples. It does not depend on the world size, so a training may continue
with another number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import msgspec

from shards.errors import UserError
from shards.schema import Count, check_as

Seed = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


@dataclass(frozen=True)
class LoaderState:
    """The samples that a training has used, as JSON values."""

    fingerprint: str
    """Fingerprint of the shards of the split and of the labels."""
    order: str
    """Order of the samples: its name, with the number of shards in a group for "window"."""
    batch_size: Count
    """Samples of an update over all ranks."""
    seed: Seed
    epoch: Count
    samples: Count
    """Number of samples of the epoch that have been used, over all ranks. 0 at the start of an epoch."""
    format: Literal[1] = 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def parse_state(state: Mapping[str, Any], ours: LoaderState) -> LoaderState:
    """Return the state from a ``state_dict``. ``ours`` is the state of the loader that is to continue.

    Raises UserError if the values are not a state, or if the loader has another set, order or seed.
    """
    remedy = "load a state that state_dict() returned"
    found = check_as(state, LoaderState, "the state", "state of a ShardLoader", remedy, "option-value")
    if found.fingerprint != ours.fingerprint:
        what = "the state belongs to another shard set or split"
        raise UserError("set-other", f"{what}: open the set and split of that training, or start without the state")
    for name in ("order", "seed"):
        theirs, own = getattr(found, name), getattr(ours, name)
        if theirs != own:
            what = f"the state has {name} {theirs!r}, but this loader has {name} {own!r}"
            raise UserError(
                "option-conflict", f"{what}: the samples would not be the rest of that epoch; use {theirs!r}"
            )
    return found
