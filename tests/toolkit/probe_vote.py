"""One of two processes votes late, and another time not at all; prints what each saw as a line of JSON.

accelerate launch ... probe_vote.py
"""

from __future__ import annotations

import json
import os
import signal
import time

import torch.distributed as dist

from toolkit.distributed.collectives import make_accelerator
from toolkit.distributed.votes import StopSignal

#: Seconds by which one is behind.
LATE = 3.0


def main() -> None:
    accelerator = make_accelerator()
    late = not accelerator.is_main_process
    stop = StopSignal(accelerator)
    dist.barrier()
    if late:
        time.sleep(LATE)
    started = time.monotonic()
    answers = [stop.agreed()]
    waited = time.monotonic() - started
    if late:
        os.kill(os.getpid(), signal.SIGTERM)  # after its first vote
    answers += [stop.agreed(), stop.agreed()]
    seen = {"answers": answers, "waited": waited, "pending": stop.vote._work is not None}
    stop.restore()

    stop = StopSignal(accelerator)
    if late:
        os.kill(os.getpid(), signal.SIGTERM)
    seen["now"] = stop.agreed(True)
    stop.restore()

    stop = StopSignal(accelerator)
    started = time.monotonic()
    if not late:
        stop.agreed()  # the other one ends without its vote
        stop.restore()
        seen["left after"] = time.monotonic() - started
    print("SAW", json.dumps(seen), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
