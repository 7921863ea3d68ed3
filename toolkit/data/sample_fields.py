"""Other members of a sample beside its image, such as ``txt`` or ``json``, read and decoded in the decoding threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from shards.errors import UserError, printable_line
from toolkit.config.extensions import explained
from toolkit.data.loader.loader import Batch
from toolkit.data.sources.shard_reader import ShardReader

#: Function that makes a value from the bytes of a member.
Decode: TypeAlias = Callable[[bytes], Any]


class SampleFields:
    """Read other members of a sample, and decode them, in the decoding threads."""

    def __init__(self, reader: ShardReader, fields: Sequence[str] | Mapping[str, Decode]) -> None:
        names = [fields] if isinstance(fields, str) else list(fields) if isinstance(fields, Iterable) else [fields]
        if wrong := [name for name in names if not isinstance(name, str)]:
            what = "fields must be names of members, such as ('txt', 'json'), or a dict from names to functions"
            raise UserError("option-value", f"{what}, not {repr(wrong[0])[:200]}")
        for name, decode in fields.items() if isinstance(fields, Mapping) else ():
            if not callable(decode):
                what = f"fields[{name!r}] must be a function of bytes, such as json.loads"
                raise UserError("option-value", f"{what}, not {repr(decode)[:200]}")
        self.reader = reader
        self.decoders: dict[str, Decode] = {n: fields[n] if isinstance(fields, Mapping) else bytes for n in names}
        self.ranges = {name: reader.field_ranges(name) for name in self.decoders}
        for name, (offsets, _) in self.ranges.items():
            if len(missing := np.flatnonzero(offsets < 0)):
                first = reader.where(int(missing[0]))
                others = ", ".join(reader.members(int(missing[0]))) or "none"
                what = f"{len(missing)} of {len(reader)} samples have no member {name!r}, such as {first}"
                what += f", whose members beside the image are: {others}"
                raise UserError(
                    "set-other", printable_line(f"{what}; leave {name!r} out of fields, or index the set again")
                )

    def __call__(self, index: int) -> tuple[Any, ...]:
        return tuple(self._decoded(name, index) for name in self.decoders)

    def _decoded(self, name: str, index: int) -> Any:
        offsets, sizes = self.ranges[name]
        data = self.reader.field(index, int(offsets[index]), int(sizes[index]))
        return explained(f"decoding {name!r} of {self.reader.where(index)}", lambda: self.decoders[name](data))

    def of(self, batch: Batch) -> dict[str, list[Any]]:
        """Return the values of each field, in the order of the rows."""
        rows = [batch.fields[row] for row in range(len(batch.micro_batch.indices))] if self.decoders else []
        return {name: [row[column] for row in rows] for column, name in enumerate(self.decoders)}
