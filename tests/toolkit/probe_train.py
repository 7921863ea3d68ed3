"""``posters train`` with a spy: writes which samples each update used, and can kill or signal itself at an update.

python probe_train.py SPY_FOLDER ["kill 5" | "term 5" | ""] <options of posters train>
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from toolkit.cli.main import run
from toolkit.training.trainer import Trainer


def main() -> None:
    folder, event = Path(sys.argv[1]), sys.argv[2].split()
    folder.mkdir(parents=True, exist_ok=True)
    update = Trainer._update

    def spied(self: Trainer, batches: Any) -> Any:
        state, rank = self.state, self.accelerator.process_index
        used: list[str] = []

        def watched() -> Any:
            for batch in batches:
                used.extend(self.setup.train.key(i) for i in batch.micro_batch.indices[batch.micro_batch.valid])
                yield batch

        record = {"epoch": state.epoch, "step": state.step, "rank": rank, "world": self.accelerator.num_processes}
        result = update(self, watched())
        with open(folder / f"rank{rank}.jsonl", "a") as stream:
            stream.write(json.dumps({**record, "keys": used}) + "\n")
        if event and state.updates == int(event[1]) and rank == 0:
            os.kill(os.getpid(), signal.SIGKILL if event[0] == "kill" else signal.SIGTERM)
        return result

    Trainer._update = spied  # type: ignore[method-assign]
    run(["train", *sys.argv[3:]])


if __name__ == "__main__":
    main()
