"""``posters train`` to which something happens once: a signal or a pause, at an update or in the middle of validation.

    python probe_launch.py FOLDER "WHAT WHERE NUMBER RANK" <options of posters train>

WHAT is ``kill`` or ``term`` (SIGKILL or SIGTERM to itself), ``pause`` (until FOLDER/go exists) or ``wait`` (until a
signal comes); WHERE is ``update`` (after so many of the run) or ``validate`` (after so many batches); FOLDER/happened
says that it happened, and to whom.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.cli.main import run
from toolkit.distributed.votes import StopSignal
from toolkit.training.trainer import Trainer


def main() -> None:
    folder = Path(sys.argv[1])
    what, where, number, rank = sys.argv[2].split()
    update, check, batches = Trainer._update, StopSignal.check, 0

    def strike(stop: StopSignal) -> None:
        mark = folder / "happened"
        if os.environ.get("RANK", "0") != rank or mark.exists():
            return
        mark.write_text(f"{os.getpid()}\n")
        if what in ("pause", "wait"):
            while not ((folder / "go").exists() if what == "pause" else stop.received):
                time.sleep(0.02)
        else:
            os.kill(os.getpid(), signal.SIGKILL if what == "kill" else signal.SIGTERM)

    def watched_update(self: Trainer, *arguments: Any) -> Any:
        result = update(self, *arguments)
        if where == "update" and self.state.updates == int(number):
            strike(self.stop)
        return result

    def watched_check(self: StopSignal, *arguments: Any) -> None:
        nonlocal batches
        batches += 1
        if where == "validate" and batches == int(number):
            strike(self)
        check(self, *arguments)

    patched: tuple[tuple[type, str, Callable[..., Any]], ...] = (
        (Trainer, "_update", watched_update),
        (StopSignal, "check", watched_check),
    )
    for owner, name, function in patched:
        setattr(owner, name, function)
    run(["train", *sys.argv[3:]])


if __name__ == "__main__":
    main()
