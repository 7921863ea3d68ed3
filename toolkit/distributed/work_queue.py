"""Work handed out piece by piece to whichever process asks first, over a counter that all of them share."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import torch.distributed as dist
from accelerate import Accelerator

from toolkit.distributed.collectives import from_main

#: A process may work on its last piece for hours while the others wait; one that dies ends the launch.
PATIENCE = timedelta(days=30)


class HandOut:
    """Numbers 0 to count - 1, each for exactly one process. Made, and ended, by every process.

    The counter lives in a store of torch.distributed's own (TCPStore), whose ``add`` is atomic. The process group is
    not asked: its collective calls would make the processes wait for each other, and time out on long work.
    """

    def __init__(self, accelerator: Accelerator, count: int) -> None:
        self.count = count
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self._store: Any = dist.HashStore()  # of this process alone
        if self.world > 1:
            host, main = os.environ.get("MASTER_ADDR", "127.0.0.1"), accelerator.is_main_process
            opened = partial(dist.TCPStore, host, is_master=main, timeout=PATIENCE, wait_for_workers=False)
            if main:
                self._store = opened(0, self.world)
            port = from_main(accelerator, self._store.port if main else None)
            if not main:
                self._store = opened(port, self.world)

    def numbers(self) -> Iterator[int]:
        """What this process gets, a number each time it asks, until all are given."""
        while (number := self._store.add("next", 1) - 1) < self.count:
            yield number

    def done(self, samples: int) -> int:
        """Say that ``samples`` more are done; returns how many all processes together have done."""
        return self._store.add("samples", samples)

    def end(self, result: Any) -> list[Any]:
        """Wait until every process has come here; all of them get the (JSON) results of all, in order of rank."""
        self._store.set(f"result/{self.rank}", json.dumps(result))
        keys = [f"result/{rank}" for rank in range(self.world)]
        self._store.wait(keys, PATIENCE)
        results = [json.loads(self._store.get(key)) for key in keys]
        # The main process holds the store: it stays until the others have read it.
        self._store.set(f"read/{self.rank}", "")
        if self.rank == 0:
            self._store.wait([f"read/{rank}" for rank in range(self.world)], PATIENCE)
        return results
