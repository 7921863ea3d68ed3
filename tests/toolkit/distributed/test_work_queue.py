"""Work handed out: each number once, to whoever is free."""

from __future__ import annotations

import json
from pathlib import Path

from toolkit_helpers import launch

from toolkit.distributed.collectives import WorkQueue, make_accelerator

SCRIPT = """
import json, sys, time
from toolkit.distributed.collectives import WorkQueue, make_accelerator
accelerator = make_accelerator()
for turn in range(2):
    hand_out = WorkQueue(accelerator, 40)
    own, done = [], 0
    for number in hand_out.take():
        own.append(number)
        done = hand_out.report(3)
        time.sleep(0.05 if accelerator.process_index == 1 else 0.005)
    results = hand_out.end([own, done])
    accelerator.wait_for_everyone()
    open(f"{sys.argv[1]}/{turn}-{accelerator.process_index}.json", "w").write(json.dumps(results))
accelerator.end_training()
"""


def test_one_process_gets_everything() -> None:
    queue = WorkQueue(make_accelerator(), 4)
    assert list(queue.take()) == [0, 1, 2, 3] and list(queue.take()) == []
    assert [queue.report(2), queue.report(5)] == [2, 7]
    assert queue.end(["x"]) == [["x"]]
    assert list(WorkQueue(make_accelerator(), 0).take()) == []


def test_three_processes_share_it(tmp_path: Path) -> None:
    script = tmp_path / "share.py"
    script.write_text(SCRIPT)
    run = launch(3, script, tmp_path)
    assert run.returncode == 0, run.stderr
    for turn in range(2):
        told = [json.loads((tmp_path / f"{turn}-{rank}.json").read_text()) for rank in range(3)]
        assert told[0] == told[1] == told[2]  # everybody knows the results of all
        owned = [own for own, _ in told[0]]
        assert sorted(number for own in owned for number in own) == list(range(40))
        assert max(done for _, done in told[0]) == 120
        if turn == 1:  # the first turn may begin with one process far ahead of the others
            assert len(owned[1]) < 12 < min(len(owned[0]), len(owned[2])) + 4
